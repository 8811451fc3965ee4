# SPDX-License-Identifier: Apache-2.0
"""Why each byte that is off target is there: one reason a page, so that the sums close by construction."""

from __future__ import annotations

from collections.abc import Mapping as Table
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .compare import ABSENT, Overlay
from .mappings import Kind
from .plan import Trial, Trials, shared_cache
from .reasons import ADVICE, Reason
from .survey import HIDDEN, MERGED, SHARED, SWAPPED, MappingPages, Survey
from .targets import Targets
from .verdict import NO_NUMA_NODE, ResidueRow
from .wording import count_text

_REASONS = tuple(Reason)
_PAGE = 4096
_CODE = {reason: code for code, reason in enumerate(_REASONS)}
_OF_KIND = {
    Kind.DEVICE: Reason.UNMIGRATABLE_MAPPING,
    Kind.SECRET: Reason.SECRET_MEMORY,
}
_EVIDENCE = {
    Reason.NO_CELL: "in mappings that are no guest cell's, or of a cell nothing was asked of",
    Reason.HUGEPAGE_POOL: "in pages of a huge-page pool that has too few on the target",
    Reason.SWAPPED: "swapped out (pagemap bit 62)",
    Reason.FILE_NOT_MIGRATABLE: "of mapped files, which move_pages refused one by one",
    Reason.KSM_SHARED: "in mergeable mappings (mg), and mapped by others too (pagemap bit 56, kpagecount)",
    Reason.SHARED_FILE: "in private or read-only file mappings, and mapped by other processes too (pagemap bit 56)",
    Reason.UNMIGRATABLE_MAPPING: "in mappings of a device or the kernel (VM_IO, VM_PFNMAP, VM_MIXEDMAP or anon_inode)",
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

    `untried` is why movable pages were not tried, `untried_pool` why those of huge-page pools were not, where that
    differs, and `untried_at` why those were not that would go to a place, a NUMA node and a size of page; `no_target`
    why nothing is asked of a mapping; `refused` what refusing a folio alone means on a NUMA node; `held` the bytes a
    device holds of mappings and `bound` the mappings bound elsewhere, by start address; `evidence` replaces what a
    reason says by itself, `evidence_on` what it says of a NUMA node.
    """

    targets: Targets
    privileged: bool = True
    untried: Reason = Reason.UNEXPLAINED
    untried_pool: Reason | None = None
    untried_at: Table[tuple[int, int], Reason] = field(default_factory=dict)
    no_target: Reason = Reason.NO_CELL
    refused: Table[int, Reason] = field(default_factory=dict)
    held: Table[int, int] = field(default_factory=dict)
    bound: frozenset[int] = frozenset()
    evidence: Table[Reason, str] = field(default_factory=dict)
    evidence_on: Table[tuple[Reason, int], str] = field(default_factory=dict)


def explain(after: Survey, last: Overlay | None, circumstances: Circumstances) -> tuple[ResidueRow, ...]:
    """Return why memory is off target, the most first.

    `last` is the survey the last pass worked from, with what became of each page; None when no page was tried.
    """
    sums: dict[tuple[Reason, int], int] = {}
    if not after.located:
        for row in after.rows:
            if row.numa_node != circumstances.targets.default:
                reason = circumstances.untried
                sums[reason, row.numa_node] = sums.get((reason, row.numa_node), 0) + row.bytes
    held = dict(circumstances.held)
    for part in after.pages:
        _count(part, last, circumstances, held, sums)
    rows = [_row(reason, numa_node, count, circumstances) for (reason, numa_node), count in sums.items()]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.reason, row.numa_node)))


def _count(
    part: MappingPages,
    last: Overlay | None,
    circumstances: Circumstances,
    held: dict[int, int],
    sums: dict[tuple[Reason, int], int],
) -> None:
    """Add the pages of one block that are off target to the sums; what of `held` is found is taken off there."""
    start, size, target = part.mapping.start, part.mapping.page_size, circumstances.targets.of(part.mapping)
    away = np.ones(part.page.size, dtype=np.bool_) if target is None else part.numa_node != target
    if not away.any():
        return
    if target is None:
        codes = np.full(part.page.size, _CODE[circumstances.no_target], dtype=np.uint8)
    else:
        codes = _codes(part, last, circumstances, target)
        if held.get(start, 0) >= size:
            found = np.flatnonzero(away & ((part.flags & SWAPPED) == 0))[: held[start] // size]
            codes[found] = _CODE[Reason.PINNED_BY_DEVICE]
            held[start] -= found.size * size
    shifted = part.numa_node[away].astype(np.int64)
    shifted -= NO_NUMA_NODE
    counts = np.bincount(shifted * len(_REASONS) + codes[away])
    for key in np.flatnonzero(counts).tolist():
        slot = (_REASONS[key % len(_REASONS)], key // len(_REASONS) + NO_NUMA_NODE)
        sums[slot] = sums.get(slot, 0) + int(counts[key]) * size


def _codes(part: MappingPages, last: Overlay | None, circumstances: Circumstances, target: int) -> NDArray[np.uint8]:
    """Return a reason, as an index uint8[n], for each page of a block; it holds for those off target."""
    flags = part.flags
    untried = circumstances.untried_at.get((target, part.mapping.page_size), circumstances.untried)
    if part.mapping.kind is Kind.HUGETLB and circumstances.untried_pool:
        untried = circumstances.untried_pool
    if part.mapping.start in circumstances.bound:
        untried = Reason.STRICT_BINDING
    if last is None:
        codes = np.full(flags.size, _CODE[untried], dtype=np.uint8)
    else:
        earlier = last.look(part)
        of_trial = {
            Trial.NOT_TRIED: untried,
            Trial.MOVED: Reason.MOVED_BACK,
            Trial.REFUSED: Reason.EXTRA_REFERENCE,
            Trial.BUSY: Reason.BUSY,
            Trial.SHARED: Reason.SHARED_WITHOUT_PRIVILEGE,
            Trial.ABSENT: Reason.NEW_ON_SOURCE,
            Trial.GIVEN_UP: Reason.NOT_ATTEMPTED,
            Trial.UNKNOWN: Reason.UNEXPLAINED,
        }
        codes = np.array([_CODE[of_trial[trial]] for trial in Trial], dtype=np.uint8).take(earlier.trial)
        for numa_node, reason in circumstances.refused.items():
            refused = (earlier.trial == Trial.REFUSED) & (part.numa_node == numa_node)
            codes[refused] = _CODE[_meaning_of_refusal(part, reason)]
        codes[earlier.numa_node == target] = _CODE[Reason.MOVED_BACK]
        codes[earlier.numa_node == ABSENT] = _CODE[Reason.NEW_ON_SOURCE]
    if not circumstances.privileged:
        codes[(flags & SHARED) != 0] = _CODE[Reason.SHARED_WITHOUT_PRIVILEGE]
    if last is not None:
        codes[(flags & HIDDEN) != 0] = _CODE[Reason.HIDDEN_BY_NUMA_HINT]
    codes[shared_cache(part)] = _CODE[Reason.SHARED_FILE]
    codes[(flags & MERGED) != 0] = _CODE[Reason.KSM_SHARED]
    if part.mapping.kind in _OF_KIND:
        codes[:] = _CODE[_OF_KIND[part.mapping.kind]]
    codes[(flags & SWAPPED) != 0] = _CODE[Reason.SWAPPED]
    return codes


def _meaning_of_refusal(part: MappingPages, reason: Reason) -> Reason:
    if part.mapping.kind is Kind.FILE and reason is Reason.EXTRA_REFERENCE:
        return Reason.FILE_NOT_MIGRATABLE
    return reason


def refused_pages(survey: Survey, trials: Trials) -> dict[int, int]:
    """Return by NUMA node how many base pages of a survey were refused although they were alone in a call."""
    found: dict[int, int] = {}
    for part in survey.pages:
        tried = trials.known(part)
        if tried is not None and (refused := part.numa_node[tried == Trial.REFUSED]).size:
            for numa_node, count in enumerate(np.bincount(refused.clip(min=0))):
                if count:
                    found[numa_node] = found.get(numa_node, 0) + int(count) * (part.mapping.page_size // _PAGE)
    return found


def _row(reason: Reason, numa_node: int, count: int, circumstances: Circumstances) -> ResidueRow:
    seen = (
        circumstances.evidence_on.get((reason, numa_node))
        or circumstances.evidence.get(reason)
        or f"{count_text(count // _PAGE, 'page')} {_EVIDENCE.get(reason, '')}"
    )
    return ResidueRow(
        reason=reason,
        numa_node=numa_node,
        bytes=count,
        permanent=ADVICE[reason].permanent,
        evidence=seen.strip(),
        remedy=ADVICE[reason].remedy,
    )
