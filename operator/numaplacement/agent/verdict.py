# SPDX-License-Identifier: Apache-2.0
"""From what the engine found to the status of an order. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass

from numaplacement.api.conditions import Condition, State, shortened, state_conditions
from numaplacement.api.migration import (
    Calls,
    ClassBytes,
    NumaMigrationStatus,
    PageClass,
    Progress,
    Residue,
    Result,
    ThreadReport,
)
from numaplacement.api.quantities import format_seconds
from numaplacement.engine import verdict as engine
from numaplacement.engine.listformat import format_list
from numaplacement.engine.reasons import NOT_ASKED, Reason

from .orders import Order
from .support import Refusal

QUEUED = "Queued"
MOVING = "Moving"

RESULTS = {
    engine.Outcome.PLACED: Result.PLACED,
    engine.Outcome.RESIDUE: Result.RESIDUE,
    engine.Outcome.REFUSED: Result.REFUSED,
    engine.Outcome.PLANNED: Result.PLANNED,
    engine.Outcome.CANCELLED: Result.CANCELLED,
    engine.Outcome.DEADLINE: Result.DEADLINE,
    engine.Outcome.PROCESS_GONE: Result.VM_GONE,
}
_DONE = frozenset({engine.Outcome.PLACED, engine.Outcome.PLANNED})
_NAMED_BY_RESIDUE = frozenset({engine.Outcome.RESIDUE, engine.Outcome.REFUSED})


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What every status of an order says besides what it is about: when, and since when."""

    order: Order
    started: datetime.datetime
    now: datetime.datetime

    def conditions(self, state: State, reason: str, message: str) -> tuple[Condition, ...]:
        """Return the three conditions, with the transition times of those the order has already."""
        return state_conditions(
            state,
            reason=reason,
            message=message,
            generation=self.order.generation,
            now=self.now,
            previous=self.order.conditions,
        )


def queued(order: Order, *, now: datetime.datetime) -> NumaMigrationStatus:
    """Return the status of an order that waits for its turn."""
    moment = Moment(order=order, started=now, now=now)
    return NumaMigrationStatus(
        observed_generation=order.generation,
        conditions=moment.conditions(State.WORKING, QUEUED, "Waits for its turn: this host moves one VM at a time."),
        start_time=order.started,
        progress=Progress(stage=QUEUED),
    )


def under_way(moment: Moment, progress: engine.Progress) -> NumaMigrationStatus:
    """Return the status of an order that is being carried out."""
    spec = moment.order.spec
    target = spec.target.numa_node if spec is not None else None
    return NumaMigrationStatus(
        observed_generation=moment.order.generation,
        conditions=moment.conditions(State.WORKING, MOVING, f"Moving the VM's memory to NUMA node {target}."),
        start_time=moment.started,
        progress=Progress(
            stage=str(progress.stage),
            pass_number=progress.pass_number,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            bytes_per_second=progress.bytes_per_second,
        ),
    )


def refused(moment: Moment, refusal: Refusal) -> NumaMigrationStatus:
    """Return the verdict on an order that never came to the engine: nothing was touched or counted."""
    spec = moment.order.spec
    row = Residue(
        reason=residue_reason(refusal.reason),
        numa_node=(spec.target.numa_node if spec is not None else None) or 0,
        bytes=0,
        permanent=refusal.permanent,
        evidence=shortened(refusal.seen),
        remedy=shortened(refusal.remedy),
    )
    return NumaMigrationStatus(
        observed_generation=moment.order.generation,
        conditions=moment.conditions(State.STALLED, refusal.reason, f"{refusal.seen} {refusal.remedy}"),
        result=refusal.result,
        start_time=moment.started,
        completion_time=moment.now,
        residue=(row,),
    )


def failed(moment: Moment, *, reason: str, message: str) -> NumaMigrationStatus:
    """Return the verdict on an order that a fault kept from being carried out."""
    return NumaMigrationStatus(
        observed_generation=moment.order.generation,
        conditions=moment.conditions(State.STALLED, reason, message),
        result=Result.FAILED,
        start_time=moment.started,
        completion_time=moment.now,
    )


