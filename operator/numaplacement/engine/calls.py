# SPDX-License-Identifier: Apache-2.0
"""Kernel calls that move pages: each as long as it may be, with room for it, and with a look round before it."""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .chunks import LEAST, ChunkSize, TokenBucket
from .errors import PlaceFull, ProcessEnded, Stopped
from .flight import Flight
from .guard import NAP, Guard
from .kernel import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MoveResult
from .lanes import Lanes
from .pressure import Throttle
from .reasons import Reason
from .verdict import CallTimes
from .wording import count_text

_RECENT = 512
"""Calls of which recent_p99() tells."""
_STALE = 0.5
"""Seconds of waiting for room after which it is looked anew whether to go on."""
_EXIT_WAIT = 2.0
"""Seconds an exiting process may take from losing its memory to being gone."""


@dataclass(kw_only=True)
class Calls:
    """Makes the calls of one run; its mover threads share it.

    `privileged` becomes false where the right to move shared pages turns out to be missing. `durations` are the seconds
    of all calls; `waiting` is what is waited for, in words.
    """

    guard: Guard
    clock: Callable[[], float]
    size: ChunkSize
    bucket: TokenBucket
    flight: Flight
    lanes: Lanes
    privileged: bool
    throttle: Throttle | None = None
    durations: list[float] = field(default_factory=list)
    waiting: str = ""
    _recent: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def move(
        self,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.int64],
        *,
        target: int,
        page_size: int,
        status: NDArray[np.int32],
    ) -> int:
        """Move folios at `addresses` uint64[n], of `sizes` int64[n] bytes, call by call until one of them fails.

        Write into `status` int32[n] what the kernel says of each folio, also where that ends by an exception; what is
        not reached stays as it is. Return how many were not moved, as one call over all of them would. Raises Stopped
        (PlaceFull where only this target takes no more) and ProcessEnded.
        """
        ends = np.cumsum(sizes)
        first = 0
        while first < addresses.size:
            self.guard.check()
            self._await_pace()
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + self._most(), side="right")))
            unused = int(ends[last - 1]) - before
            try:
                self.guard.wait(self.bucket.take(unused, self.clock()))
                paid = self.clock()  # from here on: what bandwidth made wait for is not to be waited for again
                count = self.flight.take(sizes[first:last], target=target, page_size=page_size)
                moved = int(ends[first + count - 1]) - before
                if self.clock() - paid > _STALE:  # what the VM and its neighbours feel may be another thing by now
                    self.flight.landed(moved, target=target)
                    continue
                part = slice(first, first + count)
                result = self._made(addresses[part], moved, target=target, page_size=page_size)
                if result is None:
                    continue
                unused -= moved
            finally:
                self.bucket.give_back(unused)
            status[part] = result.status
            first += count
            if result.not_moved:
                return result.not_moved + addresses.size - first
        return 0

    def locate(self, addresses: NDArray[np.uint64], *, target: int, page_size: int) -> NDArray[np.int32]:
        """Return on which NUMA node pages at `addresses` uint64[n] are, or an errno below 0: int32[n]; as move()."""
        process = self.guard.process
        result = process.kernel.locate_pages(process.pid, addresses)
        if result.errno:
            self._end(result.errno, target=target, page_size=page_size)
        return result.status

    def times(self) -> CallTimes:
        """Return how long the calls took so far."""
        p50, p99 = np.percentile(np.array(self.durations or [0.0]), (50, 99)).tolist()
        return CallTimes(count=len(self.durations), p50=p50, p99=p99)

    def recent_p99(self) -> float:
        """Return the seconds that 99 of 100 recent calls did not exceed; 0 when there was none."""
        return self._recent[int(0.99 * (len(self._recent) - 1))] if self._recent else 0.0

    def usual(self) -> int:
        """Return about how many bytes a call moves now."""
        return max(LEAST, min(self.size.size, self.bucket.most()))

    def _most(self) -> int:
        share = self.throttle.pace().share if self.throttle is not None else 1.0
        return max(LEAST, int(self.usual() * share))

    def _made(self, addresses: NDArray[np.uint64], size: int, *, target: int, page_size: int) -> MoveResult | None:
        """Make one call; None where it is to be made again with less privilege. Raises what its error means."""
        process, privileged = self.guard.process, self.privileged
        flags = MPOL_MF_MOVE_ALL if privileged else MPOL_MF_MOVE
        began = self.clock()
        try:
            with self.guard.watchdog.call(f"a kernel call over {count_text(addresses.size, 'page')}"):
                result = process.kernel.move_pages(process.pid, addresses, numa_node=target, flags=flags)
        finally:
            self.flight.landed(size, target=target)
        seconds = self.clock() - began
        if result.errno == errno.EPERM and privileged:
            self.privileged = False
            return None
        if result.errno:
            self._end(result.errno, target=target, page_size=page_size)
        with self._lock:
            self.durations.append(seconds)
            insort(self._recent, seconds)
            if len(self.durations) > _RECENT:
                del self._recent[bisect_left(self._recent, self.durations[-_RECENT - 1])]
            self.size.observe(seconds=seconds, moved=size)
        self.lanes.observe(moved=size, seconds=seconds)
        return result

    def _await_pace(self) -> None:
        """Wait for as long as the VM or its neighbours need a rest. Raises Stopped and ProcessEnded."""
        while self.throttle is not None:
            pace = self.throttle.pace()
            self.waiting = pace.reason
            if pace.pause <= 0:
                return
            self.guard.tell_waiting(pace.reason)
            self.guard.wait(pace.pause)

    def _end(self, number: int, *, target: int, page_size: int) -> None:
        """Raise what an error of a whole call means (move_pages(2), ERRORS; mm/migrate.c)."""
        if number == errno.ESRCH:
            raise ProcessEnded
        if number == errno.EINVAL:
            self._await_exit()
        pool = page_size > self.guard.process.kernel.page_size
        reason = {
            errno.ENOMEM: Reason.HUGEPAGE_POOL if pool else Reason.DESTINATION_FULL,
            errno.EACCES: Reason.VM_CPUSET,
            errno.EPERM: Reason.NO_ACCESS,
            errno.ENOSYS: Reason.SYSCALL_BLOCKED,
            errno.ENODEV: Reason.NODE_HAS_NO_MEMORY,
        }.get(number, Reason.UNEXPLAINED)
        name = errno.errorcode.get(number, str(number))
        kind = PlaceFull if number == errno.ENOMEM else Stopped
        raise kind(reason, f"move_pages to NUMA node {target} ended with {name}: {os.strerror(number)}")

    def _await_exit(self) -> None:
        """Raise ProcessEnded when the process is gone soon: the kernel says EINVAL once its memory is torn down."""
        until = self.clock() + _EXIT_WAIT
        process = self.guard.process
        while self.clock() < until:
            process.check()
            process.kernel.sleep(NAP)
