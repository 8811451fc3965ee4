# SPDX-License-Identifier: Apache-2.0
"""Looks at the pages of a process, many mappings at once: most are small, and a VM has hundreds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Table
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError, LocatingRefused, ProcessEnded, remedy_of
from .folios import heads_from_flags, heads_from_shape, in_huge_folios
from .hidden import UNKNOWN_NODE, FrameMap, absent, missing_pages, place_hidden
from .kernel import Kernel
from .ksm import MergedFrames
from .mappings import Kind, Mapping
from .pagemap import EXCLUSIVE, FILE_OR_SHARED, FRAME, NO_PAGE, PRESENT, SWAP, ZERO_PAGE, WordFile, frame_words
from .survey import BLOCK_PAGES, FILE, HEAD, HIDDEN, HUGE, MERGED, SHARED, SWAPPED, Block, MappingPages, blocks_of
from .verdict import NO_NUMA_NODE

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

    A mapping for which it has none, and that has nothing swapped out, is not looked into. (The Rss of smaps would not
    do: on kernels 6.1 to about 6.5 it leaves out transparent huge pages that AutoNUMA hides, fs/proc/task_mmu.c,
    smaps_pmd_entry.)
    """

    pid: int
    kernel: Kernel
    pagemap: WordFile
    kpageflags: WordFile | None
    frames: FrameMap | None
    merged: MergedFrames
    huge: int
    counted: Table[int, Table[int, int]]
    base: int = os.sysconf("SC_PAGE_SIZE")

    def blocks(self, mappings: tuple[Mapping, ...]) -> Iterator[Block]:
        """Yield the pages of every mapping that has any. Each batch is packed as soon as it was looked at."""
        wanted = [
            (index, mapping)
            for index, mapping in enumerate(mappings)
            if mapping.kind is not Kind.OF_THE_CPU and (self.counted.get(mapping.start) or mapping.swapped)
        ]
        found: dict[int, list[Block]] = {}
        for batch in batches(wanted, self.base):
            seen = self._look(batch, mappings)
            for span in batch:
                part = self._part(mappings[span.index], seen.between(span.first, span.end))
                found.setdefault(span.index, []).extend(blocks_of(part))
        own_frames = self.merged.own()
        for index, blocks in found.items():
            for block in self._placed(mappings[index], blocks):
                yield self._without_own(block, own_frames)

    def _part(self, mapping: Mapping, seen: Found) -> MappingPages:
        relative = (seen.number - mapping.start // self.base) // self._ratio(mapping)
        return MappingPages(
            mapping=mapping, page=relative.astype(np.uint32), numa_node=seen.numa_node, flags=seen.flags
        )

    def _ratio(self, mapping: Mapping) -> int:
        return max(1, mapping.page_size // self.base)

    def _look(self, batch: list[Span], mappings: tuple[Mapping, ...]) -> Found:
        """Return the pages of a batch; NUMA nodes may be _SOMEWHERE or _PERHAPS."""
        read: list[NDArray[np.uint64]] = []
        numbers: list[NDArray[np.int64]] = []
        for span in batch:
            mapping = mappings[span.index]
            ratio = self._ratio(mapping)
            words = self.pagemap.read(span.first, span.end - span.first)[::ratio]
            if mapping.shared and mapping.swapped:  # in its page table the bit means something else
                words &= ~SWAP
                words[self._swapped_in_file(span, mapping) & ((words & PRESENT) == 0)] = SWAP
            there = np.flatnonzero(words & (PRESENT | SWAP if mapping.swapped else PRESENT))
            read.append(words[there])
            numbers.append(span.first + there * ratio)
        words, number = np.concatenate(read), np.concatenate(numbers)
        sizes = [part.size for part in numbers]
        own = [mappings[span.index] for span in batch]
        out = (words & PRESENT) == 0
        status = np.zeros(number.size, dtype=np.int32)
        status[~out] = self._locate(number[~out])
        where = self._nodes(words, status)
        where[out] = NO_NUMA_NODE
        known = where != _NOWHERE
        begins = np.zeros(number.size + 1, dtype=np.bool_)
        begins[np.cumsum([0, *sizes])] = True
        single = np.repeat([self._ratio(mapping) > 1 for mapping in own], sizes) | out
        hidden = status < 0
        compound = np.repeat([mapping.huge > 0 for mapping in own], sizes) | hidden
        flags = self._flags(
            number[known],
            words[known],
            where[known],
            alone=(begins[:-1] | single)[known],
            compound=(compound & ~single)[known],
            huge_bytes=sum(mapping.huge for mapping in own),
        )
        flags |= np.where(hidden[known], HIDDEN, np.uint8(0))
        flags[out[known]] = SWAPPED | HEAD
        mergeable = np.flatnonzero(np.repeat(["mg" in mapping.flags for mapping in own], sizes)[known])
        mergeable = mergeable[(flags[mergeable] & (FILE | SHARED)) == SHARED]
        flags[mergeable] |= np.where(self.merged.meet(words[known][mergeable]), MERGED, np.uint8(0))
        return Found(number=number[known], numa_node=where[known], flags=flags)

    def _swapped_in_file(self, span: Span, mapping: Mapping) -> NDArray[np.bool_]:
        """Return which base pages of a span of shared memory are swapped out, bool[n]; none where that is not told."""
        pages = span.end - span.first
        try:
            with self.kernel.shared_file(self.pid, mapping) as file:
                return file.swapped(mapping.offset + span.first * self.base - mapping.start, pages)
        except OSError:
            return np.zeros(pages, dtype=np.bool_)

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
                of_frames = frame_words(self.kpageflags, frame)
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
            zero = (frame_words(self.kpageflags, frame[asked]) & (ZERO_PAGE | NO_PAGE)) != 0
            numa_node = self.frames.numa_nodes(frame[asked])
            where[asked] = np.where(zero | (numa_node == UNKNOWN_NODE), np.int16(_NOWHERE), numa_node)
        else:
            where[unseen.hidden] = _SOMEWHERE
            where[unseen.doubtful] = _PERHAPS
        return where

    def _placed(self, mapping: Mapping, blocks: list[Block]) -> Iterator[Block]:
        """Yield the blocks of a mapping with a NUMA node for the pages that are somewhere; others are left out."""
        located: dict[int, int] = {}
        for block in blocks:
            values = block.packed.values
            for numa_node, count in zip(values.numa_node.tolist(), values.count.tolist(), strict=True):
                located[numa_node] = located.get(numa_node, 0) + count
        somewhere, perhaps = located.get(_SOMEWHERE, 0), located.get(_PERHAPS, 0)
        if somewhere + perhaps == 0:
            yield from blocks
            return
        missing = missing_pages(self.counted.get(mapping.start, {}), located, page_size=mapping.page_size)
        hiding = somewhere + max(0, min(perhaps, sum(missing.values()) - somewhere))
        first = {_SOMEWHERE: 0, _PERHAPS: somewhere}
        for block in blocks:
            part = block.pages()
            keep = np.ones(part.page.size, dtype=np.bool_)
            for sort in (_SOMEWHERE, _PERHAPS):
                found = np.flatnonzero(part.numa_node == sort)
                order = np.arange(found.size) + first[sort]
                first[sort] += found.size
                part.numa_node[found] = place_hidden(order, missing)
                keep[found[order >= hiding]] = False
            kept = replace(part, page=part.page[keep], numa_node=part.numa_node[keep], flags=part.flags[keep])
            yield from blocks_of(kept)

    def _without_own(self, block: Block, own_frames: NDArray[np.uint64]) -> Block:
        """Return a block in which pages that KSM merged within this process alone are like any other.

        `own_frames` uint64[k], ascending, are those pages' frames.
        """
        if own_frames.size == 0 or not (block.packed.values.flags & MERGED).any():
            return block
        part = block.pages()
        merged = np.flatnonzero(part.flags & MERGED)
        number = part.page[merged].astype(np.int64)
        words = self.pagemap.read(block.mapping.start // self.base + int(number[0]), int(number[-1] - number[0]) + 1)
        frame = words[number - number[0]] & FRAME
        own = own_frames[np.searchsorted(own_frames, frame).clip(max=own_frames.size - 1)] == frame
        part.flags[merged[own]] &= ~MERGED
        (block,) = blocks_of(part)
        return block


def batches(mappings: Iterable[tuple[int, Mapping]], base: int) -> Iterator[list[Span]]:
    """Yield the base pages of mappings, given with their indexes, in batches of about BLOCK_PAGES.

    A big mapping is cut at multiples of BLOCK_PAGES, where no huge page is cut.
    """
    batch: list[Span] = []
    size = 0
    for index, mapping in mappings:
        first, end = mapping.start // base, mapping.end // base
        while first < end:
            stop = min(end, (first // BLOCK_PAGES + 1) * BLOCK_PAGES)
            if size + stop - first > BLOCK_PAGES and batch:
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
    remedy = remedy_of(OSError(number, ""), "see what the kernel's log says, and try again")
    raise EngineError(f"the kernel would not say where pages are: {os.strerror(number)}; {remedy}")