def judged(moment: Moment, verdict: engine.Verdict) -> NumaMigrationStatus:
    """Return the status that says all the engine found."""
    state = State.READY if verdict.outcome in _DONE else State.STALLED
    return NumaMigrationStatus(
        observed_generation=moment.order.generation,
        conditions=moment.conditions(state, reason_of(verdict), message_of(verdict)),
        result=RESULTS[verdict.outcome],
        start_time=moment.started,
        completion_time=moment.now,
        before=_class_bytes(verdict.before),
        after=_class_bytes(verdict.after),
        asked=verdict.asked,
        on_target=verdict.on_target,
        moved=verdict.moved,
        freed=verdict.freed,
        grown=verdict.grown,
        split=verdict.split,
        residue=tuple(_residue(row) for row in sorted(verdict.residue, key=lambda row: -row.bytes)),
        threads=ThreadReport(
            followed=verdict.threads.followed,
            left=verdict.threads.left,
            cpus=format_list(verdict.threads.cpus),
            message=shortened(verdict.threads.message),
        ),
        calls=Calls(
            count=verdict.calls.count, p50=format_seconds(verdict.calls.p50), p99=format_seconds(verdict.calls.p99)
        ),
        rate=int(verdict.moved / verdict.move_seconds) if verdict.move_seconds > 0 else 0,
        seconds=round(verdict.seconds, 3),
        passes=verdict.passes,
    )


def reason_of(verdict: engine.Verdict) -> str:
    """Return the condition reason: the result, or why most of what stayed behind stayed, PinnedByDevice for example."""
    if verdict.outcome in _NAMED_BY_RESIDUE:
        first = verdict.refusals[0].reason if verdict.refusals else dominant(verdict.residue)
        if first is not None:
            return condition_reason(first)
    return str(RESULTS[verdict.outcome])


def message_of(verdict: engine.Verdict) -> str:
    """Return the condition message: what the engine says, and the remedy where there is something to remedy."""
    if verdict.refusals:
        remedy = verdict.refusals[0].remedy
    elif verdict.outcome in _NAMED_BY_RESIDUE:
        worst = dominant(verdict.residue)
        remedy = next((row.remedy for row in verdict.residue if row.reason is worst), "")
    else:
        remedy = ""
    return f"{sentence(verdict.message)} {remedy}".rstrip()


def dominant(rows: Iterable[engine.ResidueRow]) -> Reason | None:
    """Return the reason of most bytes, of what was asked to move; None when all of that is on target."""
    sums: dict[Reason, int] = {}
    for row in rows:
        if row.reason not in NOT_ASKED:
            sums[row.reason] = sums.get(row.reason, 0) + row.bytes
    return max(sums, key=lambda reason: sums[reason], default=None)


def sentence(text: str) -> str:
    """Return the engine's clauses as a sentence: with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def condition_reason(reason: Reason) -> str:
    """Return a reason as conditions spell it: ``pinned-by-device`` as ``PinnedByDevice``."""
    if reason is Reason.NODE_HAS_NO_MEMORY:
        return "NumaNodeHasNoMemory"  # on an API whose nodes are hosts
    return "".join(word.capitalize() for word in reason.split("-"))


def residue_reason(reason: str) -> str:
    """Return a reason as residue rows spell it: ``PodNotFound`` as ``pod-not-found``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", reason).lower()


def _class_bytes(rows: Iterable[engine.ClassBytes]) -> tuple[ClassBytes, ...]:
    return tuple(
        ClassBytes(numa_node=row.numa_node, page_class=PageClass(row.page_class), bytes=row.bytes) for row in rows
    )


def _residue(row: engine.ResidueRow) -> Residue:
    return Residue(
        reason=str(row.reason),
        numa_node=row.numa_node,
        bytes=row.bytes,
        permanent=row.permanent,
        evidence=shortened(row.evidence),
        remedy=shortened(row.remedy),
    )
