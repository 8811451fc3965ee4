# SPDX-License-Identifier: Apache-2.0
"""Pages that are in the page table although move_pages(2) says there are none, and where they are all the same.

On kernels from 6.1 to about 6.5 a page that AutoNUMA has marked to be noticed when it is touched next reads as ENOENT,
and as EFAULT where it is a transparent huge page (mm/gup.c, follow_page_pte and no_page_table). AutoNUMA marks a whole
process, and what nobody touches stays marked: most of an idle VM hides. The zero page reads as EFAULT on all kernels.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping as Table
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .pagemap import EXCLUSIVE, FILE_OR_SHARED

_SPANNED = re.compile(r"^\s+spanned\s+(\d+)$", re.MULTILINE)
_START = re.compile(r"^\s+start_pfn:\s+(\d+)$", re.MULTILINE)
UNKNOWN_NODE = -1


@dataclass(frozen=True, kw_only=True)
class FrameMap:
    """Which NUMA node page frames belong to: `start` and `end` int64[z], ascending, and `numa_node` int16[z]."""

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    numa_node: NDArray[np.int16]

    def numa_nodes(self, frames: NDArray[np.uint64]) -> NDArray[np.int16]:
        """Return the NUMA node of each frame, int16[n], UNKNOWN_NODE for frames of no zone."""
        frame = frames.astype(np.int64)
        zone = np.searchsorted(self.start, frame, side="right") - 1
        within = (zone >= 0) & (frame < self.end[zone.clip(min=0)])
        return np.where(within, self.numa_node[zone.clip(min=0)], np.int16(UNKNOWN_NODE)).astype(np.int16)


def frame_map(zoneinfo: str) -> FrameMap | None:
    """Return the frames of the zones in the text of /proc/zoneinfo; None where NUMA nodes lie one within the other."""
    spans: list[tuple[int, int, int]] = []
    for zone in ("\n" + zoneinfo).split("\nNode ")[1:]:
        start, spanned = _START.search(zone), _SPANNED.search(zone)
        if start and spanned and int(spanned[1]):
            spans.append((int(start[1]), int(start[1]) + int(spanned[1]), int(zone.partition(",")[0])))
    spans.sort()
    overlap = any(after[0] < before[1] and after[2] != before[2] for before, after in pairwise(spans))
    if not spans or overlap:
        return None
    return FrameMap(
        start=np.array([span[0] for span in spans], dtype=np.int64),
        end=np.array([span[1] for span in spans], dtype=np.int64),
        numa_node=np.array([span[2] for span in spans], dtype=np.int16),
    )


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Pages the kernel says are not there: those that hide, and those that hide or are the zero page, bool[n] each."""

    hidden: NDArray[np.bool_]
    doubtful: NDArray[np.bool_]


def absent(words: NDArray[np.uint64], status: NDArray[np.int32]) -> Absent:
    """Tell hidden pages from zero pages by pagemap's words uint64[n] and the statuses int32[n] of present pages.

    The zero page is neither exclusive nor a file's; the huge zero page reads as a file's and not exclusive.
    """
    exclusive, file = (words & EXCLUSIVE) != 0, (words & FILE_OR_SHARED) != 0
    fault = status == -errno.EFAULT
    return Absent(
        hidden=(status == -errno.ENOENT) | (fault & exclusive),
        doubtful=fault & ~exclusive & ~file,
    )


def missing_pages(counted: Table[int, int], located: Table[int, int], *, page_size: int) -> dict[int, int]:
    """Return by NUMA node how many more pages numa_maps counted, in bytes, than were located, in pages."""
    return {node: max(0, count // page_size - located.get(node, 0)) for node, count in counted.items()}


def place_hidden(order: NDArray[np.int64], missing: Table[int, int]) -> NDArray[np.int16]:
    """Return NUMA nodes, int16[n], for pages that hide, from the pages each NUMA node is `missing`.

    `order` int64[n] says which page each is, counted from 0 among all that hide in a mapping. Which page is where is
    not known, how many are where is. When the sums do not agree, because the process ran on, the last NUMA node that
    is missing any takes the difference (0 when none is).
    """
    nodes = [numa_node for numa_node, pages in missing.items() if pages > 0] or [0]
    ends = np.cumsum([missing.get(numa_node, 0) for numa_node in nodes])
    return np.array(nodes, dtype=np.int16).take(np.searchsorted(ends, order, side="right").clip(max=len(nodes) - 1))
