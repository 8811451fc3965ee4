# SPDX-License-Identifier: Apache-2.0
"""Starts the command: ``numaplace``, or ``python -m numaplacement.cli``."""

from __future__ import annotations

import io
import os
import sys

from .exits import Exit


def main() -> int:
    """Run one command and return its exit code; whatever goes wrong ends in a sentence."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        from .commands import numaplace  # noqa: PLC0415 - loading numpy may be what Ctrl-C interrupts

        numaplace(prog_name="numaplace")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.FAULT
    except KeyboardInterrupt:
        return Exit.CANCELLED
    except Exception as error:  # noqa: BLE001 - a person is told in one sentence, and no memory is harmed by ending
        print(f"numaplace: {_words(error)}", file=sys.stderr)  # noqa: T201 - to a person
        return Exit.FAULT
    return Exit.PLACED


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        return f"the system said: {os.strerror(error.errno)}{where}; nothing more is known, so look there"
    return (
        f"a fault of this program, {type(error).__name__}: {error}; report it with the command line and the kernel's"
        " release"
    )


if __name__ == "__main__":
    sys.exit(main())
