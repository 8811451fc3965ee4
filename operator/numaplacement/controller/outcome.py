# SPDX-License-Identifier: Apache-2.0
"""What is to be done about one VM of a placement, and what is said of it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace

from numaplacement.api.conditions import State, find, shortened
from numaplacement.api.migration import (
    UNCOUNTED,
    UNTRIED,
    WOULD_MOVE,
    NumaMigrationStatus,
    OrderTarget,
    Progress,
    Result,
)
from numaplacement.api.placement import VmState, VmStatus
from numaplacement.api.quantities import format_bytes
from numaplacement.api.resources import VM_LABEL, NumaMigration, NumaPlacement, VirtualMachineInstance

from .conflict import winner
from .host_state import obstacle
from .orders import is_finished, is_taken_up, newest_of_instance, same_goal, same_order, wish
from .reasons import Reason
from .rows import waiting_row, with_facts
from .settings import Rules
from .situation import NewOrder, SeenOrder, Situation, Unreadable
from .vm_state import NotRunning, Running, examine


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One VM: its row in status, what state it puts the placement in, and what follows."""

    row: VmStatus
    state: State
    keep: tuple[str, ...] = ()
    """UIDs of the orders that must not be deleted."""
    apply: NewOrder | None = None
    requeue_after: float | None = None


def of_missing_vm(situation: Situation, placement: NumaPlacement, *, name: str) -> Outcome:
    """Decide about a VM that does not exist, or not yet."""
    rival = winner(placement, rivals=situation.rivals, vm=name, labels={})
    if rival is not None:
        return _conflict(placement, rival, name=name)
    message = (
        f"VirtualMachineInstance {name} does not exist in namespace {placement.metadata.namespace}; waiting for it."
    )
    return Outcome(row=waiting_row(name, reason=Reason.VM_NOT_FOUND, message=message), state=State.WORKING)


def of_unreadable_vm(situation: Situation, vmi: Unreadable) -> Outcome:
    """Decide about a VM that cannot be read: wait, and leave its orders alone."""
    name = vmi.metadata.name
    message = f"VirtualMachineInstance {name} cannot be read: {vmi.error}"
    keep = tuple(seen.order.metadata.uid for seen in situation.orders if seen.order.spec.vm.name == name)
    return Outcome(row=waiting_row(name, reason=Reason.UNREADABLE, message=message), state=State.WORKING, keep=keep)


def of_vm(situation: Situation, placement: NumaPlacement, vmi: VirtualMachineInstance, *, rules: Rules) -> Outcome:
    """Decide about a VM that exists."""
    name = vmi.metadata.name
    rival = winner(placement, rivals=situation.rivals, vm=name, labels=vmi.metadata.labels)
    if rival is not None:
        return _conflict(placement, rival, name=name)
    running = examine(vmi)
    if isinstance(running, NotRunning):
        row = waiting_row(name, reason=running.reason, message=running.message, uid=vmi.metadata.uid)
        return Outcome(row=row, state=State.WORKING)
    return _of_running_vm(situation, placement, vmi, running=running, rules=rules)


def _of_running_vm(
    situation: Situation,
    placement: NumaPlacement,
    vmi: VirtualMachineInstance,
    *,
    running: Running,
    rules: Rules,
) -> Outcome:
    row = VmStatus(
        name=vmi.metadata.name,
        state=VmState.WAITING,
        uid=vmi.metadata.uid,
        pod_uid=running.pod_uid,
        node_name=running.host,
    )
    past = newest_of_instance(situation.orders, vmi_uid=vmi.metadata.uid, pod_uid=running.pod_uid)
    target = _target(placement)
    row = with_facts(row, past, target=target)
    strange = unreadable_order(situation, vmi_uid=vmi.metadata.uid)
    if strange is not None:
        text = f"NumaMigration {strange.metadata.name} cannot be read: {strange.error} Delete it to have it made anew."
        return Outcome(row=said(row, VmState.WAITING, Reason.UNREADABLE, text), state=State.WORKING)
    case = _Case(situation=situation, placement=placement, vmi=vmi, running=running, rules=rules, row=row)
    wanted = wish(placement, vmi=vmi, running=running)
    if not past:
        return case.order(attempt=1)
    newest = past[0]
    if newest.order.status.result in _FULFILLED and same_goal(newest.order.spec, wanted.spec):
        return _fulfilled(row, newest.order)
    if not same_order(newest.order.spec, wanted.spec):
        return case.order(attempt=1)
    if is_finished(newest.order):
        return case.after_failure(newest)
    return case.under_way(newest)


