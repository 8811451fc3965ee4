# SPDX-License-Identifier: Apache-2.0
"""Why each byte that is off target is there: one reason a page, so that the sums close by construction."""

from __future__ import annotations

from collections.abc import Mapping as Table
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .compare import ABSENT, Overlay, cuts
from .mappings import Kind
from .plan import Trial, merged, shared_cache
from .reasons import ADVICE, Reason
from .survey import HIDDEN, SHARED, MappingPages, Survey
from .verdict import PageClass, ResidueRow
from .wording import count_text

_REASONS = tuple(Reason)
_CODE = {reason: code for code, reason in enumerate(_REASONS)}
_OF_KIND = {
    Kind.HUGETLB: Reason.HUGETLB_NOT_YET,
    Kind.DEVICE: Reason.UNMIGRATABLE_MAPPING,
    Kind.SECRET: Reason.SECRET_MEMORY,
}
_EVIDENCE = {
    Reason.HUGETLB_NOT_YET: "in mappings of a huge-page pool",
    Reason.KSM_SHARED: "in mergeable mappings (mg), and mapped by others too (pagemap bit 56)",
    Reason.SHARED_FILE: "in private or read-only file mappings, and mapped by other processes too (pagemap bit 56)",
    Reason.UNMIGRATABLE_MAPPING: "in mappings of a device or of the kernel (VM_IO, VM_PFNMAP or anon_inode)",
    Reason.SECRET_MEMORY: "in mappings of memfd_secret",
    Reason.HIDDEN_BY_NUMA_HINT: "present in the page table, but move_pages finds none there (ENOENT)",
    Reason.SHARED_WITHOUT_PRIVILEGE: "mapped by other processes too (pagemap bit 56), and CAP_SYS_NICE is missing",
    Reason.EXTRA_REFERENCE: "move_pages refused each of them alone: something holds a reference",
    Reason.PINNED_BY_IO: "move_pages refused each of them alone, and the process has memory pinned (VmPin)",
    Reason.PINNED_BY_DEVICE: "move_pages refused each of them alone, and a device holds memory of the process",
    Reason.BUSY: "could not be taken off their list (EBUSY) in any pass",
    Reason.NEW_ON_SOURCE: "not there when the last pass began",
    Reason.MOVED_BACK: "were on target in the last pass, and are no longer",
    Reason.NOT_ATTEMPTED: "not tried: in mappings where 64 folios in a row had been refused",
    Reason.UNEXPLAINED: "tried, or seen, and still there for no reason known to this version",
}


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What is known beside the pages.

    `untried` is why movable pages were not tried; `refused` what refusing a folio alone means in this process;
    `held` the bytes a device holds of mappings and `bound` the mappings bound elsewhere, by start address;
    `evidence` replaces what a reason says by itself.
    """

    target: int
    privileged: bool = True
    untried: Reason = Reason.UNEXPLAINED
    refused: Reason = Reason.EXTRA_REFERENCE
    held: Table[int, int] = field(default_factory=dict)
    bound: frozenset[int] = frozenset()
    evidence: Table[Reason, str] = field(default_factory=dict)


def explain(after: Survey, last: Overlay | None, circumstances: Circumstances) -> tuple[ResidueRow, ...]:
    """Return why memory is off target, the most first.

    `last` is the survey the last pass worked from, with what became of each page; None when no page was tried.
    """
    target = circumstances.target
    sums: dict[tuple[Reason, int], int] = {}
    if not after.located:
        for row in after.rows:
            if row.numa_node != target:
                whole = row.page_class is PageClass.HUGETLB
                reason = Reason.HUGETLB_NOT_YET if whole else circumstances.untried
                sums[reason, row.numa_node] = sums.get((reason, row.numa_node), 0) + row.bytes
    for part in after.pages:
        _count(part, last, circumstances, sums)
    rows = [_row(reason, numa_node, count, circumstances) for (reason, numa_node), count in sums.items()]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.reason, row.numa_node)))


def _count(
    part: MappingPages, last: Overlay | None, circumstances: Circumstances, sums: dict[tuple[Reason, int], int]
) -> None:
    """Add the pages of one mapping that are off target to the sums."""
    held_left = circumstances.held.get(part.mapping.start, 0) // part.mapping.page_size
    for cut in cuts(part):
        away = part.numa_node[cut] != circumstances.target
        if not away.any():
            continue
        codes = _codes(part, cut, last, circumstances)
        if held_left:
            held = np.flatnonzero(away)[:held_left]
            codes[held] = _CODE[Reason.PINNED_BY_DEVICE]
            held_left -= held.size
        numa_node = part.numa_node[cut][away].astype(np.int64)
        for key, count in enumerate(np.bincount(numa_node * len(_REASONS) + codes[away])):
            if count:
                slot = (_REASONS[key % len(_REASONS)], key // len(_REASONS))
                sums[slot] = sums.get(slot, 0) + int(count) * part.mapping.page_size


def _codes(part: MappingPages, cut: slice, last: Overlay | None, circumstances: Circumstances) -> NDArray[np.int64]:
    """Return a reason, as an index int64[k], for each of some pages; it holds for those off target."""
    flags = part.flags[cut]
    untried = _CODE[circumstances.untried]
    if part.mapping.start in circumstances.bound:
        untried = _CODE[Reason.STRICT_BINDING]
    codes = np.full(flags.size, untried, dtype=np.int64)
    if last is not None:
        earlier = last.look(part, cut)
        of_trial = {
            Trial.MOVED: Reason.MOVED_BACK,
            Trial.REFUSED: circumstances.refused,
            Trial.BUSY: Reason.BUSY,
            Trial.SHARED: Reason.SHARED_WITHOUT_PRIVILEGE,
            Trial.ABSENT: Reason.NEW_ON_SOURCE,
            Trial.GIVEN_UP: Reason.NOT_ATTEMPTED,
            Trial.UNKNOWN: Reason.UNEXPLAINED,
        }
        for trial, reason in of_trial.items():
            codes[earlier.trial == trial] = _CODE[reason]
        codes[earlier.numa_node == circumstances.target] = _CODE[Reason.MOVED_BACK]
        codes[earlier.numa_node == ABSENT] = _CODE[Reason.NEW_ON_SOURCE]
    if not circumstances.privileged:
        codes[(flags & SHARED) != 0] = _CODE[Reason.SHARED_WITHOUT_PRIVILEGE]
    if last is not None:
        codes[(flags & HIDDEN) != 0] = _CODE[Reason.HIDDEN_BY_NUMA_HINT]
    codes[shared_cache(part, cut)] = _CODE[Reason.SHARED_FILE]
    codes[merged(part, cut)] = _CODE[Reason.KSM_SHARED]
    if part.mapping.kind in _OF_KIND:
        codes[:] = _CODE[_OF_KIND[part.mapping.kind]]
    return codes


def _row(reason: Reason, numa_node: int, count: int, circumstances: Circumstances) -> ResidueRow:
    page = 4096
    seen = circumstances.evidence.get(reason) or f"{count_text(count // page, 'page')} {_EVIDENCE.get(reason, '')}"
    return ResidueRow(
        reason=reason,
        numa_node=numa_node,
        bytes=count,
        permanent=ADVICE[reason].permanent,
        evidence=seen.strip(),
        remedy=ADVICE[reason].remedy,
    )
