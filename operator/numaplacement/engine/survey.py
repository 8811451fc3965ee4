# SPDX-License-Identifier: Apache-2.0
"""The pages of a process as arrays, and their sums by NUMA node and class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as Table
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .mappings import Mapping, page_class
from .packing import Packed, pack
from .verdict import NO_NUMA_NODE, ClassBytes, PageClass

BLOCK_PAGES = 1 << 18
"""Pages in a block at most: 1 GiB of 4 KiB pages. A multiple of any transparent huge page."""
FILE = np.uint8(1)
"""Page of a file or of shared memory."""
SHARED = np.uint8(2)
"""Other page tables map the page too."""
HEAD = np.uint8(4)
"""First page of a folio, as far as is known."""
HUGE = np.uint8(8)
"""Part of a folio of the size of a transparent huge page."""
HIDDEN = np.uint8(16)
"""The kernel would not say where this page is; its NUMA node is from its frame, or from the sums of numa_maps."""
SWAPPED = np.uint8(32)
"""Swapped out: on no NUMA node, NO_NUMA_NODE."""
MERGED = np.uint8(64)
"""KSM merged it with pages of other processes, or may have, as far as is known: to move it moves it for all of them."""
_OF_CLASS = FILE | HUGE | SWAPPED
_CLASSES = tuple(PageClass)


@dataclass(frozen=True, kw_only=True)
class MappingPages:
    """Pages of one mapping that are present or swapped out: those of one block of it.

    `page` uint32[n], ascending, in units of the mapping's page size from its start; `numa_node` int16[n]; `flags`
    uint8[n].
    """

    mapping: Mapping
    page: NDArray[np.uint32]
    numa_node: NDArray[np.int16]
    flags: NDArray[np.uint8]

    def addresses(self, position: slice | NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return addresses, uint64, of some of the pages."""
        return np.uint64(self.mapping.start) + self.page[position].astype(np.uint64) * np.uint64(self.mapping.page_size)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Pages of one mapping in little memory: at least one, at most BLOCK_PAGES, cut where no huge page is cut."""

    mapping: Mapping
    packed: Packed

    @property
    def start(self) -> int:
        """Address of the first page."""
        return self.mapping.start + self.packed.first * self.mapping.page_size

    @property
    def end(self) -> int:
        """Address behind the last page."""
        return self.mapping.start + self.packed.end * self.mapping.page_size

    def pages(self) -> MappingPages:
        """Return the pages one by one."""
        pages = self.packed.unpack()
        return MappingPages(mapping=self.mapping, page=pages.page, numa_node=pages.numa_node, flags=pages.flags)


@dataclass(frozen=True)
class Pages:
    """The pages of a process, block by block; each block is unpacked anew when its turn comes."""

    blocks: tuple[Block, ...] = ()

    def __iter__(self) -> Iterator[MappingPages]:
        """Yield the pages of each block."""
        return (block.pages() for block in self.blocks)

    def where(self, wanted: Callable[[Mapping], bool]) -> Pages:
        """Return the pages of the mappings that are wanted."""
        return Pages(tuple(block for block in self.blocks if wanted(block.mapping)))

    def ordered(self, key: Callable[[Mapping], int]) -> Pages:
        """Return the pages in the order of a key of their mappings, and else as they are."""
        return Pages(tuple(sorted(self.blocks, key=lambda block: key(block.mapping))))


def blocks_of(part: MappingPages) -> Iterator[Block]:
    """Yield the blocks of pages of a mapping, however many they are; none for none."""
    if part.page.size == 0:
        return
    number = part.page.astype(np.int64) + part.mapping.start // part.mapping.page_size
    edges = np.flatnonzero(np.diff(number // BLOCK_PAGES)) + 1
    for start, end in zip([0, *edges.tolist()], [*edges.tolist(), part.page.size], strict=True):
        cut = slice(start, end)
        yield Block(mapping=part.mapping, packed=pack(part.page[cut], part.numa_node[cut], part.flags[cut]))


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All pages of a process. `rows` are bytes by NUMA node and class.

    `located` is false where the kernel refused to locate pages: then `pages` is empty and `rows` come from numa_maps,
    without telling huge from base pages.
    """

    mappings: tuple[Mapping, ...]
    pages: Pages = Pages()
    rows: tuple[ClassBytes, ...] = ()
    located: bool = True

    def total(self) -> int:
        """Return the bytes of the process on all NUMA nodes."""
        return sum(row.bytes for row in self.rows)

    def on(self, numa_node: int) -> int:
        """Return the bytes of the process on one NUMA node."""
        return sum(row.bytes for row in self.rows if row.numa_node == numa_node)


def survey_of(parts: Iterable[MappingPages], mappings: tuple[Mapping, ...] = ()) -> Survey:
    """Return the survey made of these pages; those of one mapping may come in several parts."""
    return survey_of_blocks((block for part in parts for block in blocks_of(part)), mappings)


def survey_of_blocks(blocks: Iterable[Block], mappings: tuple[Mapping, ...] = ()) -> Survey:
    """Return the survey made of these blocks; `mappings` are theirs where none are given."""
    pages = Pages(tuple(blocks))
    sums: dict[tuple[int, PageClass], int] = {}
    for block in pages.blocks:
        values = block.packed.values
        shifted = values.numa_node.astype(np.int64) - NO_NUMA_NODE
        slots = shifted * len(_CLASSES) + _classes(page_class(block.mapping.kind))[values.flags & _OF_CLASS]
        counts = np.bincount(slots, weights=values.count)
        for key in np.flatnonzero(counts).tolist():
            slot = (key // len(_CLASSES) + NO_NUMA_NODE, _CLASSES[key % len(_CLASSES)])
            sums[slot] = sums.get(slot, 0) + int(counts[key]) * block.mapping.page_size
    own = {block.mapping.start: block.mapping for block in pages.blocks}
    return Survey(mappings=mappings or tuple(own.values()), pages=pages, rows=class_rows(sums))


@cache
def _classes(kind: PageClass) -> NDArray[np.int64]:
    """Return the index of the class, int64[f], of pages by their flags, in a mapping whose kind speaks for `kind`."""
    return np.array([_class(kind, flags) for flags in range(int(_OF_CLASS) + 1)])


def _class(kind: PageClass, flags: int) -> int:
    """Return the index of the class of a page with these flags in a mapping whose kind speaks for `kind`."""
    if flags & SWAPPED:
        return _CLASSES.index(PageClass.SWAPPED)
    if kind is PageClass.HUGETLB:
        return _CLASSES.index(kind)
    if flags & FILE:
        return _CLASSES.index(kind if kind is PageClass.SHMEM else PageClass.FILE)
    return _CLASSES.index(PageClass.ANON_HUGE if flags & HUGE else PageClass.ANON)


def class_rows(sums: Table[tuple[int, PageClass], int]) -> tuple[ClassBytes, ...]:
    """Return sums as rows, in order."""
    return tuple(sorted(ClassBytes(numa_node, kind, count) for (numa_node, kind), count in sums.items() if count))
