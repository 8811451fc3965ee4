# SPDX-License-Identifier: Apache-2.0
"""Waiting for a condition with a deadline; nothing in the rig sleeps for a guessed time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class DeadlineError(Exception):
    """A condition did not become true in time; the message says which and what was last seen."""


def wait_until(condition: Callable[[], T], *, what: str, timeout: float, interval: float = 0.05) -> T:
    """Call `condition` until it returns something true, and return that.

    `timeout` and `interval` are seconds. Raises `DeadlineError` naming `what` and the last value seen.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise DeadlineError(f"{what}: not within {timeout:g} s (last seen: {value!r})")
        time.sleep(interval)
