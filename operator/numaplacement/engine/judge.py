# SPDX-License-Identifier: Apache-2.0
"""From what a run saw to its verdict: sums, outcome, message. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as Table
from dataclasses import replace

import numpy as np

from .compare import Overlay, compare
from .errors import PlaceFull, Stopped
from .explain import Circumstances, explain, refused_pages
from .facts import Gathered
from .listformat import format_list
from .mover import Pass
from .pins import meaning_of_refusal
from .reasons import NOT_ASKED, Reason
from .survey import Survey
from .targets import Targets
from .verdict import Outcome, Refusal, Request, ResidueRow, Verdict
from .wording import size_text
from .work import WorkPlace

_OWN_ROWS = frozenset({Reason.PINNED_BY_DEVICE, Reason.STRICT_BINDING, Reason.HUGEPAGE_POOL})
"""Refusals over a part of the memory; the rest was not attempted."""
_WHOLLY = 0.9
"""Share of a mapping's memory from which on a device is taken to hold all of it."""
_ENDS = {Reason.CANCELLED: Outcome.CANCELLED, Reason.DEADLINE: Outcome.DEADLINE}


def untouched(outcome: Outcome, gathered: Gathered, found: tuple[Refusal, ...]) -> Verdict:
    """Return the verdict when no page was touched."""
    before, targets = gathered.before, gathered.facts.targets
    reasons = {refusal.reason for refusal in found}
    first = found[0].reason if found else Reason.PLANNED
    untried = Reason.NOT_ATTEMPTED if first in _OWN_ROWS else first
    rows = explain(
        before,
        None,
        Circumstances(
            targets=targets,
            privileged=gathered.privileged,
            untried=untried,
            untried_pool=Reason.HUGEPAGE_POOL if Reason.HUGEPAGE_POOL in reasons else None,
            no_target=Reason.CELLS_UNKNOWN if Reason.CELLS_UNKNOWN in reasons else Reason.NO_CELL,
            held=gathered.held if Reason.PINNED_BY_DEVICE in reasons else {},
            bound=gathered.bound if Reason.STRICT_BINDING in reasons else frozenset(),
            evidence={
                Reason.NOT_ATTEMPTED: "no page was touched",
                Reason.PLANNED: "would be moved",
                **{refusal.reason: refusal.evidence for refusal in found},
            },
        ),
    )
    if found:
        message = "nothing was touched: " + "; ".join(refusal.evidence for refusal in found)
    else:
        message = (
            f"dry run: {size_text(sum(gathered.facts.needed.values()))} of {size_text(before.total())} would be moved"
            f" to {where(targets)}"
        )
    verdict = Verdict(outcome=outcome, message=message, before=before.rows, after=before.rows, refusals=found)
    return summed(verdict, rows, on_target(before, targets))


def moved(
    gathered: Gathered,
    *,
    request: Request,
    done: Pass,
    after: Survey,
    privileged: bool,
    full: Table[WorkPlace, PlaceFull],
) -> Verdict:
    """Return the verdict on what the passes left, as the last survey `after` sees it.

    `done` is the last pass, `full` the places that had no room any more.
    """
    targets = gathered.facts.targets
    meanings = {
        numa_node: meaning_of_refusal(gathered.pins, numa_node=numa_node, pages=pages)
        for numa_node, pages in refused_pages(done.survey, done.trials).items()
    }
    wholly = held_wholly(gathered)
    rows = explain(
        after,
        Overlay(done.survey, done.trials),
        Circumstances(
            targets=targets,
            privileged=privileged,
            untried=done.stopped.reason if done.stopped else Reason.UNEXPLAINED,
            untried_at={} if done.stopped else {place: each.reason for place, each in full.items()},
            refused={numa_node: reason for numa_node, (reason, _) in meanings.items()},
            held={start: count for start, count in gathered.held.items() if start in wholly},
            evidence={
                **({Reason.PINNED_BY_DEVICE: gathered.pins.evidence()} if wholly else {}),
                **_evidence(full.values()),
                **({done.stopped.reason: done.stopped.evidence} if done.stopped else {}),
            },
            evidence_on={(reason, node): seen for node, (reason, seen) in meanings.items()},
        ),
    )
    changes = compare(gathered.before, after, targets=targets)
    verdict = Verdict(
        outcome=Outcome.RESIDUE,
        message="",
        before=gathered.before.rows,
        after=after.rows,
        moved=changes.moved,
        freed=changes.freed,
        grown=changes.grown,
        split=changes.split,
    )
    stopped = done.stopped or next(iter(full.values()), None)
    return judged(summed(verdict, rows, on_target(after, targets)), request, targets, stopped)


