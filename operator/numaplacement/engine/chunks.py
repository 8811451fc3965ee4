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
from itertools import islice
from typing import NamedTuple

_MIB = 1 << 20
LEAST = 64 << 10
"""Below this the fixed cost of a call (mm/migrate.c drains every CPU's lists first) outweighs the pages in it."""
_SLOW = 25 * _MIB
"""Bytes a second that even a slow host moves: what the second call is over, before more is known."""
START = _MIB // 2
"""About what that makes of the default latency; it takes few doublings to leave it."""
MOST = 128 * _MIB

_ENOUGH = 0.05
"""Seconds a call lasts also where it may take longer: so it is soon seen whether several movers pay."""
_MANY = 20
"""Times its fixed cost that it does: more gains nothing."""
_WINDOW = 400
"""Calls that are remembered: a few seconds of them, and enough to see one in a hundred."""
_BEYOND = 0.005
"""Share of remembered calls that may lie above the target: half of what p99 allows, as the estimate is one itself."""
_MARGIN = 1.2
_DOUBT = 3.0
"""After n calls the slowest is taken to be exceeded by 3/sqrt(n) more: few calls do not show the tail."""
_FEW = 9
"""Calls that tell what is usual now."""
_OUTGROWN = 4
"""Calls of a fourth of the size and less are forgotten: the fixed cost was a bigger part of theirs."""
_LEAST_SLOPE = 1 / 8
"""Part of a call's time that at least is taken to grow with its size."""
_LEAST_SHARE = 1 / 4
"""Part of the target that the usual call lasts at least: it is not size that makes one of a hundred four times as long,
and smaller calls would only be more."""
_MOST_FIXED = 1 / 4
"""Part of the target up to which a call copies for as long as it waits: smaller ones would only be more."""


class _Call(NamedTuple):
    """Seconds per byte of a call, and the seconds it took beyond what one of its size usually does."""

    cost: float
    beyond: float


@dataclass
class ChunkSize:
    """Bytes of the next call, so that 99 of 100 calls stay below `target` seconds, and none lasts longer for nothing.

    It remembers recent calls: their seconds per byte, and those beyond the usual. The slow tail is partly made by size
    (a slow copy) and partly not (an interrupt, a CPU that drains its lists late), and it cannot be told which part is
    which: the next size is the geometric mean of those that either would allow. It grows to at most twice what a call
    has just shown to be good, and shrinks at once. A folio is never divided: the mover takes one at least.
    """

    target: float
    size: int = LEAST
    _fixed: float = field(default=math.inf, init=False, repr=False)
    _grown_to: int = field(default=0, init=False, repr=False)
    _recent: deque[_Call] = field(default_factory=deque, init=False, repr=False)
    _costs: list[float] = field(default_factory=list, init=False, repr=False)
    _beyond: list[float] = field(default_factory=list, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def observe(self, *, seconds: float, moved: int) -> None:
        """Take note of a call over `moved` bytes.

        The first is over so little that it tells the fixed cost. Later a quick one over much less than `size` says
        nothing: most of its cost is fixed.
        """
        with self._lock:
            if moved <= LEAST or self._fixed < math.inf:  # no call takes less, whatever it is over
                self._fixed = min(self._fixed, seconds)
            if self.size <= LEAST and not self._costs and seconds <= self._goal:
                rate = min(_SLOW, moved / seconds) if seconds > 0 else _SLOW
                self.size = max(LEAST, min(MOST, int(self._goal * rate)))
                return
            small = moved * 2 < self.size
            if small and seconds <= self._goal:
                return
            self._outgrow(moved)
            cost = seconds / (self.size // 2 if small else moved)
            self._remember(_Call(cost=cost, beyond=seconds - self._usual(cost, moved)))
            self.size = max(LEAST, min(MOST, self._wanted(moved), max(self.size, 2 * moved)))

    @property
    def _goal(self) -> float:
        """Seconds that the usual call is to stay below."""
        return min(self.target, max(_ENOUGH, _MANY * self._fixed_cost))

    @property
    def _fixed_cost(self) -> float:
        """Seconds a call takes by itself; 0 where no call was small enough to tell, as huge pages make none."""
        return 0.0 if self._fixed == math.inf else self._fixed

    def _outgrow(self, moved: int) -> None:
        if moved >= _OUTGROWN * self._grown_to:
            self._grown_to = moved
            for remembered in (self._recent, self._costs, self._beyond):
                remembered.clear()

    def _remember(self, call: _Call) -> None:
        if len(self._recent) == _WINDOW:
            old = self._recent.popleft()
            del self._costs[bisect_left(self._costs, old.cost)]
            del self._beyond[bisect_left(self._beyond, old.beyond)]
        self._recent.append(call)
        insort(self._costs, call.cost)
        insort(self._beyond, call.beyond)

    def _usual(self, cost: float, moved: int) -> float:
        """Return the seconds a call over `moved` bytes usually takes; `cost` is that of the call to be judged."""
        median = self._costs[len(self._costs) // 2] if self._costs else cost
        fixed = min(self._fixed_cost, self._goal)
        return fixed + self._slope(median, moved) * moved

    def _slope(self, median: float, moved: int) -> float:
        """Return by how many seconds a call grows with each byte; `median` are the seconds per byte of calls."""
        return max(median - min(self._fixed_cost, self._goal) / moved, median * _LEAST_SLOPE)

    def _lately(self) -> float:
        """Return the seconds per byte of the usual call of the last few: a host may have become slower."""
        costs = sorted(call.cost for call in islice(reversed(self._recent), _FEW))
        return costs[len(costs) // 2]

    def _wanted(self, moved: int) -> int:
        """Return the size whose tail ends at the target, judged from calls over about `moved` bytes."""
        count = len(self._costs)
        median, last = max(self._costs[count // 2], self._lately()), count - 1 - int(count * _BEYOND)
        more = _MARGIN + _DOUBT / math.sqrt(count)
        tail = self._costs[last] * more
        if median <= 0 or tail <= 0:
            return MOST
        slope, fixed = self._slope(median, moved), min(self._fixed_cost, self._goal)
        if_all_grows = self.target / tail
        if_none_does = max(LEAST, (self.target - fixed - max(0.0, self._beyond[last]) * more) / slope)
        least = max(self._goal * _LEAST_SHARE / median, min(fixed, self._goal * _MOST_FIXED) / slope)
        # The tail is held to the target; what is usual also to the goal, where that is less.
        return int(min(MOST, max(least, min(math.sqrt(if_all_grows * if_none_does), self._goal / median))))


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

    def give_back(self, count: int) -> None:
        """Take note that `count` bytes that were taken are not moved after all."""
        if self.rate is not None and count:
            with self._lock:
                self._paid_at = (self._paid_at or 0.0) - count / self.rate

    def most(self) -> int:
        """Return the most bytes to move at once, so that the rate holds over a second too."""
        return MOST if self.rate is None else max(LEAST, min(MOST, self.rate // _SLICES))
