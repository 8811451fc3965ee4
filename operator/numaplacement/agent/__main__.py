# SPDX-License-Identifier: Apache-2.0
"""Starts the agent: ``numaplacement-agent``, or ``python -m numaplacement.agent``."""

from __future__ import annotations

import os
import sys

from .settings import SettingError, Settings, read_settings

MISCONFIGURED = 2
"""Exit code when somebody has to correct something before it can start."""


def main() -> int:
    """Run the agent until SIGTERM or SIGINT and return its exit code."""
    try:
        settings = read_settings(sys.argv[1:], os.environ)
        _run(settings)
    except SettingError as error:
        print(f"numaplacement-agent: {error}", file=sys.stderr)  # noqa: T201 - to a person, before there is a log
        return MISCONFIGURED
    return 0


def _run(settings: Settings) -> None:
    # Here and not above: these take seconds on a slow machine, and --help and a missing setting need none of them.
    from .service import serve  # noqa: PLC0415

    serve(settings)


if __name__ == "__main__":
    sys.exit(main())
