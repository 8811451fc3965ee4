# SPDX-License-Identifier: Apache-2.0
"""When nothing more is to be done: cancelled, out of time, or the process gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from .errors import Stopped
from .process import HeldProcess
from .reasons import Reason
from .verdict import Progress, Stage, Watcher
from .watchdog import LongCall, Watchdog

NAP = 0.05
"""Seconds between two looks at whether the run was cancelled, while it waits."""


class Guard:
    """Says when nothing more is to be done. Several threads may ask; the watcher hears one at a time.

    `watchdog` is to be round each kernel call that may take long; it watches while it is entered.
    """

    def __init__(
        self, *, process: HeldProcess, watcher: Watcher, clock: Callable[[], float], deadline_at: float
    ) -> None:
        self.process = process
        self._watcher = watcher
        self._clock = clock
        self._deadline_at = deadline_at
        self._one_at_a_time = threading.Lock()
        self._told = Progress(stage=Stage.SURVEY)
        self.watchdog = Watchdog(tell=self._tell_long, clock=clock)

    def check(self) -> None:
        """Raise Stopped or ProcessEnded when nothing more is to be done."""
        with self._one_at_a_time:
            cancelled = self._watcher.cancelled()
        if cancelled:
            raise Stopped(Reason.CANCELLED, "cancelled while it ran")
        if self._clock() >= self._deadline_at:
            raise Stopped(Reason.DEADLINE, "the deadline passed while it ran")
        self.process.check()

    def wait(self, seconds: float) -> None:
        """Wait, and look meanwhile whether there is still anything to wait for. Raises as check() does."""
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            self.process.kernel.sleep(min(left, NAP))
            self.check()

    def tell(self, progress: Progress) -> None:
        """Tell the watcher."""
        with self._one_at_a_time:
            self._told = progress
            self._watcher.progressed(progress)

    def begin(self, progress: Progress) -> None:
        """Take note of what the run does now without telling it."""
        with self._one_at_a_time:
            self._told = progress

    def tell_waiting(self, reason: str) -> None:
        """Tell the watcher what the run waits for; all else is as it was last told."""
        self.tell(replace(self._told, waiting=reason))

    def _tell_long(self, call: LongCall) -> None:
        """Tell of a call that takes long: it cannot be cancelled."""
        if not call.ended:
            self.tell_waiting(f"{call.what} has lasted {call.seconds:.0f} s and cannot be cancelled")
