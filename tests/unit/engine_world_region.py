# SPDX-License-Identifier: Apache-2.0
"""A mapping of the simulated process, and what /proc says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
HUGE = 2 << 20
PER_HUGE = HUGE // PAGE
PRESENT, SWAP, FILE, EXCLUSIVE = 1 << 63, 1 << 62, 1 << 61, 1 << 56


@dataclass
class Region:
    """A mapping: NUMA nodes of its pages, -1 where there is none; which of them are shared with other processes.

    `whole` are the first pages of transparent huge pages, `fragile` those of them that a move splits.
    """

    start: int
    nodes: list[int]
    path: str = ""
    permissions: str = "rw-p"
    file: bool = False
    shared: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)
    hidden: set[int] = field(default_factory=set)
    swapped: set[int] = field(default_factory=set)
    whole: set[int] = field(default_factory=set)
    fragile: set[int] = field(default_factory=set)
    page_size: int = PAGE
    flags: str = "rd wr mr mw me ac"
    policy: str = "default"

    @property
    def end(self) -> int:
        return self.start + len(self.nodes) * self.page_size

    def folio(self, index: int) -> range:
        """Return the pages that move with the one at an index."""
        return range(index, index + (PER_HUGE if index in self.whole else 1))

    def smaps(self) -> str:
        here = sum(node >= 0 for node in self.nodes) * self.page_size >> 10
        head = f"{self.start:x}-{self.end:x} {self.permissions} 00000000 00:00 0 {self.path}".rstrip()
        swap = f"Swap: {len(self.swapped) * self.page_size >> 10} kB\n" if self.swapped else ""
        flags = f"{self.flags} ht" if self.page_size > PAGE else self.flags
        return (
            f"{head}\nRss: {here} kB\nKernelPageSize: {self.page_size >> 10} kB\n"
            f"AnonHugePages: {len(self.whole) * HUGE >> 10} kB\n{swap}VmFlags: {flags}\n"
        )

    def numa_maps(self) -> str:
        counts = {node: self.nodes.count(node) for node in sorted(set(self.nodes)) if node >= 0}
        words = [f"N{node}={count}" for node, count in counts.items()]
        huge = ["huge"] if self.page_size > PAGE else []
        size = f"kernelpagesize_kB={self.page_size >> 10}"
        return " ".join([f"{self.start:x}", self.policy, *huge, *words, size]) + "\n"

    def pagemap(self) -> NDArray[np.uint64]:
        """Return the words of pagemap, uint64, one for each base page."""
        words = [self._word(index, node) for index, node in enumerate(self.nodes)]
        return np.repeat(np.array(words, dtype=np.uint64), self.page_size // PAGE)

    def _word(self, index: int, node: int) -> int:
        if index in self.swapped:
            return SWAP
        return 0 if node == -1 else PRESENT | FILE * self.file | (0 if index in self.shared else EXCLUSIVE)
