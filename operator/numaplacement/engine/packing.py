# SPDX-License-Identifier: Apache-2.0
"""Pages in little memory: runs where many in a row are alike, else one small number a page.

A VM of 256 GiB has 67 million base pages, and a run keeps three surveys of them. Pages that lie on one NUMA node, and
transparent huge pages, come in runs; pages scattered over NUMA nodes differ in few ways, and have a byte each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RUN_BYTES = 11
"""What a run takes: two uint32, an int16, a uint8."""
_FLAG_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Values:
    """What pages are like: NUMA nodes int16[k] with flags uint8[k], and how many pages, int64[k]; pairs may repeat."""

    numa_node: NDArray[np.int16]
    flags: NDArray[np.uint8]
    count: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """Pages one by one: their numbers uint32[n], ascending, NUMA nodes int16[n] and flags uint8[n]."""

    page: NDArray[np.uint32]
    numa_node: NDArray[np.int16]
    flags: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Pages that follow one another and are alike.

    `start` uint32[r], `length` uint32[r], NUMA nodes int16[r], flags uint8[r].
    """

    start: NDArray[np.uint32]
    length: NDArray[np.uint32]
    numa_node: NDArray[np.int16]
    flags: NDArray[np.uint8]

    @property
    def first(self) -> int:
        """Number of the first page."""
        return int(self.start[0])

    @property
    def end(self) -> int:
        """Number behind the last page."""
        return int(self.start[-1]) + int(self.length[-1])

    @property
    def values(self) -> Values:
        """What the pages are like."""
        return Values(numa_node=self.numa_node, flags=self.flags, count=self.length.astype(np.int64))

    def unpack(self) -> Unpacked:
        """Return the pages one by one."""
        ends = np.cumsum(self.length, dtype=np.uint32)
        page = np.arange(int(ends[-1]), dtype=np.uint32)
        page += np.repeat(self.start - (ends - self.length), self.length)
        return Unpacked(
            page=page,
            numa_node=np.repeat(self.numa_node, self.length),
            flags=np.repeat(self.flags, self.length),
        )


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """A number for each page from `first` on, unsigned[s]: 0 where there is none, else which of the values it has.

    `of` are the values; the first of them, with count 0, stands for no page.
    """

    first: int
    number: NDArray[np.unsignedinteger]
    of: Values

    @property
    def end(self) -> int:
        """Number behind the last page."""
        return self.first + self.number.size

    @property
    def values(self) -> Values:
        """What the pages are like."""
        return self.of

    def unpack(self) -> Unpacked:
        """Return the pages one by one."""
        there = np.flatnonzero(self.number)
        number = self.number if there.size == self.number.size else self.number[there]
        return Unpacked(
            page=(there + self.first).astype(np.uint32),
            numa_node=self.of.numa_node.take(number),
            flags=self.of.flags.take(number),
        )


Packed = Runs | Numbered


def pack(page: NDArray[np.uint32], numa_node: NDArray[np.int16], flags: NDArray[np.uint8]) -> Packed:
    """Return at least one page in whichever form takes less; arguments as in Unpacked."""
    value = (numa_node.astype(np.int32) << _FLAG_BITS) | flags
    edges = np.flatnonzero((value[1:] != value[:-1]) | (page[1:] - page[:-1] != 1)) + 1
    first, end = int(page[0]), int(page[-1]) + 1
    if (edges.size + 1) * _RUN_BYTES <= end - first:
        starts = np.concatenate((np.zeros(1, dtype=edges.dtype), edges))
        return Runs(
            start=page[starts],
            length=np.diff(starts, append=page.size).astype(np.uint32),
            numa_node=numa_node[starts],
            flags=flags[starts],
        )
    lowest = int(value.min())
    value -= lowest
    counts = np.bincount(value)
    found = np.flatnonzero(counts)
    own_number: NDArray[np.unsignedinteger] = np.zeros(counts.size, dtype=np.min_scalar_type(found.size))
    own_number[found] = np.arange(1, found.size + 1)
    number: NDArray[np.unsignedinteger] = np.zeros(end - first, dtype=own_number.dtype)
    number[page - page[0]] = own_number[value]
    found = np.concatenate((found[:1], found)) + lowest
    values = Values(
        numa_node=(found >> _FLAG_BITS).astype(np.int16),
        flags=(found & ((1 << _FLAG_BITS) - 1)).astype(np.uint8),
        count=np.concatenate((np.zeros(1, dtype=np.int64), counts[counts > 0])),
    )
    return Numbered(first=first, number=number, of=values)
