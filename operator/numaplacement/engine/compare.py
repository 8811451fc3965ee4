# SPDX-License-Identifier: Apache-2.0
"""Two surveys of one process, laid over each other address by address."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .plan import Trials
from .survey import HUGE, Block, MappingPages, Survey
from .targets import Targets

ABSENT = -2
"""NUMA node of a page that is not there."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What an earlier survey says of pages: NUMA node int16[n], ABSENT where there was none; flags, trial uint8[n]."""

    numa_node: NDArray[np.int16]
    flags: NDArray[np.uint8]
    trial: NDArray[np.uint8]


class Overlay:
    """Finds pages of one survey by the addresses of another; mappings may have been split, merged, made or removed."""

    def __init__(self, survey: Survey, trials: Trials | None = None) -> None:
        self._blocks = sorted(survey.pages.blocks, key=lambda block: block.start)
        self._starts = [block.start for block in self._blocks]
        self._trials = trials or Trials()

    def look(self, part: MappingPages) -> Earlier:
        """Return what the survey says of the pages of a block, by their addresses."""
        size = part.mapping.page_size
        earlier = Earlier(
            numa_node=np.full(part.page.size, ABSENT, dtype=np.int16),
            flags=np.zeros(part.page.size, dtype=np.uint8),
            trial=np.zeros(part.page.size, dtype=np.uint8),
        )
        if part.page.size == 0:
            return earlier
        number = part.page.astype(np.int64)
        number += part.mapping.start // size
        index = max(0, bisect.bisect_right(self._starts, int(number[0]) * size) - 1)
        for other in self._blocks[index:]:
            if other.start > int(number[-1]) * size:
                break
            if other.mapping.page_size == size:
                self._look_in(other, number, earlier)
        return earlier

    def _look_in(self, other: Block, number: NDArray[np.int64], earlier: Earlier) -> None:
        size = other.mapping.page_size
        first, end = (int(each) for each in np.searchsorted(number, (other.start // size, other.end // size)))
        if first == end:
            return
        pages = other.pages()
        wanted = (number[first:end] - other.mapping.start // size).astype(np.uint32)
        low = int(np.searchsorted(pages.page, wanted[0]))
        high = int(np.searchsorted(pages.page, wanted[-1], side="right"))
        there = pages.page[low:high]
        if there.size == 0:
            return
        source: slice | NDArray[np.int64]
        place: slice | NDArray[np.int64]
        if np.array_equal(there, wanted):
            source, place = slice(low, high), slice(first, end)
        else:
            found = np.searchsorted(there, wanted).clip(max=there.size - 1)
            same = np.flatnonzero(there[found] == wanted)
            source, place = low + found[same], first + same
        earlier.numa_node[place] = pages.numa_node[source]
        earlier.flags[place] = pages.flags[source]
        trials = self._trials.known(pages)
        if trials is not None:
            earlier.trial[place] = trials[source]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Bytes that moved to the target, were given back, were taken on, and were in huge pages and no longer are."""

    moved: int
    freed: int
    grown: int
    split: int


def compare(before: Survey, after: Survey, *, targets: Targets) -> Changes:
    """Return what became of the memory of `before`, where `before` - freed + grown = `after`."""
    overlay = Overlay(before)
    moved = grown = split = 0
    for part in after.pages:
        size, target = part.mapping.page_size, targets.of(part.mapping)
        earlier = overlay.look(part)
        there = earlier.numa_node != ABSENT
        grown += size * int(np.count_nonzero(~there))
        if target is not None:
            arrived = there & (earlier.numa_node != target) & (part.numa_node == target)
            moved += size * int(np.count_nonzero(arrived))
        split += size * int(np.count_nonzero(there & ((earlier.flags & ~part.flags & HUGE) != 0)))
    return Changes(moved=moved, freed=before.total() + grown - after.total(), grown=grown, split=split)
