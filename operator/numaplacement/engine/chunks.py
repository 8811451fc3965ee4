# SPDX-License-Identifier: Apache-2.0
"""How much to move in one call, and when the next one may start. Pure: time comes in as numbers.

Both are shared by all mover threads of a run; each holds its own lock.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field

_MIB = 1 << 20
LEAST = 64 << 10
"""Below this the fixed cost of a call (mm/migrate.c drains every CPU's lists first) outweighs the pages in it."""
START = _MIB // 2
"""Small enough for a slow host's first call to stay below the target; it takes few doublings to leave it."""
MOST = 128 * _MIB

_WINDOW = 400
"""Calls that are remembered: a few seconds of them, and enough to see one in a hundred."""
_BEYOND = 0.005
"""Share of remembered calls that may lie above the target: half of what p99 allows, as the estimate is one itself."""
_MARGIN = 1.1
_DOUBT = 2.0
"""After n calls the slowest is taken to be exceeded by 2/sqrt(n) more: few calls do not show the tail."""
_OUTGROWN = 4
"""Calls of a fourth of the size and less are forgotten: the fixed cost was a bigger part of theirs."""
_TAIL_OF_SIZE = 16.0
"""A tail this many times the median is not made by the size of a call; smaller ones would only be more."""


@dataclass
class ChunkSize:
    """Bytes of the next call, so that 99 of 100 calls stay below `target` seconds.

    It remembers the seconds per byte of recent calls and takes the size whose slow tail ends at the target. It grows to
    at most twice what a call has just shown to be good, and shrinks at once. The tail of calls that wait for something
    else than the copy (an interrupt, a CPU that drains its lists late) cannot be made shorter by size: the median call
    keeps a sixteenth of the target at least. A folio is never divided: the mover takes one at least.
    """

    target: float
    size: int = START
    _grown_to: int = field(default=0, init=False, repr=False)
    _recent: deque[float] = field(default_factory=deque, init=False, repr=False)
    _sorted: list[float] = field(default_factory=list, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def observe(self, *, seconds: float, moved: int) -> None:
        """Take note of a call over `moved` bytes.

        A quick one over much less than `size` says nothing: most of its cost is fixed.
        """
        with self._lock:
            small = moved * 2 < self.size
            if small and seconds <= self.target:
                return
            self._outgrow(moved)
            self._remember(seconds / (self.size // 2 if small else moved))
            self.size = max(LEAST, min(MOST, self._wanted(), max(self.size, 2 * moved)))

    def _outgrow(self, moved: int) -> None:
        if moved >= _OUTGROWN * self._grown_to:
            self._grown_to = moved
            self._recent.clear()
            self._sorted.clear()

    def _remember(self, cost: float) -> None:
        if len(self._recent) == _WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(cost)
        insort(self._sorted, cost)

    def _wanted(self) -> int:
        count = len(self._sorted)
        tail = self._sorted[count - 1 - int(count * _BEYOND)] * (_MARGIN + _DOUBT / math.sqrt(count))
        tail = min(tail, self._sorted[count // 2] * _TAIL_OF_SIZE)
        return int(min(MOST, self.target / tail)) if tail > 0 else MOST


_CREDIT = 0.25
"""Seconds' worth of bandwidth that was not used and may be caught up with: naps last too long, calls too."""
_SLICES = 10
"""Chunks a second's worth is cut into at least."""


@dataclass
class TokenBucket:
    """Keeps the bytes moved at or below `rate` bytes per second, or does nothing when that is None.

    Bytes are paid for before they move: take() says how long to wait first. So whatever number of threads take from it,
    no more has moved at any time than `rate` times the seconds since the first of them came.
    """

    rate: int | None
    _paid_at: float | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def wait(self, now: float) -> float:
        """Return the seconds until all that was taken is paid for."""
        with self._lock:
            return 0.0 if self._paid_at is None else max(0.0, self._paid_at - now)

    def take(self, count: int, now: float) -> float:
        """Take `count` bytes and return the seconds to wait before they may be moved."""
        if self.rate is None:
            return 0.0
        with self._lock:
            paid_at = now if self._paid_at is None else max(self._paid_at, now - _CREDIT)
            self._paid_at = paid_at + count / self.rate
            return max(0.0, self._paid_at - now)

    def most(self) -> int:
        """Return the most bytes to move at once, so that the rate holds over a second too."""
        return MOST if self.rate is None else max(LEAST, min(MOST, self.rate // _SLICES))