_FULFILLED = frozenset({Result.PLACED, Result.PLANNED})


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A running VM whose memory is not where it belongs, as far as is known."""

    situation: Situation
    placement: NumaPlacement
    vmi: VirtualMachineInstance
    running: Running
    rules: Rules
    row: VmStatus

    def order(self, *, attempt: int) -> Outcome:
        """Give an order, if its host can take one."""
        host = self.running.host
        hindrance = obstacle(self.situation.hosts.get(host), name=host, numa_nodes=_target(self.placement).numa_nodes)
        if hindrance is not None:
            state = VmState.REFUSED if hindrance.state is State.STALLED else VmState.WAITING
            return Outcome(row=said(self.row, state, hindrance.reason, hindrance.message), state=hindrance.state)
        new = wish(self.placement, vmi=self.vmi, running=self.running, attempt=attempt)
        metadata = (seen.order.metadata for seen in self.situation.orders)
        if any(each.name == new.name and each.deletion_timestamp is not None for each in metadata):
            text = f"NumaMigration {new.name} is being deleted; it will be made anew once it is gone."
            return Outcome(row=said(self.row, VmState.WAITING, Reason.ORDER_ENDING, text), state=State.WORKING)
        row = said(self.row, VmState.WAITING, Reason.ORDERED, f"Host {host} has been given order {new.name}.")
        return Outcome(
            row=row.model_copy(update={"order": new.name}),
            state=State.WORKING,
            apply=new,
            requeue_after=self.rules.take_up,
        )

    def under_way(self, seen: SeenOrder) -> Outcome:
        """Report an order that its agent has not finished."""
        order, now, rules = seen.order, self.situation.now, self.rules
        outcome = Outcome(row=self.row, state=State.WORKING, keep=(order.metadata.uid,))
        host = self.running.host
        if not is_taken_up(order):
            since = max(order.metadata.creation_timestamp or seen.first_seen, seen.first_seen)
            left = rules.take_up - (now - since).total_seconds()
            if left > 0:
                text = f"Host {host} has been given order {order.metadata.name}."
                return replace(outcome, row=said(self.row, VmState.WAITING, Reason.ORDERED, text), requeue_after=left)
            return replace(
                outcome, row=self._not_responding(f"has not taken up order {order.metadata.name}", rules.take_up)
            )
        progress = order.status.progress
        if progress is not None and progress.stage == "Queued":
            text = f"Host {host} has order {order.metadata.name} in its queue."
            return replace(outcome, row=said(self.row, VmState.WAITING, Reason.QUEUED, text))
        left = rules.silence - (now - seen.changed).total_seconds()
        if left <= 0:
            doing = f"has reported nothing about order {order.metadata.name}"
            return replace(outcome, row=self._not_responding(doing, rules.silence))
        text = moving(progress, target=_target(self.placement))
        return replace(outcome, row=said(self.row, VmState.MOVING, Reason.MOVING, text), requeue_after=left)

    def _not_responding(self, doing: str, seconds: float) -> VmStatus:
        host = self.running.host
        hindrance = obstacle(self.situation.hosts.get(host), name=host)
        if hindrance is not None:
            return said(self.row, VmState.WAITING, hindrance.reason, f"{hindrance.message} It {doing}.")
        text = (
            f"The agent of host {host} {doing} for {seconds:g} s. Check the agent's pod there; "
            "the order stays, and is carried out when the agent comes back."
        )
        return said(self.row, VmState.WAITING, Reason.AGENT_NOT_RESPONDING, text)

    def after_failure(self, seen: SeenOrder) -> Outcome:
        """Try again, or say that it will not be tried again."""
        order = seen.order
        spec, status, limit = order.spec, order.status, self.placement.spec.limits.attempts
        reason, message = verdict(order)
        row = said(self.row, _STATE_AFTER[status.result or Result.FAILED], reason, message)
        final = Outcome(row=row, state=State.STALLED, keep=(order.metadata.uid,))
        if not may_help(status):
            return final
        if spec.attempt >= limit:
            tries = f" Tried {spec.attempt} times." if spec.attempt > 1 else ""
            return replace(final, row=said(row, row.state, reason, message + tries))
        pause = retry_pause(spec.attempt, rules=self.rules)
        next_at = _ended(seen, self.situation.now) + datetime.timedelta(seconds=pause)
        left = (next_at - self.situation.now).total_seconds()
        if left > 0:
            text = f"{message} Attempt {spec.attempt + 1} of {limit} follows at {next_at:%H:%M:%SZ}."
            return replace(final, row=said(row, row.state, reason, text), state=State.WORKING, requeue_after=left)
        following = self.order(attempt=spec.attempt + 1)
        return replace(following, keep=(order.metadata.uid,))


_STATE_AFTER = {
    Result.PLACED: VmState.PLACED,
    Result.PLANNED: VmState.PLANNED,
    Result.RESIDUE: VmState.RESIDUE,
    Result.DEADLINE: VmState.RESIDUE,
    Result.REFUSED: VmState.REFUSED,
    Result.CANCELLED: VmState.FAILED,
    Result.VM_GONE: VmState.FAILED,
    Result.FAILED: VmState.FAILED,
}


def _target(placement: NumaPlacement) -> OrderTarget:
    return OrderTarget(numa_node=placement.spec.numa_node, cells=placement.spec.cells)


def _conflict(placement: NumaPlacement, rival: NumaPlacement, *, name: str) -> Outcome:
    message = (
        f"NumaPlacement {rival.metadata.name} is older and wants VM {name} on {_target(rival).words}, not "
        f"on {_target(placement).words}. Change or delete one of the two."
    )
    row = VmStatus(name=name, state=VmState.REFUSED, reason=Reason.CONFLICT, message=shortened(message))
    return Outcome(row=row, state=State.STALLED)


def _fulfilled(row: VmStatus, order: NumaMigration) -> Outcome:
    status = order.status
    if status.result is Result.PLANNED:
        row = said(row, VmState.PLANNED, Reason.PLANNED, planned(status, target=order.spec.target))
    else:
        text = verdict(order)[1] if status.stayed is False else placed(status, target=order.spec.target)
        row = said(row, VmState.PLACED, Reason.PLACED, text)
    return Outcome(row=row, state=State.READY, keep=(order.metadata.uid,))


def planned(status: NumaMigrationStatus, *, target: OrderTarget) -> str:
    """Return what a dry run has found, in a sentence."""
    off = max(0, status.asked - status.on_target)
    would_move = sum(each.bytes for each in status.residue if each.reason == WOULD_MOVE)
    text = f"Dry run: {format_bytes(would_move)} of {format_bytes(status.asked)} would be moved to {target.words}"
    stay = f", {format_bytes(off - would_move)} would stay behind" if off > would_move else ""
    return f"{text}{stay}. Nothing was touched."


def placed(status: NumaMigrationStatus, *, target: OrderTarget) -> str:
    """Return what was reached, in a sentence."""
    if status.on_target >= status.asked:
        threads = status.threads.message if status.threads is not None else ""
        return f"All {format_bytes(status.asked)} are on {target.words}." + (f" Threads: {threads}." if threads else "")
    return (
        f"{format_bytes(status.on_target)} of {format_bytes(status.asked)} are on {target.words}; "
        "the rest is within the tolerance."
    )


def said(row: VmStatus, state: VmState, reason: str, message: str) -> VmStatus:
    """Return `row` with another state, reason and message."""
    return row.model_copy(update={"state": state, "reason": str(reason), "message": shortened(message)})


def unreadable_order(situation: Situation, *, vmi_uid: str) -> Unreadable | None:
    """Return an order about the instance that cannot be read, if there is one."""
    mine = (order for order in situation.unreadable_orders if order.metadata.labels.get(VM_LABEL) == vmi_uid)
    return min(mine, key=lambda order: order.metadata.name, default=None)


def may_help(status: NumaMigrationStatus) -> bool:
    """Say whether another attempt may get further.

    After a refusal: unless what it was refused for lasts. Else: unless all that counts stayed behind for good.
    """
    counted = [row for row in status.residue if row.reason not in UNCOUNTED]
    if status.result is not Result.REFUSED:
        return not counted or any(not row.permanent for row in counted)
    causes = [row for row in counted if row.reason != UNTRIED] or counted
    return not causes or not max(causes, key=lambda row: row.bytes).permanent


def retry_pause(attempt: int, *, rules: Rules) -> float:
    """Return the seconds between the end of `attempt` and the next one."""
    return min(rules.retry * 2.0 ** (attempt - 1), rules.retry_limit)


def verdict(order: NumaMigration) -> tuple[str, str]:
    """Return the agent's reason and message for how the order ended."""
    result = order.status.result or Result.FAILED
    ready = find(order.status.conditions, "Ready")
    if ready is None:
        return str(result), f"Order {order.metadata.name} ended: {result}."
    return ready.reason, ready.message or f"Order {order.metadata.name} ended: {result}."


def moving(progress: Progress | None, *, target: OrderTarget) -> str:
    """Return how far a move is, in a sentence."""
    if progress is None or not progress.bytes_total:
        stage = progress.stage if progress is not None else "Survey"
        return f"Moving to {target.words}: {stage}."
    percent = min(100, progress.bytes_done * 100 // progress.bytes_total)
    done, total = format_bytes(progress.bytes_done), format_bytes(progress.bytes_total)
    rate = f" at {format_bytes(progress.bytes_per_second)}/s" if progress.bytes_per_second else ""
    return f"Moving to {target.words}: {progress.stage}, {percent}% ({done} of {total}){rate}."


def _ended(seen: SeenOrder, now: datetime.datetime) -> datetime.datetime:
    # The agent's clock may differ from ours: an end later than when it was seen here cannot be true.
    known = [time for time in (seen.order.status.completion_time, seen.finished) if time is not None]
    return min(known, default=now)