def stopped_before(gathered: Gathered, stopped: Stopped, request: Request) -> Verdict:
    """Return the verdict where the run was stopped before anything moved."""
    targets = gathered.facts.targets
    rows = explain(
        gathered.before,
        None,
        Circumstances(
            targets=targets,
            privileged=gathered.privileged,
            untried=stopped.reason,
            evidence={stopped.reason: stopped.evidence},
        ),
    )
    verdict = Verdict(outcome=Outcome.RESIDUE, message="", before=gathered.before.rows, after=gathered.before.rows)
    return judged(summed(verdict, rows, on_target(gathered.before, targets)), request, targets, stopped)


def held_wholly(gathered: Gathered) -> frozenset[int]:
    """Return the mappings that a device holds all of: each try to move a page of them would cost the VM a fault."""
    if not gathered.pins.by_device:
        return frozenset()
    sizes: dict[int, int] = {}
    for part in gathered.before.pages:
        sizes[part.mapping.start] = sizes.get(part.mapping.start, 0) + part.page.size * part.mapping.page_size
    return frozenset(start for start, count in gathered.held.items() if count >= _WHOLLY * sizes.get(start, 0))


def where(targets: Targets) -> str:
    """Return the targets in words."""
    numa_nodes = targets.numa_nodes
    return f"NUMA node {numa_nodes[0]}" if len(numa_nodes) == 1 else f"NUMA nodes {format_list(numa_nodes)}"


def on_target(survey: Survey, targets: Targets) -> int:
    """Return the bytes that are where they were asked to be."""
    if not survey.located:
        return 0 if targets.default is None else survey.on(targets.default)
    return sum(
        int(np.count_nonzero(part.numa_node == target)) * part.mapping.page_size
        for part in survey.pages
        if (target := targets.of(part.mapping)) is not None
    )


def summed(verdict: Verdict, rows: tuple[ResidueRow, ...], there: int) -> Verdict:
    """Return the verdict with its residue and the sums that follow from it; `there` are the bytes on target."""
    total = sum(row.bytes for row in verdict.after)
    return replace(
        verdict,
        residue=rows,
        asked=total - sum(row.bytes for row in rows if row.reason in NOT_ASKED),
        on_target=there,
    )


def judged(verdict: Verdict, request: Request, targets: Targets, stopped: Stopped | None) -> Verdict:
    """Return the verdict with its outcome and message."""
    left = verdict.asked - verdict.on_target
    outcome = Outcome.RESIDUE
    if left <= request.tolerance_bytes + int(request.tolerance_share * verdict.asked):
        outcome = Outcome.PLACED
    elif stopped is not None:
        outcome = _ENDS.get(stopped.reason, Outcome.RESIDUE)
    parts = [
        f"{size_text(verdict.on_target)} of {size_text(verdict.asked)} on {where(targets)}",
        f"{size_text(left)} off target" if left else "",
        stopped.evidence if stopped else "",
    ]
    return replace(verdict, outcome=outcome, message="; ".join(filter(None, parts)))


def _evidence(full: Iterable[PlaceFull]) -> dict[Reason, str]:
    """Return what was seen of places that were full, by reason."""
    found: dict[Reason, str] = {}
    for each in full:
        found[each.reason] = "; ".join(filter(None, (found.get(each.reason), each.evidence)))
    return found
