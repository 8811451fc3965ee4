# SPDX-License-Identifier: Apache-2.0
"""Looks at the pages of a process, many mappings at once: most are small, and a VM has hundreds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Table
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError, LocatingRefused, ProcessEnded
from .folios import heads_from_flags, heads_from_shape, in_huge_folios
from .hidden import UNKNOWN_NODE, FrameMap, absent, missing_pages, place_hidden
from .kernel import Kernel
from .mappings import Kind, Mapping
from .pagemap import EXCLUSIVE, FILE_OR_SHARED, FRAME, NO_PAGE, PRESENT, ZERO_PAGE, WordFile, frame_flags
from .survey import FILE, HEAD, HIDDEN, HUGE, SHARED, MappingPages

_BATCH = 1 << 18
"""Base pages looked at at once: 1 GiB of 4 KiB pages. A multiple of any transparent huge page."""
_QUERY = 1 << 15
"""Pages asked about in one call: some milliseconds."""
_NOWHERE = -2
"""Not memory of the process: the zero page, or gone meanwhile."""
_SOMEWHERE = -3
"""Memory of the process on a NUMA node that numa_maps will tell."""
_PERHAPS = -4
"""One of the two."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Base pages `first` to `end`, as numbers in the address space, of the mapping with an index."""

    index: int
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """Pages of one kind of batch: their numbers int64[n], NUMA nodes int16[n] and flags uint8[n]."""

    number: NDArray[np.int64]
    numa_node: NDArray[np.int16]
    flags: NDArray[np.uint8]

    def between(self, first: int, end: int) -> Found:
        """Return the pages with numbers from `first` to below `end`."""
        cut = slice(*(int(position) for position in np.searchsorted(self.number, (first, end))))
        return Found(number=self.number[cut], numa_node=self.numa_node[cut], flags=self.flags[cut])


