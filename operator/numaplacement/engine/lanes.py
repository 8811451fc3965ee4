# SPDX-License-Identifier: Apache-2.0
"""How many movers work at the same time: one, or all, whichever is seen to move more without long calls.

Calls at the same time share locks of the kernel: each has every CPU drain its lists first, behind one mutex
(mm/swap.c, __lru_add_drain_all), and takes pages from and to lists of the same two NUMA nodes. On a host with idle CPUs
several move more; where CPUs are scarce, or the host is a guest itself and the holder of a spinlock may lose its CPU,
they are slower than one by far, and each call takes longer than it may. No figure tells beforehand: so both are tried,
by the clock, and tried again. One comes first: where that is the better way, finding out with several has cost the VM
CPUs that it needs, and a move of a GiB a large part of its time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_SETTLING = 8
_SETTLED = 0.3
"""Calls, or seconds, before anything is measured: the size of calls is still growing."""
_CALLS = 3
_SECONDS = 0.05
"""Calls and seconds that a trial takes at least."""
_GAIN = 1.05
"""Times as much as one that all have to move: the VM pays for each of them with a CPU."""
_HOPELESS = 0.5
"""Part of what the other way moves; below it a trial ends at once."""
_LATE = 0.02
"""Share of late calls from which on what a way moves counts half: one of a hundred is late with any."""
_REMEMBERED = 128
"""Calls that share is about."""
_HOLD = 2.0
"""Seconds for which a choice stands."""


@dataclass(kw_only=True)
class Choice:
    """Chooses between one mover and `most` by the bytes each way moves in a second. Pure; not locked.

    `active` is how many are to work now.
    """

    most: int
    active: int = field(init=False)
    _calls: int = 0
    _first: float | None = None
    _began: float | None = None
    _moved: int = 0
    _late: dict[int, float] = field(default_factory=dict)
    _rates: dict[int, float] = field(default_factory=dict)
    _trying: bool = False

    def __post_init__(self) -> None:
        self.active = 1

    def observe(
        self, *, moved: int, now: float, seconds: float = 0.0, late: bool = False, crowded: bool = False
    ) -> None:
        """Take note of a call over `moved` bytes that has just ended, took so long, and was `late` by what calls may.

        One that began before a trial did is not part of it. While it is `crowded`, since one who is to step aside has
        not come to it yet, nothing is measured.
        """
        if self.most == 1:
            return
        if self._began is None:
            self._calls += 1
            self._first = now if self._first is None else self._first
            if self._calls >= _SETTLING or now - self._first >= _SETTLED:
                self._trying = True
                self._begin(1, now)
            return
        if crowded:
            self._begin(self.active, now)
            return
        if now - seconds < self._began:
            return
        self._calls += 1
        self._moved += moved
        share = self._late.get(self.active, 0.0)
        self._late[self.active] = share + (late - share) / _REMEMBERED
        passed = now - self._began
        if passed <= 0:
            return
        rate = self._moved / passed / (2 if self._late[self.active] > _LATE else 1)
        if not self._trying:
            if passed >= _HOLD:
                self._rates = {self.active: rate}
                self._trying = True
                self._begin(self._other, now)
        elif self._enough(rate, passed):
            self._rates[self.active] = rate
            self._go_on(now)

    @property
    def _other(self) -> int:
        return 1 if self.active > 1 else self.most

    def _enough(self, rate: float, seconds: float) -> bool:
        """Say whether a trial has shown what it was to show."""
        if seconds < _SECONDS:
            return False
        return self._calls >= _CALLS or rate < _HOPELESS * self._rates.get(self._other, 0.0)

    def _go_on(self, now: float) -> None:
        """Begin the next trial, or choose."""
        if self._other not in self._rates:
            self._begin(self._other, now)
            return
        self._trying = False
        self._begin(self.most if self._rates[self.most] > _GAIN * self._rates[1] else 1, now)

    def _begin(self, active: int, now: float) -> None:
        self.active, self._began, self._calls, self._moved = active, now, 0, 0


class Lanes:
    """Lets movers work, as many at a time as is best; all movers of a run share it.

    Who is not let in does nothing at all: where CPUs are scarce, preparing a call takes from those who make one.
    """

    def __init__(self, *, movers: int, latency: float, clock: Callable[[], float]) -> None:
        self._choice = Choice(most=movers)
        self._latency = latency
        self._clock = clock
        self._running = 0
        self._changed = threading.Condition()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be one of those who work, once there is room for one more."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def observe(self, *, moved: int, seconds: float) -> None:
        """Take note of a call over `moved` bytes that has just ended and took so long."""
        with self._changed:
            before = self._choice.active
            crowded = self._running > before
            self._choice.observe(
                moved=moved, now=self._clock(), seconds=seconds, late=seconds > self._latency, crowded=crowded
            )
            if self._choice.active > before:
                self._changed.notify_all()

    def step_aside(self) -> None:
        """Wait meanwhile where one more is at work than is best."""
        with self._changed:
            if self._running <= self._choice.active:
                return
        self._leave()
        self._enter()

    def _enter(self) -> None:
        with self._changed:
            while self._running >= self._choice.active:
                self._changed.wait()
            self._running += 1

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify()
