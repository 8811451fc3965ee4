# SPDX-License-Identifier: Apache-2.0
"""The pages of a process as arrays, and their sums by NUMA node and class."""

from __future__ import annotations

from collections.abc import Iterator
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
"""The kernel would not say where this page is; its NUMA node is from the sums of numa_maps."""


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

    def class_masks(self) -> Iterator[tuple[PageClass, NDArray[np.bool_]]]:
        """Yield each page class that may occur here with the pages, bool[n], that are of it."""
        whole = page_class(self.mapping.kind)
        if whole is PageClass.HUGETLB:
            yield whole, np.ones(self.page.size, dtype=np.bool_)
            return
        file = (self.flags & FILE) != 0
        huge = (self.flags & HUGE) != 0
        yield PageClass.ANON, ~file & ~huge
        yield PageClass.ANON_HUGE, ~file & huge
        yield (whole if whole is PageClass.SHMEM else PageClass.FILE), file


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
        for kind, mask in part.class_masks():
            for numa_node, count in enumerate(np.bincount(part.numa_node[mask])):
                if count:
                    key = (numa_node, kind)
                    sums[key] = sums.get(key, 0) + int(count) * part.mapping.page_size
    return Survey(mappings=mappings or tuple(part.mapping for part in pages), pages=pages, rows=class_rows(sums))


def class_rows(sums: Table[tuple[int, PageClass], int]) -> tuple[ClassBytes, ...]:
    """Return sums as rows, in order."""
    return tuple(sorted(ClassBytes(numa_node, kind, count) for (numa_node, kind), count in sums.items() if count))