@dataclass(frozen=True, kw_only=True)
class Looker:
    """Looks at one process. `counted` are the bytes by NUMA node that numa_maps has for mappings, by start address.

    A mapping for which it has none is not looked into. (The Rss of smaps would not do: on kernels 6.1 to about 6.5 it
    leaves out transparent huge pages that AutoNUMA hides, fs/proc/task_mmu.c, smaps_pmd_entry.)
    """

    pid: int
    kernel: Kernel
    pagemap: WordFile
    kpageflags: WordFile | None
    frames: FrameMap | None
    huge: int
    counted: Table[int, Table[int, int]]
    base: int = os.sysconf("SC_PAGE_SIZE")

    def pages(self, mappings: tuple[Mapping, ...]) -> Iterator[MappingPages]:
        """Yield the pages of every mapping that has any."""
        wanted = [
            (index, mapping)
            for index, mapping in enumerate(mappings)
            if self.counted.get(mapping.start) and mapping.kind is not Kind.OF_THE_CPU
        ]
        found: dict[int, list[Found]] = {}
        for batch in batches(wanted, self.base):
            seen = self._look(batch, mappings)
            for span in batch:
                found.setdefault(span.index, []).append(seen.between(span.first, span.end))
        for index, parts in found.items():
            mapping = mappings[index]
            number = np.concatenate([part.number for part in parts])
            numa_node = np.concatenate([part.numa_node for part in parts])
            flags = np.concatenate([part.flags for part in parts])
            keep = self._place_hidden(mapping, numa_node)
            if keep.any():
                relative = (number[keep] - mapping.start // self.base) // self._ratio(mapping)
                yield MappingPages(
                    mapping=mapping, page=relative.astype(np.uint32), numa_node=numa_node[keep], flags=flags[keep]
                )

    def _ratio(self, mapping: Mapping) -> int:
        return max(1, mapping.page_size // self.base)

    def _look(self, batch: list[Span], mappings: tuple[Mapping, ...]) -> Found:
        """Return the pages of a batch; NUMA nodes may be _SOMEWHERE or _PERHAPS."""
        read: list[NDArray[np.uint64]] = []
        numbers: list[NDArray[np.int64]] = []
        for span in batch:
            ratio = self._ratio(mappings[span.index])
            words = self.pagemap.read(span.first, span.end - span.first)[::ratio]
            present = np.flatnonzero(words & PRESENT)
            read.append(words[present])
            numbers.append(span.first + present * ratio)
        words, number = np.concatenate(read), np.concatenate(numbers)
        sizes = [part.size for part in numbers]
        own = [mappings[span.index] for span in batch]
        status = self._locate(number)
        where = self._nodes(words, status)
        known = where != _NOWHERE
        first_of_mapping = np.isin(np.arange(number.size), np.cumsum([0, *sizes]))
        single = np.repeat([self._ratio(mapping) > 1 for mapping in own], sizes)
        hidden = status < 0
        compound = np.repeat([mapping.huge > 0 for mapping in own], sizes) | hidden
        flags = self._flags(
            number[known],
            words[known],
            where[known],
            alone=(first_of_mapping | single)[known],
            compound=(compound & ~single)[known],
            huge_bytes=sum(mapping.huge for mapping in own),
        )
        flags |= np.where(hidden[known], HIDDEN, np.uint8(0))
        return Found(number=number[known], numa_node=where[known], flags=flags)

    def _flags(
        self,
        number: NDArray[np.int64],
        words: NDArray[np.uint64],
        numa_node: NDArray[np.int16],
        *,
        alone: NDArray[np.bool_],
        compound: NDArray[np.bool_],
        huge_bytes: int,
    ) -> NDArray[np.uint8]:
        """Return flags, uint8[n].

        Pages that are `alone`, bool[n], begin a folio in any case. Only those that may be part of a big one, `compound`
        bool[n], are worth the reading of their frames' flags; where another one is, the mover sees it as busy and the
        next pass as moved.
        """
        flags = np.where(words & FILE_OR_SHARED, FILE, np.uint8(0))
        flags |= np.where(words & EXCLUSIVE, np.uint8(0), SHARED)
        asked = np.flatnonzero(compound)
        heads = np.ones(number.size, dtype=np.bool_)
        huge_pages, at_most = self.huge // self.base, 0
        if asked.size:
            frame = words[asked] & FRAME
            at_most = huge_bytes // self.huge
            if self.kpageflags is not None and frame.any():
                at_most = number.size
                of_frames = frame_flags(self.kpageflags, frame)
                heads[asked] = heads_from_flags(page=number[asked], frame=frame, flags=of_frames)
            else:
                heads[asked] = heads_from_shape(page=number[asked], numa_node=numa_node[asked], huge_pages=huge_pages)
            heads |= alone
            heads[0] = True
            flags |= np.where(in_huge_folios(heads, huge_pages=huge_pages, at_most=at_most), HUGE, np.uint8(0))
        flags |= np.where(heads, HEAD, np.uint8(0))
        return flags.astype(np.uint8)

    def _locate(self, number: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return what move_pages(2) says, int32[n], of page numbers int64[n]."""
        status = np.empty(number.size, dtype=np.int32)
        for start in range(0, number.size, _QUERY):
            part = number[start : start + _QUERY]
            result = self.kernel.locate_pages(self.pid, part.astype(np.uint64) * np.uint64(self.base))
            if result.errno:
                raise_for_query(result.errno)
            status[start : start + _QUERY] = result.status
        return status

    def _nodes(self, words: NDArray[np.uint64], status: NDArray[np.int32]) -> NDArray[np.int16]:
        """Return where pages are, int16[n]: a NUMA node, or one of the three constants above."""
        where = np.where(status >= 0, status, _NOWHERE).astype(np.int16)
        if not (status < 0).any():
            return where
        unseen = absent(words, status)
        frame = words & FRAME
        if self.kpageflags is not None and self.frames is not None and frame.any():
            asked = np.flatnonzero(unseen.hidden | unseen.doubtful)
            zero = (frame_flags(self.kpageflags, frame[asked]) & (ZERO_PAGE | NO_PAGE)) != 0
            numa_node = self.frames.numa_nodes(frame[asked])
            where[asked] = np.where(zero | (numa_node == UNKNOWN_NODE), np.int16(_NOWHERE), numa_node)
        else:
            where[unseen.hidden] = _SOMEWHERE
            where[unseen.doubtful] = _PERHAPS
        return where

    def _place_hidden(self, mapping: Mapping, numa_node: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Give the pages that are somewhere a NUMA node, and return which pages, bool[n], are at all."""
        keep = np.ones(numa_node.size, dtype=np.bool_)
        if numa_node.size == 0 or numa_node.min() >= 0:
            return keep
        somewhere, perhaps = np.flatnonzero(numa_node == _SOMEWHERE), np.flatnonzero(numa_node == _PERHAPS)
        missing = missing_pages(self.counted[mapping.start], numa_node[numa_node >= 0], page_size=mapping.page_size)
        hiding = max(0, min(perhaps.size, sum(missing.values()) - somewhere.size))
        keep[perhaps[hiding:]] = False
        placed = np.concatenate((somewhere, perhaps[:hiding]))
        numa_node[placed] = place_hidden(placed.size, missing)
        return keep


def batches(mappings: Iterable[tuple[int, Mapping]], base: int) -> Iterator[list[Span]]:
    """Yield the base pages of mappings, given with their indexes, in batches of about _BATCH.

    A big mapping is cut at multiples of _BATCH, where no huge page is cut.
    """
    batch: list[Span] = []
    size = 0
    for index, mapping in mappings:
        first, end = mapping.start // base, mapping.end // base
        while first < end:
            stop = min(end, (first // _BATCH + 1) * _BATCH)
            if size + stop - first > _BATCH and batch:
                yield batch
                batch, size = [], 0
            batch.append(Span(index=index, first=first, end=stop))
            size += stop - first
            first = stop
    if batch:
        yield batch


def raise_for_query(number: int) -> None:
    """Raise what an error of a whole query means."""
    if number in {errno.EPERM, errno.EACCES, errno.ENOSYS}:
        raise LocatingRefused(number)
    if number in {errno.ESRCH, errno.EINVAL}:
        raise ProcessEnded
    raise EngineError(f"the kernel would not say where pages are: {os.strerror(number)}")
