# SPDX-License-Identifier: Apache-2.0
"""What may be taken on NUMA nodes, read anew for each call at the price of a small file.

/proc/zoneinfo has lines for each CPU in each zone: a host with many CPUs takes longer over it than a small call lasts.
Its watermarks hardly ever change. So it is read now and then, and what is free for each call: what that has become less
by is taken off.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

from .facts import room
from .kernel import KeptFile, Kernel
from .pools import PoolFiles
from .reclaim import Means, push_out, read_offer
from .verdict import Allow

_KIB = 1024
_FRESH = 0.1
"""Seconds for which watermarks, and how what is free is spread over zones, are taken to stay as they are."""
_SPARE = 8 << 20
"""Bytes pushed out beyond what is missing: others take some meanwhile."""
_FREE = re.compile(r"\bMemFree:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class _Reading:
    at: float
    free: int
    room: int


class Gauge:
    """The room on NUMA nodes for one run; its mover threads share it."""

    def __init__(self, *, kernel: Kernel, allow: frozenset[Allow], clock: Callable[[], float]) -> None:
        self._kernel = kernel
        self._allow = allow
        self._clock = clock
        self._meminfo: dict[int, KeptFile] = {}
        self._pools: dict[tuple[int, int], PoolFiles] = {}
        self._readings: dict[int, _Reading] = {}
        self._exhausted: set[int] = set()
        self._lock, self._opening, self._making = threading.Lock(), threading.Lock(), threading.Lock()

    def room(self, numa_node: int, page_size: int) -> int:
        """Return the bytes that may be taken there now, in pages of a size. Raises OSError."""
        if page_size != self._kernel.page_size:
            return self._pool(numa_node, page_size).usable() * page_size
        if Allow.RECLAIM in self._allow:  # kswapd is at work: nothing stays as it is
            return room(self._kernel, numa_node, page_size, allow=self._allow)
        free, now = self._free(numa_node), self._clock()
        with self._lock:
            last = self._readings.get(numa_node)
            if last is not None and now - last.at < _FRESH:
                left = last.room - max(0, last.free - free)
                if 2 * left >= last.room:
                    return left
            there = room(self._kernel, numa_node, page_size)
            # What was given back between the readings is in `there`, and must not be missed when it is taken again.
            self._readings[numa_node] = _Reading(now, max(free, self._free(numa_node)), there)
            return there

    def make_room(self, numa_node: int, count: int, *, check: Callable[[], None]) -> None:
        """Have page cache pushed out, so that `count` bytes can be taken there, where that is allowed.

        Only where the kernel does so on request; elsewhere kswapd is at it already. Once hardly anything is to be had
        it is not tried again. Of several movers one does it; the others wait. `check` as in push_out(). Raises OSError.
        """
        if Allow.RECLAIM not in self._allow:
            return
        with self._making:
            missing = count - self.room(numa_node, self._kernel.page_size)
            if missing <= 0 or numa_node in self._exhausted:
                return
            if read_offer(numa_node, self._kernel).means is not Means.ON_REQUEST:
                self._exhausted.add(numa_node)
                return
            done = push_out(missing + _SPARE, numa_node=numa_node, kernel=self._kernel, check=check)
            if done.errno != errno.EBUSY and done.gained < missing // 2:
                self._exhausted.add(numa_node)

    def _pool(self, numa_node: int, page_size: int) -> PoolFiles:
        pool = self._pools.get((numa_node, page_size))
        if pool is None:
            pool = self._pools[numa_node, page_size] = PoolFiles(self._kernel, page_size, numa_node)
        return pool

    def close(self) -> None:
        """Close the files it keeps open."""
        for file in self._meminfo.values():
            file.close()
        self._meminfo.clear()

    def _free(self, numa_node: int) -> int:
        """Return what is free on a NUMA node, in bytes, whether it may be taken or not."""
        with self._opening:
            file = self._meminfo.get(numa_node)
            if file is None:
                path = self._kernel.sys / f"devices/system/node/node{numa_node}/meminfo"
                file = self._meminfo[numa_node] = self._kernel.keep(path)
            found = _FREE.search(file.read())
        return int(found[1]) * _KIB if found else 0
