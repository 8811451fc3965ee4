# SPDX-License-Identifier: Apache-2.0
"""Signals as a person at a terminal has them, however the tests were started: in the background SIGINT is ignored, and
under nohup SIGHUP.
"""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let Ctrl-C and a closed terminal be heard."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
