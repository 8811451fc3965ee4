# SPDX-License-Identifier: Apache-2.0
"""Room for calls under way: what they take is not yet missing from what is free."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .chunks import LEAST
from .errors import PlaceFull
from .guard import Guard
from .reasons import Reason
from .wording import size_text

_LANDING = 0.005
"""Seconds to wait for a call of another mover, where what it takes may be all that is missing."""

Room = Callable[[int, int], int]
"""Given a NUMA node and the size of a page, the bytes that may be taken there now."""


@dataclass(kw_only=True)
class Flight:
    """Bytes of calls under way, by NUMA node they go to; movers share it.

    `patience` are the seconds to wait for room that the kernel, or another run, is making. `make_room` is given a NUMA
    node, the size of a page and the bytes that are to be taken there.
    """

    guard: Guard
    room: Room
    clock: Callable[[], float]
    patience: float = 0.0
    make_room: Callable[[int, int, int], None] = lambda _target, _page_size, _count: None
    _bytes: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def total(self) -> int:
        """The bytes under way to all NUMA nodes."""
        with self._lock:
            return sum(self._bytes.values())

    def take(self, sizes: NDArray[np.int64], *, target: int, page_size: int) -> int:
        """Take room for the first of some folios, `sizes` int64[n] in bytes: as many as there is room for; return that.

        Where not even a smallest chunk of them has room it waits. Raises PlaceFull when none has in the end, Stopped
        and ProcessEnded when there is nothing more to wait for.
        """
        ends = np.cumsum(sizes)
        chunk = min(max(LEAST, int(ends[0])), int(ends[-1]))
        until = self.clock() + self.patience
        while True:
            late = self.clock() >= until
            least = int(ends[0]) if late else chunk
            count, free, alone = self._try(ends, least, target=target, page_size=page_size)
            if count:
                return count
            if late and alone:
                raise self._full(free, int(ends[0]), target=target, page_size=page_size)
            if alone:
                self.make_room(target, page_size, int(ends[-1]))
            # Part of what is under way has landed already and counts twice for now.
            self.guard.wait(_LANDING)

    def landed(self, size: int, *, target: int) -> None:
        """Give room back: the call that took it is over."""
        with self._lock:
            self._bytes[target] -= size

    def _try(self, ends: NDArray[np.int64], least: int, *, target: int, page_size: int) -> tuple[int, int, bool]:
        """Take room for the first folios, of `least` bytes at least; `ends` int64[n] are their sizes summed up.

        Return for how many, the bytes of room there were, and whether nothing is under way.
        """
        with self._lock:
            flying = self._bytes.get(target, 0)
            free = max(0, self.room(target, page_size) - flying)
            count = int(np.searchsorted(ends, free, side="right"))
            if count == 0 or ends[count - 1] < least:
                return 0, free, not flying
            self._bytes[target] = flying + int(ends[count - 1])
            return count, free, not flying

    def _full(self, free: int, size: int, *, target: int, page_size: int) -> PlaceFull:
        if page_size > self.guard.process.kernel.page_size:
            reason, seen = Reason.HUGEPAGE_POOL, f"are free in the pool of NUMA node {target}"
        else:
            reason = Reason.DESTINATION_FULL
            seen = f"could still be taken on NUMA node {target} without making others give memory back"
        return PlaceFull(reason, f"{size_text(free)} {seen}, the next page needed {size_text(size)}")
