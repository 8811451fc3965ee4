# SPDX-License-Identifier: Apache-2.0
"""Starts the command: ``numaplace``, or ``python -m numaplacement.cli``."""

from __future__ import annotations

import io
import os
import sys

_FAULT, _CANCELLED = 1, 5
"""As in exits.py, which takes a while to load: Ctrl-C may come before."""


def main() -> int:
    """Run one command and return its exit code; whatever goes wrong ends in a sentence."""
    try:
        return _command()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else _FAULT
    except KeyboardInterrupt:
        return _CANCELLED
    except Exception as error:  # noqa: BLE001 - a person is told in one sentence, and no memory is harmed by ending
        print(f"numaplace: {_words(error)}", file=sys.stderr)  # noqa: T201 - to a person
        return _FAULT


def _command() -> int:
    if sys.stderr is None:  # closed: nobody is there to be told
        sys.stderr = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    import click  # noqa: PLC0415 - loading is what Ctrl-C may interrupt, numpy above all

    from .commands import numaplace  # noqa: PLC0415
    from .exits import Exit  # noqa: PLC0415

    try:
        ended = numaplace(prog_name="numaplace", standalone_mode=False)
    except click.Abort:
        return Exit.CANCELLED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return ended if isinstance(ended, int) else Exit.PLACED


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
