# SPDX-License-Identifier: Apache-2.0
"""Touches what move_pages(2) cannot move as it is: pages that AutoNUMA has marked, and pages that are swapped out.

A read fault takes AutoNUMA's mark from a page. One on a swapped page reads it back to where the reader runs, where the
mapping has no policy of its own (mm/memory.c, do_swap_page): so the reader runs on the target's CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from .errors import Stopped
from .guard import Guard
from .mover import Room
from .plan import MOVABLE_KINDS
from .reasons import Reason
from .survey import HEAD, HIDDEN, SWAPPED, MappingPages, Pages, Survey
from .targets import Targets
from .wording import size_text

_TOUCHES = 1024
"""Addresses touched in one call: IOV_MAX."""


def reveal(
    survey: Survey, *, targets: Targets, guard: Guard, room: Room, cpus: Callable[[int], frozenset[int]]
) -> bool:
    """Touch what is off target and hides or is swapped out, and say whether that may have helped.

    `cpus` are those of a NUMA node; what is swapped stays so where it has none. Raises Stopped and ProcessEnded.
    """
    touched = False
    for target in targets.numa_nodes:
        parts = _parts(survey, targets, target)
        if not any(_waiting(part, target) for part in parts):
            continue
        with ThreadPoolExecutor(1, thread_name_prefix="toucher") as pool:
            try:
                going = pool.submit(_go_to, cpus(target), guard)
            except RuntimeError:  # the host has no thread left, and this one keeps the CPUs it has
                return touched
            there = going.result()
            touched |= pool.submit(_touch, parts, target, guard, room, swapped=there).result()
    return touched


def _parts(survey: Survey, targets: Targets, target: int) -> Pages:
    """Return the pages that can be moved and were asked to be on a NUMA node."""
    return survey.pages.where(lambda mapping: mapping.kind in MOVABLE_KINDS and targets.of(mapping) == target)


def _go_to(cpus: frozenset[int], guard: Guard) -> bool:
    """Let this thread run on these CPUs only, and say whether it does."""
    try:
        if cpus:
            guard.process.kernel.set_own_affinity(cpus)
    except OSError:
        return False
    return bool(cpus)


def _touch(parts: Pages, target: int, guard: Guard, room: Room, *, swapped: bool) -> bool:
    process, touched = guard.process, False
    for part in parts:
        away = part.numa_node != target
        hiding = away & ((part.flags & (HIDDEN | HEAD)) == (HIDDEN | HEAD))
        out = away & ((part.flags & SWAPPED) != 0) & swapped
        for mask, grows in ((hiding, False), (out, True)):
            for addresses in _batches(part, mask):
                guard.check()
                if grows:
                    _see_that_it_fits(addresses.size * part.mapping.page_size, room, target, part.mapping.page_size)
                if process.kernel.touch(process.pid, addresses):
                    break
                touched = True
    return touched


def _see_that_it_fits(needed: int, room: Room, target: int, page_size: int) -> None:
    if (safe := room(target, page_size)) < needed:
        raise Stopped(
            Reason.DESTINATION_FULL,
            f"{size_text(max(0, safe))} could still be taken on NUMA node {target} without making others give memory"
            f" back, reading swapped-out memory back needed {size_text(needed)}",
        )


def _waiting(part: MappingPages, target: int) -> bool:
    return bool(((part.numa_node != target) & ((part.flags & (HIDDEN | SWAPPED)) != 0)).any())


def _batches(part: MappingPages, wanted: NDArray[np.bool_]) -> Iterator[NDArray[np.uint64]]:
    """Yield addresses, uint64, of the wanted pages, bool[n], some at a time."""
    positions = np.flatnonzero(wanted)
    for start in range(0, positions.size, _TOUCHES):
        yield part.addresses(positions[start : start + _TOUCHES])
