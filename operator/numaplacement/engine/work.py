# SPDX-License-Identifier: Apache-2.0
"""Folios to move in one go: those of one big mapping, or of many small ones, since each call has a fixed price."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .mappings import Mapping
from .plan import Units
from .survey import BLOCK_PAGES, MappingPages

_ENOUGH = 512
"""Folios from which on no further mapping is added: a smallest chunk of base pages."""


WorkPlace = tuple[int, int]
"""Where folios go: a NUMA node, and the size of page, as base pages and those of each pool have room of their own."""
BlockKey = tuple[int, int]
"""A block of a mapping, in any survey: the mapping's start address, and the block's number in the address space."""


def block_key(part: MappingPages) -> BlockKey:
    """Return the key of a block that is not empty."""
    first = int(part.addresses(slice(1))[0])
    return part.mapping.start, first // (part.mapping.page_size * BLOCK_PAGES)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Folios of one mapping, their addresses uint64[k] and where they go, without the block of pages they are of.

    `trials` uint8[n] is where what becomes of each page of that block is written.
    """

    target: int
    mapping: Mapping
    block: BlockKey
    addresses: NDArray[np.uint64]
    units: Units
    trials: NDArray[np.uint8]


class Work:
    """The folios of some pieces with one target: `addresses` uint64[k] and `sizes` int64[k] in bytes."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self.target = pieces[0].target
        self.page_size = pieces[0].mapping.page_size
        counts = [piece.addresses.size for piece in pieces]
        self._first = np.cumsum([0, *counts])
        self.addresses = np.concatenate([piece.addresses for piece in pieces])
        self.sizes = np.concatenate([piece.units.length * piece.mapping.page_size for piece in pieces])

    @property
    def place(self) -> WorkPlace:
        """Where the folios go."""
        return self.target, self.page_size

    def blocks(self) -> set[BlockKey]:
        """Return the blocks the folios are of."""
        return {piece.block for piece in self._pieces}

    def chunks(self, most: Callable[[], int]) -> Iterator[slice]:
        """Yield the folios in chunks of at most `most()` bytes, asked anew for each, and of one folio at least."""
        end_of = np.cumsum(self.sizes)
        first = 0
        while first < self.sizes.size:
            before = int(end_of[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(end_of, before + most(), side="right")))
            yield slice(first, last)
            first = last

    def write(self, chunk: slice, outcome: NDArray[np.uint8]) -> None:
        """Write what became of the folios of a chunk, Trial as uint8[c], for each of their pages."""
        for index, piece in enumerate(self._pieces):
            start, end = max(chunk.start, int(self._first[index])), min(chunk.stop, int(self._first[index + 1]))
            if start < end:
                own = slice(start - int(self._first[index]), end - int(self._first[index]))
                of_folio = outcome[start - chunk.start : end - chunk.start]
                piece.trials[piece.units.pages(own)] = np.repeat(of_folio, piece.units.length[own])


def gather(pieces: Iterable[Piece]) -> Iterator[Work]:
    """Yield pieces as work, small ones with the same target and size of page together."""
    waiting: list[Piece] = []
    for piece in pieces:
        if waiting and _sort(piece) != _sort(waiting[0]):
            yield Work(waiting)
            waiting = []
        waiting.append(piece)
        if sum(each.units.position.size for each in waiting) >= _ENOUGH:
            yield Work(waiting)
            waiting = []
    if waiting:
        yield Work(waiting)


def _sort(piece: Piece) -> tuple[int, int]:
    return piece.target, piece.mapping.page_size
