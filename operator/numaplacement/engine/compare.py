# SPDX-License-Identifier: Apache-2.0
"""Two surveys of one process, laid over each other address by address."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from collections.abc import Mapping as Table
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .survey import HUGE, MappingPages, Survey

_STEP = 1 << 20
"""Pages laid over each other at once."""
ABSENT = -1
"""NUMA node of a page that is not there."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What an earlier survey says of pages: NUMA node int16[k], ABSENT where there was none; flags, trial uint8[k]."""

    numa_node: NDArray[np.int16]
    flags: NDArray[np.uint8]
    trial: NDArray[np.uint8]


def cuts(part: MappingPages) -> Iterator[slice]:
    """Yield slices that cover the pages of a mapping."""
    for start in range(0, part.page.size, _STEP):
        yield slice(start, min(part.page.size, start + _STEP))


class Overlay:
    """Finds pages of one survey by the addresses of another; mappings may have been split, merged, made or removed."""

    def __init__(self, survey: Survey, trials: Table[int, NDArray[np.uint8]] | None = None) -> None:
        self._parts = sorted(survey.pages, key=lambda part: part.mapping.start)
        self._starts = [part.mapping.start for part in self._parts]
        self._trials = trials or {}

    def look(self, part: MappingPages, cut: slice) -> Earlier:
        """Return what the survey says of some pages, by their addresses."""
        size = part.mapping.page_size
        number = part.page[cut].astype(np.int64) + part.mapping.start // size
        earlier = Earlier(
            numa_node=np.full(number.size, ABSENT, dtype=np.int16),
            flags=np.zeros(number.size, dtype=np.uint8),
            trial=np.zeros(number.size, dtype=np.uint8),
        )
        if number.size == 0:
            return earlier
        index = max(0, bisect.bisect_right(self._starts, int(number[0]) * size) - 1)
        for other in self._parts[index:]:
            if other.mapping.start > int(number[-1]) * size:
                break
            if other.mapping.page_size == size:
                self._look_in(other, number, earlier)
        return earlier

    def _look_in(self, other: MappingPages, number: NDArray[np.int64], earlier: Earlier) -> None:
        size = other.mapping.page_size
        bounds = np.array([other.mapping.start // size, other.mapping.end // size])
        first, end = (int(position) for position in np.searchsorted(number, bounds))
        if first == end:
            return
        wanted = (number[first:end] - bounds[0]).astype(np.uint32)
        low = int(np.searchsorted(other.page, wanted[0]))
        high = int(np.searchsorted(other.page, wanted[-1], side="right"))
        there = other.page[low:high]
        if there.size == 0:
            return
        found = np.searchsorted(there, wanted).clip(max=there.size - 1)
        same = np.flatnonzero(there[found] == wanted)
        source = low + found[same]
        earlier.numa_node[first + same] = other.numa_node[source]
        earlier.flags[first + same] = other.flags[source]
        trials = self._trials.get(other.mapping.start)
        if trials is not None:
            earlier.trial[first + same] = trials[source]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Bytes that moved to the target, were given back, were taken on, and were in huge pages and no longer are."""

    moved: int
    freed: int
    grown: int
    split: int


def compare(before: Survey, after: Survey, *, target: int) -> Changes:
    """Return what became of the memory of `before`, where `before` - freed + grown = `after`."""
    overlay = Overlay(before)
    moved = grown = split = 0
    for part in after.pages:
        size = part.mapping.page_size
        for cut in cuts(part):
            earlier = overlay.look(part, cut)
            there = earlier.numa_node != ABSENT
            grown += size * int(np.count_nonzero(~there))
            moved += size * int(
                np.count_nonzero(there & (earlier.numa_node != target) & (part.numa_node[cut] == target))
            )
            split += size * int(np.count_nonzero(there & ((earlier.flags & ~part.flags[cut] & HUGE) != 0)))
    return Changes(moved=moved, freed=before.total() + grown - after.total(), grown=grown, split=split)
