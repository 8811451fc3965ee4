# SPDX-License-Identifier: Apache-2.0
"""Where folios begin, so that the kernel is given one address for each.

All addresses of a transparent huge page given at once come back as -EBUSY and cost a flush each (mm/migrate.c,
do_pages_move); the address of its first page moves it whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .pagemap import COMPOUND_HEAD, COMPOUND_TAIL


def heads_from_flags(
    *, page: NDArray[np.int64], frame: NDArray[np.uint64], flags: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Return which pages begin a folio, bool[n], from what the kernel says of their frames (uint64[n] each).

    `page` int64[n] are page numbers in ascending order. A tail page goes with the page before it when that is its
    neighbour in memory and in the address space; where only a part of a folio is mapped, the part's first page begins.
    """
    heads = np.ones(page.size, dtype=np.bool_)
    if page.size > 1:
        neighbour = (np.diff(page) == 1) & (frame[1:] == frame[:-1] + np.uint64(1))
        compound_before = (flags[:-1] & (COMPOUND_HEAD | COMPOUND_TAIL)) != 0
        heads[1:] = ~(((flags[1:] & COMPOUND_TAIL) != 0) & neighbour & compound_before)
    return heads


def heads_from_shape(*, page: NDArray[np.int64], numa_node: NDArray[np.int16], huge_pages: int) -> NDArray[np.bool_]:
    """Return which pages begin a folio, bool[n], as far as their shape tells.

    Every aligned run of `huge_pages` pages that are all present on one NUMA node may be one transparent huge page.
    Where it is none only its first page moves with this address, and the next pass sees the others one by one.
    """
    heads = np.ones(page.size, dtype=np.bool_)
    if page.size < huge_pages:
        return heads
    block = page // huge_pages
    first = np.flatnonzero(np.concatenate(([True], np.diff(block) != 0)))
    count = np.diff(np.append(first, page.size))
    lowest = np.minimum.reduceat(numa_node, first)
    highest = np.maximum.reduceat(numa_node, first)
    candidate = (count == huge_pages) & (lowest == highest)
    heads[np.repeat(candidate, count)] = False
    heads[first[candidate]] = True
    return heads


def folio_lengths(heads: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the pages of each folio, int64[k]; the first entry of a non-empty `heads` is true."""
    return np.diff(np.append(np.flatnonzero(heads), heads.size))


def in_huge_folios(heads: NDArray[np.bool_], *, huge_pages: int, at_most: int) -> NDArray[np.bool_]:
    """Return which pages lie in folios of at least `huge_pages` pages, bool[n]; of the first `at_most` such folios."""
    length = folio_lengths(heads)
    huge = length >= huge_pages
    huge &= np.cumsum(huge) <= at_most
    return np.repeat(huge, length)
