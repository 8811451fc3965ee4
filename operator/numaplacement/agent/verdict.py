# SPDX-License-Identifier: Apache-2.0
"""From what the engine found to the status of an order. Pure."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from numaplacement.api.conditions import Condition, State, shortened, state_conditions
from numaplacement.api.migration import NO_NUMA_NODE, NumaMigrationStatus, Progress, Residue, Result
from numaplacement.engine import verdict as engine
from numaplacement.reporting.books import books
from numaplacement.reporting.wording import message_of, reason_of, state_of

from .orders import Order
from .support import Refusal

QUEUED = "Queued"
MOVING = "Moving"


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
    target = f" to {spec.target.words}" if spec is not None else ""
    return NumaMigrationStatus(
        observed_generation=moment.order.generation,
        conditions=moment.conditions(State.WORKING, MOVING, f"Moving the VM's memory{target}."),
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
    asked = spec.target.numa_nodes if spec is not None else ()
    row = Residue(
        reason=residue_reason(refusal.reason),
        numa_node=asked[0] if len(asked) == 1 else NO_NUMA_NODE,
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
    return books(verdict).model_copy(
        update={
            "observed_generation": moment.order.generation,
            "conditions": moment.conditions(state_of(verdict), reason_of(verdict), message_of(verdict)),
            "start_time": moment.started,
            "completion_time": moment.now,
        }
    )


def residue_reason(reason: str) -> str:
    """Return a reason as residue rows spell it: ``PodNotFound`` as ``pod-not-found``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", reason).lower()
