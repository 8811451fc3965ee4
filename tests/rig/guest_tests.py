# SPDX-License-Identifier: Apache-2.0
"""Runs pytest inside an emulated host: `python -m tests.rig.guest_tests [--time-limit S] -- PYTEST WORDS…`.

A test that hangs fails after its limit, with the stacks of all threads. An emulated kernel that dies or stands still,
as it does now and then under software emulation, cannot say so: it is told by pytest, which no longer prints anything.
Then everything is run once more in a fresh host, and that it was is said; a second time is a failure, as is a
host whose time limit has passed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.rig.guest import LOST_STATUS, Guest, GuestError, GuestProcess, show

TEST_LIMIT = 300
"""Seconds a test may take; ten times what the longest does."""
STACKS_AFTER = 30
"""Seconds after that limit at which the stacks are printed, where the test is still not over."""
SILENCE_AFTER = 90
"""Seconds after that limit at which a host that says nothing counts as lost."""
_HOSTS = 2
_LOOK_EVERY = 2.0


def words(pytest: Sequence[str], *, test_limit: int) -> list[str]:
    """The command inside the guest. The stacks are printed by a thread of their own, even where the test hangs in the
    kernel and cannot be interrupted.
    """
    limits = [f"--timeout={test_limit}", "-o", f"faulthandler_timeout={test_limit + STACKS_AFTER}"]
    return [sys.executable, "-m", "pytest", *limits, *pytest]


def run(
    pytest: Sequence[str],
    *,
    make: Callable[[], Guest],
    keep: Callable[[Path], None] = lambda _: None,
    test_limit: int = TEST_LIMIT,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Pytest's exit status in a guest made by `make`; in a second one when the first is lost.

    `keep` is given the folder shared with the guest once pytest has ended. Raises GuestError when the second is lost
    as well, or the time limit of the first has passed.
    """
    for host in range(1, _HOSTS + 1):
        guest = make()
        try:
            with guest:
                print(f"emulated host up after {guest.boot_seconds:.0f} s", file=sys.stderr, flush=True)
                heard = Heard(clock=clock)
                process = guest.start(words(pytest, test_limit=test_limit), cwd=Path.cwd(), on_output=heard)
                status = _wait(process, guest, heard=heard, silence_limit=test_limit + SILENCE_AFTER)
                keep(guest.shared)
                return status
        except GuestError as error:
            if host == _HOSTS or guest.out_of_time:
                raise
            print(
                f"\nTHE EMULATED HOST WAS LOST, the tests begin again in another: {error}", file=sys.stderr, flush=True
            )
    raise AssertionError("unreachable: the last host returns or raises")


class Heard:
    """Passes output on, and remembers when there was some."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()

    def __call__(self, stream: str, data: bytes) -> None:
        self._last = self._clock()
        show(stream, data)

    def silent_for(self) -> float:
        """Seconds since the last output."""
        return self._clock() - self._last


def _wait(process: GuestProcess, guest: Guest, *, heard: Heard, silence_limit: float) -> int:
    while True:
        try:
            return process.wait(_LOOK_EVERY)
        except subprocess.TimeoutExpired:
            if heard.silent_for() > silence_limit:
                raise GuestError(f"it printed nothing for {silence_limit:g} s:\n{guest.tail()}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run tests in a guest of the machine's own kernel."""
    parser = argparse.ArgumentParser(prog="python -m tests.rig.guest_tests", description="Run pytest in a guest.")
    parser.add_argument("--time-limit", type=float, default=600.0, metavar="S", help="end a guest after S seconds")
    parser.add_argument("--kernel-arg", action="append", default=[], metavar="ARG", help="one more kernel argument")
    parser.add_argument("pytest", nargs="+", help="words for pytest, after --")
    options = parser.parse_args(arguments)

    def make() -> Guest:
        return Guest(time_limit=options.time_limit, kernel_args=options.kernel_arg)

    try:
        return run(options.pytest, make=make)
    except GuestError as error:
        print(error, file=sys.stderr)
        return LOST_STATUS


if __name__ == "__main__":
    sys.exit(main())
