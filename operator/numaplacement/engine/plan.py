# SPDX-License-Identifier: Apache-2.0
"""Which pages are to be moved, folio by folio, and what became of each."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mappings import Kind
from .survey import FILE, HEAD, HIDDEN, MERGED, SHARED, SWAPPED, MappingPages
from .targets import Targets

MOVABLE_KINDS = frozenset({Kind.ANON, Kind.SHMEM, Kind.FILE, Kind.HUGETLB})


class Trial(enum.IntEnum):
    """What became of a page in a pass."""

    NOT_TRIED = 0
    MOVED = 1
    REFUSED = 2
    """Alone in a call it failed in the copy phase: something holds a reference."""
    BUSY = 3
    """Could not be taken off its list."""
    SHARED = 4
    """Other processes map it, and the right to move it is missing."""
    ABSENT = 5
    """Was not there any more."""
    GIVEN_UP = 6
    """Not tried, since so many before it in its mapping were refused."""
    UNKNOWN = 7


class Trials:
    """What became of each page of a survey in a pass; pages that are not mentioned were not tried.

    Kept block by block: the address of its first page tells a block from all others of the survey.
    """

    def __init__(self) -> None:
        self._of: dict[int, NDArray[np.uint8]] = {}

    def of(self, part: MappingPages) -> NDArray[np.uint8]:
        """Return Trial, uint8[n], for each page of a block, to be written to."""
        return self._of.setdefault(_first_address(part), np.zeros(part.page.size, dtype=np.uint8))

    def known(self, part: MappingPages) -> NDArray[np.uint8] | None:
        """Return Trial, uint8[n], for each page of a block; None when none of it was tried."""
        return self._of.get(_first_address(part))


def _first_address(part: MappingPages) -> int:
    return int(part.addresses(slice(1))[0])


@dataclass(frozen=True, kw_only=True)
class Units:
    """Folios to move, of one block: positions int64[k] of their first pages, and their lengths int64[k] in pages."""

    position: NDArray[np.int64]
    length: NDArray[np.int64]

    def pages(self, which: slice | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions, int64, of all pages of some of the folios."""
        position, length = self.position[which], self.length[which]
        offset = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        return np.repeat(position, length) + offset


def shared_cache(part: MappingPages) -> NDArray[np.bool_]:
    """Return which pages, bool[n], are page cache that other processes map too: memory of neighbours as well."""
    if not part.mapping.only_cached:
        return np.zeros(part.page.size, dtype=np.bool_)
    shared: NDArray[np.bool_] = (part.flags & (FILE | SHARED)) == (FILE | SHARED)
    return shared


def movable(part: MappingPages, *, target: int, privileged: bool) -> NDArray[np.bool_]:
    """Return which pages, bool[n], are off target and may be moved; without privilege those that nobody shares."""
    if part.mapping.kind not in MOVABLE_KINDS:
        return np.zeros(part.page.size, dtype=np.bool_)
    unwanted = HIDDEN | SWAPPED | MERGED | (np.uint8(0) if privileged else SHARED)
    mask: NDArray[np.bool_] = (part.numa_node != target) & ((part.flags & unwanted) == 0)
    if part.mapping.only_cached:
        mask &= ~shared_cache(part)
    return mask


Demand = dict[tuple[int, int], int]
"""Bytes by NUMA node they are to be taken on, and by size of page."""


def movable_bytes(parts: Iterable[MappingPages], *, targets: Targets, privileged: bool) -> Demand:
    """Return the bytes of some mappings that are off target and may be moved."""

    def mask(part: MappingPages, target: int) -> NDArray[np.bool_]:
        return movable(part, target=target, privileged=privileged)

    return _demand(parts, targets, mask)


def touchable_bytes(parts: Iterable[MappingPages], *, targets: Targets, swapped: bool = True) -> Demand:
    """Return the bytes off target that a touch brings out: what a NUMA hint hides, and if wanted what is swapped."""
    sought = HIDDEN | SWAPPED if swapped else HIDDEN

    def mask(part: MappingPages, target: int) -> NDArray[np.bool_]:
        if part.mapping.kind not in MOVABLE_KINDS:
            return np.zeros(part.page.size, dtype=np.bool_)
        wanted: NDArray[np.bool_] = (part.numa_node != target) & ((part.flags & sought) != 0)
        return wanted

    return _demand(parts, targets, mask)


def _demand(
    parts: Iterable[MappingPages], targets: Targets, mask: Callable[[MappingPages, int], NDArray[np.bool_]]
) -> Demand:
    found: Demand = {}
    for part in parts:
        target, size = targets.of(part.mapping), part.mapping.page_size
        if target is not None and (count := int(np.count_nonzero(mask(part, target)))):
            found[target, size] = found.get((target, size), 0) + count * size
    return found


def units(part: MappingPages, *, target: int, privileged: bool) -> Units:
    """Return the folios of a block that are to be moved, in the order of addresses."""
    chosen = movable(part, target=target, privileged=privileged)
    heads = np.flatnonzero(part.flags & HEAD) if chosen.any() else np.zeros(0, dtype=np.int64)
    wanted = chosen[heads]
    return Units(position=heads[wanted], length=np.diff(heads, append=part.page.size)[wanted])
