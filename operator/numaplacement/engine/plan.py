# SPDX-License-Identifier: Apache-2.0
"""Which pages are to be moved, folio by folio, and what became of each."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mappings import Kind
from .survey import FILE, HEAD, HIDDEN, SHARED, MappingPages, Survey

_WINDOW = 1 << 20
"""Pages planned at once, so that a plan never needs more than some tens of MB."""
MOVABLE_KINDS = frozenset({Kind.ANON, Kind.SHMEM, Kind.FILE})


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


@dataclass(frozen=True, kw_only=True)
class Units:
    """Folios to move, of one mapping: positions int64[k] of their first pages, and their lengths int64[k] in pages."""

    position: NDArray[np.int64]
    length: NDArray[np.int64]

    def pages(self, which: slice | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions, int64, of all pages of some of the folios."""
        position, length = self.position[which], self.length[which]
        offset = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        return np.repeat(position, length) + offset


def shared_cache(part: MappingPages, cut: slice) -> NDArray[np.bool_]:
    """Return which pages, bool[k], are page cache that other processes map too: memory of neighbours as well."""
    if not part.mapping.only_cached:
        return np.zeros(part.page[cut].size, dtype=np.bool_)
    shared: NDArray[np.bool_] = (part.flags[cut] & (FILE | SHARED)) == (FILE | SHARED)
    return shared


def merged(part: MappingPages, cut: slice) -> NDArray[np.bool_]:
    """Return which pages, bool[k], KSM may have merged with other processes': to move one moves it for all of them."""
    if "mg" not in part.mapping.flags:
        return np.zeros(part.page[cut].size, dtype=np.bool_)
    shared: NDArray[np.bool_] = (part.flags[cut] & (FILE | SHARED)) == SHARED
    return shared


def movable(part: MappingPages, cut: slice, *, target: int, privileged: bool) -> NDArray[np.bool_]:
    """Return which pages, bool[k], are off target and may be moved; without privilege those that nobody shares."""
    if part.mapping.kind not in MOVABLE_KINDS:
        return np.zeros(part.page[cut].size, dtype=np.bool_)
    mask: NDArray[np.bool_] = (part.numa_node[cut] != target) & ((part.flags[cut] & HIDDEN) == 0)
    mask &= ~shared_cache(part, cut) & ~merged(part, cut)
    if not privileged:
        mask &= (part.flags[cut] & SHARED) == 0
    return mask


def movable_bytes(parts: Iterable[MappingPages], *, target: int, privileged: bool) -> int:
    """Return the bytes of some mappings that are off target and may be moved."""
    return sum(
        int(np.count_nonzero(movable(part, slice(None), target=target, privileged=privileged))) * part.mapping.page_size
        for part in parts
    )


def hidden_bytes(survey: Survey, *, target: int) -> int:
    """Return the bytes of a process that are off target and hide: a NUMA-hint fault soon shows them again."""
    return sum(
        int(np.count_nonzero((part.numa_node != target) & ((part.flags & HIDDEN) != 0))) * part.mapping.page_size
        for part in survey.pages
        if part.mapping.kind in MOVABLE_KINDS
    )


def units(part: MappingPages, *, target: int, privileged: bool) -> Iterator[Units]:
    """Yield the folios of a mapping that are to be moved, some at a time, in the order of addresses."""
    if not (part.numa_node != target).any():
        return
    start = 0
    while start < part.page.size:
        end = _folio_boundary(part, start + _WINDOW)
        cut = slice(start, end)
        heads = np.flatnonzero(part.flags[cut] & HEAD)
        length = np.diff(np.append(heads, end - start))
        chosen = movable(part, cut, target=target, privileged=privileged)[heads]
        if chosen.any():
            yield Units(position=heads[chosen] + start, length=length[chosen])
        start = end


def _folio_boundary(part: MappingPages, position: int) -> int:
    """Return the first position from `position` on at which a folio begins, or the end."""
    while position < part.page.size:
        following = np.flatnonzero(part.flags[position : position + _WINDOW] & HEAD)
        if following.size:
            return position + int(following[0])
        position += _WINDOW
    return int(part.page.size)
