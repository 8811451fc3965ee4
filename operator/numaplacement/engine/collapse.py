# SPDX-License-Identifier: Apache-2.0
"""Makes transparent huge pages again of those that a move had to split, with MADV_COLLAPSE.

From Linux 6.1 on the kernel does so for private anonymous memory, for shared memory (shmem: memfd, tmpfs) and, where
built with READ_ONLY_THP_FOR_FS, for read-only files, which are not tried here (madvise(2)). It takes the new page on
the NUMA node that holds most of the range (mm/khugepaged.c, hpage_collapse_find_target_node), but with the right to
reclaim memory there (GFP_TRANSHUGE): so it is asked only while a free one is known to be there. It fills holes with
zeros, so only ranges are given to it of which every page is present: shared memory that was split is so only once the
process has touched it again, since the kernel takes it out of the page tables then (mm/huge_memory.c, unmap_folio).
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .compare import Overlay
from .mappings import Kind
from .process import HeldProcess
from .survey import HUGE, SHARED, Survey
from .targets import Targets

_KINDS = frozenset({Kind.ANON, Kind.SHMEM})
_OF_THE_RANGE = frozenset({errno.EINVAL, errno.EAGAIN, errno.EBUSY, errno.ENOMEM})
"""What is said of one range (madvise_collapse_errno); anything else would be said of every other one too.

EINVAL: not to be had of this range. EAGAIN: pages locked, pinned or isolated. EBUSY: the memory cgroup is at its limit.
ENOMEM: no huge page to be had.
"""
_GIVE_UP = 16
"""Refusals in a row after which the rest is left: each cost the process as much as a success."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Ranges of one huge page each, all on one NUMA node; `addresses` uint64[n], ascending."""

    numa_node: int
    addresses: NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Collapsed:
    """Bytes made huge again, bytes that were not, and why not: how often which errno was returned.

    `no_room` are those of the bytes not rebuilt that were not tried, since the NUMA node had no huge page free.
    `unable` is the errno with which the kernel refuses it altogether, 0 for none.
    """

    rebuilt: int = 0
    not_rebuilt: int = 0
    no_room: int = 0
    unable: int = 0
    errors: Counter[int] = field(default_factory=Counter)

    def evidence(self) -> str:
        """Say in one clause why something was not rebuilt; empty where all was."""
        if self.unable:
            return f"this kernel refuses MADV_COLLAPSE: {_name(self.unable)}"
        parts = [f"{_name(number)} {count} times" for number, count in self.errors.most_common()]
        told = f"MADV_COLLAPSE: {', '.join(parts)}" if parts else ""
        room = "no free huge page on the target" if self.no_room else ""
        return "; ".join(filter(None, (told, room)))


def split_blocks(before: Survey, after: Survey, *, targets: Targets, huge: int) -> tuple[Blocks, ...]:
    """Return the ranges that were huge pages before, and are base pages now that lie all on their target.

    `huge` is the size of a huge page in bytes. Anonymous pages that other processes map too are left out: to make a
    huge page of them would be to copy them.
    """
    overlay = Overlay(before)
    found: dict[int, list[NDArray[np.uint64]]] = {}
    for part in after.pages:
        target, kind = targets.of(part.mapping), part.mapping.kind
        if target is None or kind not in _KINDS or part.mapping.page_size >= huge:
            continue
        unwanted = HUGE | SHARED if kind is Kind.ANON else HUGE
        was_huge = (overlay.look(part).flags & HUGE) != 0
        fits = np.flatnonzero(was_huge & ((part.flags & unwanted) == 0) & (part.numa_node == target))
        block, pages = np.unique(part.addresses(fits) // np.uint64(huge), return_counts=True)
        whole = block[pages == huge // part.mapping.page_size]
        if whole.size:
            found.setdefault(target, []).append(whole * np.uint64(huge))
    return tuple(
        Blocks(numa_node=target, addresses=np.sort(np.concatenate(parts))) for target, parts in sorted(found.items())
    )


def collapse_blocks(
    process: HeldProcess,
    blocks: Iterable[Blocks],
    *,
    huge: int,
    room: Callable[[int], int],
    check: Callable[[], None],
    clock: Callable[[], float],
    watched: Callable[[str], AbstractContextManager[None]],
    time_slice: float = 0.020,
) -> Collapsed:
    """Ask for a huge page for each range, and say what came of it.

    `room` returns the bytes that may be taken on a NUMA node in free huge pages; it is asked before every call.
    `check` is called between two calls, and what it raises (a cancel, a deadline) ends the work and passes through.
    `watched` is round each call, given what it is in words.
    After every `time_slice` seconds of calls there is a pause as long: each call keeps the process's page faults
    waiting while it copies. Raises ProcessEnded.
    """
    todo = [(each.numa_node, address) for each in blocks for address in each.addresses.tolist()]
    if not todo:
        return Collapsed()
    process.check()
    # No length, no work: the call says only whether this kernel knows the advice and this process may give it.
    result = Collapsed(unable=process.kernel.collapse(process.pidfd, 0, 0))
    busy, refused = 0.0, 0
    for done, (numa_node, address) in enumerate(todo):
        check()
        process.check()
        if result.unable or refused == _GIVE_UP:
            return replace(result, not_rebuilt=result.not_rebuilt + huge * (len(todo) - done))
        if room(numa_node) < huge:
            result = replace(result, not_rebuilt=result.not_rebuilt + huge, no_room=result.no_room + huge)
            continue
        started = clock()
        with watched("making a huge page of small ones"):
            number = process.kernel.collapse(process.pidfd, address, huge)
        busy += clock() - started
        refused = refused + 1 if number else 0
        result = _counted(result, number, huge)
        if busy >= time_slice:
            process.kernel.sleep(busy)
            busy = 0.0
    return result


def _counted(result: Collapsed, number: int, huge: int) -> Collapsed:
    """Return the result with that of one more call."""
    if number == 0:
        return replace(result, rebuilt=result.rebuilt + huge)
    return replace(
        result,
        not_rebuilt=result.not_rebuilt + huge,
        unable=0 if number in _OF_THE_RANGE else number,
        errors=result.errors + Counter({number: 1}),
    )


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number))
