# SPDX-License-Identifier: Apache-2.0
"""The pages of a process as arrays, and their sums by NUMA node and class."""

from __future__ import annotations

from collections.abc import Mapping as Table
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mappings import Mapping, page_class
from .verdict import ClassBytes, PageClass

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
_FLAG_VALUES = int(FILE | HUGE) + 1
_CLASSES = tuple(PageClass)


@dataclass(frozen=True, kw_only=True)
class MappingPages:
    """The pages of one mapping that are present.

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
class Survey:
    """All pages of a process. `rows` are bytes by NUMA node and class.

    `located` is false where the kernel refused to locate pages: then `pages` is empty and `rows` come from numa_maps,
    without telling huge from base pages.
    """

    mappings: tuple[Mapping, ...]
    pages: tuple[MappingPages, ...] = ()
    rows: tuple[ClassBytes, ...] = ()
    located: bool = True

    def total(self) -> int:
        """Return the bytes of the process on all NUMA nodes."""
        return sum(row.bytes for row in self.rows)

    def on(self, numa_node: int) -> int:
        """Return the bytes of the process on one NUMA node."""
        return sum(row.bytes for row in self.rows if row.numa_node == numa_node)


def survey_of(pages: tuple[MappingPages, ...], mappings: tuple[Mapping, ...] = ()) -> Survey:
    """Return the survey made of these pages."""
    sums: dict[tuple[int, PageClass], int] = {}
    for part in pages:
        kind = page_class(part.mapping.kind)
        of_flags = np.array([_class(kind, flags) for flags in range(_FLAG_VALUES)])
        counts = np.bincount(part.numa_node.astype(np.int64) * len(_CLASSES) + of_flags[part.flags & (FILE | HUGE)])
        for key in np.flatnonzero(counts).tolist():
            slot = (key // len(_CLASSES), _CLASSES[key % len(_CLASSES)])
            sums[slot] = sums.get(slot, 0) + int(counts[key]) * part.mapping.page_size
    return Survey(mappings=mappings or tuple(part.mapping for part in pages), pages=pages, rows=class_rows(sums))


def _class(kind: PageClass, flags: int) -> int:
    """Return the index of the class of a page with these flags in a mapping whose kind speaks for `kind`."""
    if kind is PageClass.HUGETLB:
        return _CLASSES.index(kind)
    if flags & FILE:
        return _CLASSES.index(kind if kind is PageClass.SHMEM else PageClass.FILE)
    return _CLASSES.index(PageClass.ANON_HUGE if flags & HUGE else PageClass.ANON)


def class_rows(sums: Table[tuple[int, PageClass], int]) -> tuple[ClassBytes, ...]:
    """Return sums as rows, in order."""
    return tuple(sorted(ClassBytes(numa_node, kind, count) for (numa_node, kind), count in sums.items() if count))
