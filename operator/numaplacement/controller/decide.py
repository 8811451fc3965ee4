# SPDX-License-Identifier: Apache-2.0
"""What is to be done about one placement, and what is said of it: a pure function of what is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from numaplacement.api.conditions import State, state_conditions
from numaplacement.api.placement import NumaPlacementStatus, VmState, VmStatus
from numaplacement.api.resources import NumaPlacement

from .orders import is_finished, outdated, unfinished
from .outcome import Outcome, of_missing_vm, of_unreadable_vm, of_vm, said
from .reasons import Reason
from .rows import shown, summary, worst_first
from .selection import describe
from .settings import Rules
from .situation import Decision, Situation, Unreadable
from .supported import unsupported
from .vm_state import FINAL_PHASES


def decide(situation: Situation, *, rules: Rules) -> Decision:
    """Return the orders to give and to take back, and the status, of `situation`'s placement."""
    placement = situation.placement
    if isinstance(placement, Unreadable):
        return _unreadable(situation, placement)
    if placement.metadata.deletion_timestamp is not None:
        return Decision(delete=unfinished(situation.orders, keep=()))
    if complaint := unsupported(placement.spec):
        overall = (State.STALLED, str(Reason.NOT_SUPPORTED), complaint)
        outcomes = _halted(situation, placement, VmState.REFUSED, Reason.NOT_SUPPORTED, complaint, rules=rules)
    elif placement.spec.suspend:
        overall = (State.IDLE, str(Reason.SUSPENDED), _SUSPENDED)
        outcomes = _halted(situation, placement, VmState.WAITING, Reason.SUSPENDED, _SUSPENDED, rules=rules)
    else:
        outcomes = _outcomes(situation, placement, rules=rules)
        overall = _overall(placement, outcomes)
    return _decision(situation, placement, outcomes, rules=rules, overall=overall)


_SUSPENDED = "spec.suspend is set: nothing is moved until it is taken away."


def _unreadable(situation: Situation, placement: Unreadable) -> Decision:
    if placement.metadata.deletion_timestamp is not None:
        return Decision()
    generation = placement.metadata.generation
    conditions = state_conditions(
        State.STALLED,
        reason=Reason.UNREADABLE,
        message=f"This version of the operator cannot read the spec: {placement.error}",
        generation=generation,
        now=situation.now,
        previous=placement.status.conditions,
    )
    return Decision(
        status=placement.status.model_copy(update={"observed_generation": generation, "conditions": conditions})
    )


def _outcomes(situation: Situation, placement: NumaPlacement, *, rules: Rules) -> tuple[Outcome, ...]:
    name = placement.spec.vm.name
    if name is not None and not situation.vmis:
        return (of_missing_vm(situation, placement, name=name),)
    return tuple(
        of_unreadable_vm(situation, vmi)
        if isinstance(vmi, Unreadable)
        else of_vm(situation, placement, vmi, rules=rules)
        for vmi in situation.vmis
        # An instance that has ended and is one of many is nothing to wait for.
        if name is not None or isinstance(vmi, Unreadable) or vmi.status.phase not in FINAL_PHASES
    )


def _halted(
    situation: Situation, placement: NumaPlacement, state: VmState, reason: Reason, message: str, *, rules: Rules
) -> tuple[Outcome, ...]:
    """Return the outcomes with nothing done about any VM; what is placed already is still said to be."""
    # What is under way is taken back, so nothing of it is told.
    past = replace(situation, orders=tuple(seen for seen in situation.orders if is_finished(seen.order)))
    halted = []
    for outcome in _outcomes(past, placement, rules=rules):
        row = outcome.row
        if outcome.apply is not None:
            row = row.model_copy(update={"order": ""})
        if outcome.state is not State.READY:
            row = said(row, state, reason, message)
        halted.append(Outcome(row=row, state=outcome.state))
    return tuple(halted)


def _overall(placement: NumaPlacement, outcomes: Sequence[Outcome]) -> tuple[State, str, str]:
    """Return state, reason and message of the whole from those of its VMs."""
    if not outcomes:
        chosen, namespace = describe(placement.spec.vm), placement.metadata.namespace
        message = f"No VirtualMachineInstance in namespace {namespace} is among the {chosen}; waiting for one."
        return State.WORKING, Reason.VM_NOT_FOUND, message
    state = next(
        state for state in (State.WORKING, State.STALLED, State.READY) if any(each.state is state for each in outcomes)
    )
    leading = worst_first(each.row for each in outcomes if each.state is state)[0]
    if len(outcomes) == 1:
        return state, leading.reason, leading.message
    return state, leading.reason, _of_many(state, leading, [each.row for each in outcomes])


def _of_many(state: State, leading: VmStatus, rows: Sequence[VmStatus]) -> str:
    done = sum(row.state in (VmState.PLACED, VmState.PLANNED) for row in rows)
    if state is State.READY:
        return f"All {len(rows)} VMs: {leading.reason}."
    return f"{done} of {len(rows)} VMs are done. {leading.name}: {leading.message}"


def _decision(
    situation: Situation,
    placement: NumaPlacement,
    outcomes: Sequence[Outcome],
    *,
    rules: Rules,
    overall: tuple[State, str, str],
) -> Decision:
    state, reason, message = overall
    keep = [uid for outcome in outcomes for uid in outcome.keep]
    generation = placement.metadata.generation
    rows = [outcome.row for outcome in outcomes]
    waits = [outcome.requeue_after for outcome in outcomes if outcome.requeue_after is not None]
    return Decision(
        apply=tuple(outcome.apply for outcome in outcomes if outcome.apply is not None),
        delete=unfinished(situation.orders, keep=keep)
        + outdated(situation.orders, current_vms=[row.name for row in rows], keep=keep, history=rules.history),
        status=NumaPlacementStatus(
            observed_generation=generation,
            conditions=state_conditions(
                state,
                reason=reason,
                message=message,
                generation=generation,
                now=situation.now,
                previous=placement.status.conditions,
            ),
            summary=summary(rows),
            vms=shown(rows),
        ),
        requeue_after=min(waits, default=None),
    )
