# SPDX-License-Identifier: Apache-2.0
"""One placement about one VM: what is ordered, what is taken back, what is said, and what Flux makes of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from numaplacement.api.conditions import State, state_conditions
from numaplacement.api.migration import UNCOUNTED, UNTRIED, WOULD_MOVE, NumaMigrationStatus
from numaplacement.api.placement import NumaPlacementStatus
from numaplacement.api.resources import GENERATION_LABEL, PLACEMENT_LABEL, VM_LABEL, Document, to_document
from numaplacement.controller.orders import order_document
from numaplacement.controller.outcome import may_help
from numaplacement.controller.situation import Decision, Situation, Unreadable
from tests.unit.controller_scene import (
    MI,
    NOW,
    decided,
    ended,
    host,
    kstatus_of,
    message,
    order_for,
    placement,
    residue,
    scene,
    seen,
    stamp,
    taken_up,
    vmi,
    word,
)

DB = placement()
VM = vmi()
PERMANENT = residue("pinned-by-device", permanent=True)


def order(*, of: Any = DB, vm: Any = VM, **facts: Any) -> Document:
    return order_for(of, vm, **facts)


def verdict(result: str, *, attempt: int = 1, **facts: Any) -> Document:
    return order(attempt=attempt, **ended(result, **facts))


def unreadable(thing: Any) -> Unreadable:
    return Unreadable(metadata=thing.metadata, error="spec.x: Extra inputs are not permitted.")


# name: (situation, (condition, reason), attempts ordered, deletions, kstatus)
TABLE: dict[str, tuple[Situation, tuple[str, str], list[int], int, str]] = {
    "no such VM": (scene(DB), ("Reconciling", "VmNotFound"), [], 0, "InProgress"),
    "no such VM any more: its order goes": (
        scene(DB, orders=(seen(order()),)), ("Reconciling", "VmNotFound"), [], 1, "InProgress",
    ),
    "no such VM any more: its verdict stays": (
        scene(DB, orders=(seen(verdict("Placed")),)), ("Reconciling", "VmNotFound"), [], 0, "InProgress",
    ),
    "VM is being scheduled": (
        scene(DB, vmi(phase="Scheduling")), ("Reconciling", "VmNotRunning"), [], 0, "InProgress",
    ),
    "VM has failed": (scene(DB, vmi(phase="Failed")), ("Reconciling", "VmNotRunning"), [], 0, "InProgress"),
    "VM is shutting down while it is moved": (
        scene(DB, vmi(deleted=True), orders=(seen(order(**taken_up())),)),
        ("Reconciling", "VmNotRunning"), [], 1, "InProgress",
    ),
    "VM is being live-migrated": (
        scene(DB, vmi(pods={"pod-of-db": "h1", "next": "h2"})), ("Reconciling", "VmMigrating"), [], 0, "InProgress",
    ),
    "a live migration begins while it is moved": (
        scene(DB, vmi(pods={"pod-of-db": "h1", "next": "h2"}), orders=(seen(order(**taken_up())),)),
        ("Reconciling", "VmMigrating"), [], 1, "InProgress",
    ),
    "no agent on the host": (scene(DB, VM, hosts={}), ("Reconciling", "AgentAbsent"), [], 0, "InProgress"),
    "only other hosts have agents": (
        scene(DB, VM, hosts={"h2": host("h2")}), ("Reconciling", "AgentAbsent"), [], 0, "InProgress",
    ),
    "agent failed its self-test": (
        scene(DB, VM, hosts={"h1": host(ready="False", message="no CAP_SYS_NICE")}),
        ("Reconciling", "AgentNotReady"), [], 0, "InProgress",
    ),
    "host cannot be read": (
        scene(DB, VM, hosts={"h1": unreadable(host())}), ("Reconciling", "Unreadable"), [], 0, "InProgress",
    ),
    "no such NUMA node": (
        scene(placement(numaNode=9), VM), ("Stalled", "NumaNodeNotFound"), [], 0, "Failed",
    ),
    "VM cannot be read": (scene(DB, unreadable(VM)), ("Reconciling", "Unreadable"), [], 0, "InProgress"),
    "VM cannot be read while it is moved: the order stays": (
        scene(DB, unreadable(VM), orders=(seen(order(**taken_up())),)),
        ("Reconciling", "Unreadable"), [], 0, "InProgress",
    ),
    "placement cannot be read": (scene(unreadable(DB), VM), ("Stalled", "Unreadable"), [], 0, "Failed"),
    "placement cannot be read: its orders stay": (
        scene(unreadable(DB), orders=(seen(order()),)), ("Stalled", "Unreadable"), [], 0, "Failed",
    ),
    "an order of it cannot be read": (
        scene(DB, VM, unreadable_orders=(unreadable(seen(order()).order),)),
        ("Reconciling", "Unreadable"), [], 0, "InProgress",
    ),
    "all is well: an order": (scene(DB, VM), ("Reconciling", "Ordered"), [1], 0, "InProgress"),
    "an order just given": (
        scene(DB, VM, orders=(seen(order(created=0), first=0),)), ("Reconciling", "Ordered"), [], 0, "InProgress",
    ),
    "an order its agent does not notice": (
        scene(DB, VM, orders=(seen(order(created=-31)),)), ("Reconciling", "AgentNotResponding"), [], 0, "InProgress",
    ),
    "an old order that this process has only just seen": (
        scene(DB, VM, orders=(seen(order(created=-3000), first=-1),)), ("Reconciling", "Ordered"), [], 0, "InProgress",
    ),
    "an order not noticed, and the host is gone": (
        scene(DB, VM, hosts={}, orders=(seen(order(created=-31)),)),
        ("Reconciling", "AgentAbsent"), [], 0, "InProgress",
    ),
    "an order not noticed, and the agent is not ready": (
        scene(DB, VM, hosts={"h1": host(ready="False", message="x")}, orders=(seen(order(created=-31)),)),
        ("Reconciling", "AgentNotReady"), [], 0, "InProgress",
    ),
    "queued": (
        scene(DB, VM, orders=(seen(order(**taken_up(progress={"stage": "Queued"})), changed=-9000),)),
        ("Reconciling", "Queued"), [], 0, "InProgress",
    ),
    "taken up": (scene(DB, VM, orders=(seen(order(**taken_up())),)), ("Reconciling", "Moving"), [], 0, "InProgress"),
    "moving": (
        scene(DB, VM, orders=(seen(order(**taken_up(progress={"stage": "Move", "bytesTotal": 9})), changed=-290),)),
        ("Reconciling", "Moving"), [], 0, "InProgress",
    ),
    "moving, without a word for long": (
        scene(DB, VM, orders=(seen(order(**taken_up(progress={"stage": "Move"})), changed=-300),)),
        ("Reconciling", "AgentNotResponding"), [], 0, "InProgress",
    ),
    "placed": (scene(DB, VM, orders=(seen(verdict("Placed")),)), ("Ready", "Placed"), [], 0, "Current"),
    "placed, and the agent has gone since": (
        scene(DB, VM, hosts={}, orders=(seen(verdict("Placed")),)), ("Ready", "Placed"), [], 0, "Current",
    ),
    "placed on a second attempt": (
        scene(DB, VM, orders=(seen(verdict("Residue", seconds_ago=2000)), seen(verdict("Placed", attempt=2)))),
        ("Ready", "Placed"), [], 0, "Current",
    ),
    "suspended": (scene(placement(suspend=True), VM), ("Idle", "Suspended"), [], 0, "InProgress"),
    "suspended, and no such VM": (scene(placement(suspend=True)), ("Idle", "Suspended"), [], 0, "InProgress"),
    "suspended while it is moved": (
        scene(placement(suspend=True, generation=2), VM, orders=(seen(order(**taken_up())),)),
        ("Idle", "Suspended"), [], 1, "InProgress",
    ),
    "suspended once placed": (
        scene(placement(suspend=True, generation=2), VM, orders=(seen(verdict("Placed")),)),
        ("Idle", "Suspended"), [], 0, "InProgress",
    ),
    "suspended and not supported": (
        scene(placement(suspend=True, mode="Keep"), VM), ("Stalled", "NotSupported"), [], 0, "Failed",
    ),
    "mode Keep": (scene(placement(mode="Keep"), VM), ("Stalled", "NotSupported"), [], 0, "Failed"),
    "mode Keep, and no such VM": (scene(placement(mode="Keep")), ("Stalled", "NotSupported"), [], 0, "Failed"),
    "cells": (
        scene(placement(cells=[{"cell": 0, "numaNode": 1}]), VM), ("Reconciling", "Ordered"), [1], 0, "InProgress",
    ),
    "cells, one of them where the host has no NUMA node": (
        scene(placement(cells=[{"cell": 0, "numaNode": 1}, {"cell": 1, "numaNode": 9}]), VM),
        ("Stalled", "NumaNodeNotFound"), [], 0, "Failed",
    ),
    "allow": (scene(placement(allow=["Reclaim"]), VM), ("Reconciling", "Ordered"), [1], 0, "InProgress"),
    "changed to something not supported while it is moved": (
        scene(placement(mode="Keep", generation=2), VM, orders=(seen(order(**taken_up())),)),
        ("Stalled", "NotSupported"), [], 1, "Failed",
    ),
    "an older placement wants it elsewhere": (
        scene(DB, VM, rivals=(placement("old", created=-9999, numaNode=1),)), ("Stalled", "Conflict"), [], 0, "Failed",
    ),
    "an older placement wants it elsewhere, before it exists": (
        scene(DB, rivals=(placement("old", created=-9999, numaNode=1),)), ("Stalled", "Conflict"), [], 0, "Failed",
    ),
    "an older placement came to want it while it is moved": (
        scene(DB, VM, rivals=(placement("old", created=-9999, numaNode=1),), orders=(seen(order(**taken_up())),)),
        ("Stalled", "Conflict"), [], 1, "Failed",
    ),
    "a younger placement wants it elsewhere": (
        scene(DB, VM, rivals=(placement("new", created=-1, numaNode=1),)),
        ("Reconciling", "Ordered"), [1], 0, "InProgress",
    ),
    "another placement wants it in the same place": (
        scene(DB, VM, rivals=(placement("old", created=-9999),)), ("Reconciling", "Ordered"), [1], 0, "InProgress",
    ),
    "planned": (
        scene(placement(dryRun=True), VM, orders=(seen(order(of=placement(dryRun=True), **ended("Planned"))),)),
        ("Ready", "Planned"), [], 0, "Current",
    ),
    "a dry run made real": (
        scene(placement(generation=2), VM, orders=(seen(order(of=placement(dryRun=True), **ended("Planned"))),)),
        ("Reconciling", "Ordered"), [1], 0, "InProgress",
    ),
    "another NUMA node while it is moved": (
        scene(placement(numaNode=1, generation=2), VM, orders=(seen(order(**taken_up())),)),
        ("Reconciling", "Ordered"), [1], 1, "InProgress",
    ),
    "another NUMA node once placed": (
        scene(placement(numaNode=1, generation=2), VM, orders=(seen(verdict("Placed")),)),
        ("Reconciling", "Ordered"), [1], 0, "InProgress",
    ),
    "back to a NUMA node it was on earlier": (
        scene(
            placement(generation=3), VM,
            orders=(
                seen(verdict("Placed")),
                seen(order(of=placement(numaNode=1, generation=2), **ended("Placed"))),
            ),
        ),
        ("Reconciling", "Ordered"), [1], 0, "InProgress",
    ),
    "the VM was started again": (
        scene(DB, vmi(uid="second", pods={"second-pod": "h1"}), orders=(seen(verdict("Placed")),)),
        ("Reconciling", "Ordered"), [1], 0, "InProgress",
    ),
    "the VM was started again while it was moved": (
        scene(DB, vmi(uid="second", pods={"second-pod": "h1"}), orders=(seen(order(**taken_up())),)),
        ("Reconciling", "Ordered"), [1], 1, "InProgress",
    ),
    "the VM was live-migrated": (
        scene(
            DB, vmi(pods={"second-pod": "h2"}, host="h2"), hosts={"h2": host("h2")}, orders=(seen(verdict("Placed")),)
        ),
        ("Reconciling", "Ordered"), [1], 0, "InProgress",
    ),
    "an order of the same name is being deleted": (
        scene(DB, VM, orders=(seen(order(deleting=True)),)), ("Reconciling", "OrderEnding"), [], 0, "InProgress",
    ),
    "everything pinned": (
        scene(DB, VM, orders=(seen(verdict("Refused", reason="PinnedByDevice", rows=[PERMANENT])),)),
        ("Stalled", "PinnedByDevice"), [], 0, "Failed",
    ),
    "most of it pinned, some not": (
        scene(DB, VM, orders=(seen(verdict("Residue", reason="PinnedByDevice", rows=[PERMANENT, residue()])),)),
        ("Reconciling", "Ordered"), [2], 0, "InProgress",
    ),
    "all that counts is pinned": (
        scene(
            DB, VM,
            orders=(seen(verdict("Residue", reason="PinnedByDevice", rows=[PERMANENT, residue("shared-file")])),),
        ),
        ("Stalled", "PinnedByDevice"), [], 0, "Failed",
    ),
    "too full, not long ago": (
        scene(DB, VM, orders=(seen(verdict("Refused", reason="DestinationFull", rows=[residue()], seconds_ago=4)),)),
        ("Reconciling", "DestinationFull"), [], 0, "InProgress",
    ),
    "too full three times": (
        scene(DB, VM, orders=(seen(verdict("Refused", attempt=3, reason="DestinationFull", rows=[residue()])),)),
        ("Stalled", "DestinationFull"), [], 0, "Failed",
    ),
    "an attempt left, and the host is gone": (
        scene(DB, VM, hosts={}, orders=(seen(verdict("Failed")),)), ("Reconciling", "AgentAbsent"), [], 0, "InProgress",
    ),
    "another wish after the last attempt": (
        scene(
            placement(generation=2, priority=5), VM,
            orders=(seen(verdict("Failed", attempt=3)),),
        ),
        ("Reconciling", "Ordered"), [1], 0, "InProgress",
    ),
    "more attempts granted after the last": (
        scene(placement(generation=2, limits={"attempts": 5}), VM, orders=(seen(verdict("Failed", attempt=3)),)),
        ("Reconciling", "Ordered"), [4], 0, "InProgress",
    ),
    "fewer attempts granted": (
        scene(placement(generation=2, limits={"attempts": 1}), VM, orders=(seen(verdict("Failed", attempt=1)),)),
        ("Stalled", "Failed"), [], 0, "Failed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_is_decided(name: str) -> None:
    situation, expected, attempts, deletions, flux = TABLE[name]
    decision = decided(situation)
    assert word(decision) == expected
    assert [new.spec.attempt for new in decision.apply] == attempts
    assert len(decision.delete) == deletions
    assert kstatus_of(situation, decision) == flux
    assert message(decision).endswith((".", "Z."))


@pytest.mark.parametrize("name", TABLE)
def test_the_same_is_decided_again_once_it_is_written(name: str) -> None:
    situation, *_ = TABLE[name]
    first = decided(situation)
    assert first.status is not None
    later = NOW + datetime.timedelta(seconds=1)
    if isinstance(situation.placement, Unreadable):
        stored: Any = replace(situation.placement, status=first.status)
    else:
        written = to_document(first.status)
        stored = situation.placement.model_copy(update={"status": NumaPlacementStatus.model_validate(written)})
    given = tuple(
        seen(
            order_document(new)
            | {"metadata": order_document(new)["metadata"] | {"uid": "new", "creationTimestamp": stamp(NOW)}},
            first=0,
        )
        for new in first.apply
    )
    gone = {old.uid for old in first.delete}
    orders = tuple(each for each in situation.orders if each.order.metadata.uid not in gone) + given
    again = decided(replace(situation, placement=stored, now=later, orders=orders))
    assert not again.apply
    assert not again.delete
    assert again.status is not None
    # The wait for the second attempt tells no passing time, and an order given is still one just given.
    assert to_document(again.status) == to_document(stored.status)


RESULTS = ("Residue", "Refused", "DeadlineExceeded", "VmGone", "Failed", "Cancelled")


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("attempt", [1, 2, 3, 4])
@pytest.mark.parametrize("limit", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [[], [residue()], [PERMANENT], [PERMANENT, residue()]], ids=str)
def test_attempts(result: str, attempt: int, limit: int, rows: list[Document]) -> None:
    wanted = placement(limits={"attempts": limit})
    past = order(of=wanted, attempt=attempt, **ended(result, reason="Because", message="So it is.", rows=rows))
    situation = scene(wanted, VM, orders=(seen(past),))
    decision = decided(situation)
    # The two rows hold as many bytes: of a refusal the first is the cause.
    hopeless = PERMANENT in rows and (result == "Refused" or len(rows) == 1)
    if hopeless or attempt >= limit:
        assert word(decision) == ("Stalled", "Because")
        assert message(decision).startswith("So it is.")
        assert not decision.apply
        assert kstatus_of(situation, decision) == "Failed"
    else:
        assert [new.spec.attempt for new in decision.apply] == [attempt + 1]
        assert kstatus_of(situation, decision) == "InProgress"
    assert not decision.delete


@pytest.mark.parametrize(
    ("attempt", "pause"), [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 320), (7, 600), (8, 600), (99, 600)]
)
def test_attempts_come_ever_later(attempt: int, pause: float) -> None:
    wanted = placement(limits={"attempts": 100})

    def after(seconds: float) -> Decision:
        past = order(of=wanted, attempt=attempt, created=-9999, **ended("Failed", seconds_ago=seconds))
        return decided(scene(wanted, VM, orders=(seen(past),)))

    before = after(pause - 1)
    assert word(before) == ("Reconciling", "Failed")
    assert f"Attempt {attempt + 1} of 100 follows at 12:00:01Z." in message(before)
    assert before.requeue_after == pytest.approx(1)
    assert after(pause).apply


@pytest.mark.parametrize(("completed_ago", "finished_ago"), [(-3600.0, 10.0), (10.0, 10.0), (10.0, 1.0), (3600.0, 0.0)])
def test_a_clock_that_runs_ahead_on_the_host_delays_nothing(completed_ago: float, finished_ago: float) -> None:
    past = order(created=-9999, **ended("Failed", seconds_ago=completed_ago))
    decision = decided(scene(DB, VM, orders=(seen(past, finished=-finished_ago),)))
    assert [new.spec.attempt for new in decision.apply] == [2]


@pytest.mark.parametrize(
    ("created", "first", "expected", "wait"),
    [
        (0.0, 0.0, "Ordered", 30.0),
        (-29.0, -29.0, "Ordered", 1.0),
        (-30.0, -30.0, "AgentNotResponding", None),
        (-300.0, -29.0, "Ordered", 1.0),
        (-29.0, -300.0, "Ordered", 1.0),
        (-300.0, -300.0, "AgentNotResponding", None),
    ],
)
def test_an_agent_has_time_to_notice(created: float, first: float, expected: str, wait: float | None) -> None:
    decision = decided(scene(DB, VM, orders=(seen(order(created=created), first=first),)))
    assert word(decision) == ("Reconciling", expected)
    assert decision.requeue_after == wait
    assert not decision.delete


def test_an_order_says_all_that_the_placement_says() -> None:
    wanted = placement(
        numaNode=2, threads="Leave", tolerance="0.5%", priority=-3, dryRun=True,
        limits={"bandwidth": "500Mi", "callLatency": "5ms", "deadline": "1h", "attempts": 7},
    )  # fmt: skip
    [new] = decided(scene(wanted, VM)).apply
    document = order_document(new)
    assert document["spec"] == {
        "nodeName": "h1",
        "vm": {"name": "db", "uid": "vmi-of-db", "firmwareUUID": "firmware-of-db"},
        "podUID": "pod-of-db",
        "target": {"numaNode": 2},
        "threads": "Leave",
        "allow": [],
        "limits": {"bandwidth": "500Mi", "callLatency": "5ms", "deadline": "1h", "attempts": 7},
        "tolerance": "0.5%",
        "priority": -3,
        "dryRun": True,
        "attempt": 1,
    }
    assert document["metadata"]["namespace"] == "prod"
    assert document["metadata"]["labels"] == {
        PLACEMENT_LABEL: "uid-of-db",
        VM_LABEL: "vmi-of-db",
        GENERATION_LABEL: "1",
    }
    assert document["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "numaplacement.io/v1alpha1",
            "kind": "NumaPlacement",
            "name": "db",
            "uid": "uid-of-db",
            "controller": True,
        }
    ]


def name_of(of: Any = DB, vm: Any = VM, attempt: int = 1) -> str:
    return str(order(of=of, vm=vm, attempt=attempt)["metadata"]["name"])


@pytest.mark.parametrize(
    "other",
    [
        lambda: name_of(of=placement(uid="another")),
        lambda: name_of(of=placement(generation=2)),
        lambda: name_of(of=placement(numaNode=1)),
        lambda: name_of(of=placement(threads="Leave")),
        lambda: name_of(of=placement(tolerance="1%")),
        lambda: name_of(of=placement(dryRun=True)),
        lambda: name_of(of=placement(priority=1)),
        lambda: name_of(of=placement(limits={"bandwidth": "1Gi"})),
        lambda: name_of(vm=vmi(uid="another")),
        lambda: name_of(vm=vmi(pods={"another": "h1"})),
        lambda: name_of(vm=vmi(pods={"pod-of-db": "h2"}, host="h2")),
        lambda: name_of(attempt=2),
    ],
)
def test_another_wish_has_another_name(other: Callable[[], str]) -> None:
    assert other() != name_of()


def test_the_same_wish_has_the_same_name() -> None:
    assert name_of() == name_of(of=placement(status={"observedGeneration": 1}), vm=vmi(version=99))
    assert name_of(attempt=2).removesuffix("-2") == name_of().removesuffix("-1")


@pytest.mark.parametrize(
    ("name", "begins"),
    [("db", "db-"), ("a" * 253, "a" * 40 + "-"), ("a" * 39 + "." + "b" * 20, "a" * 39 + "-"), ("x.y", "x.y-")],
)
def test_an_order_is_named_after_its_placement(name: str, begins: str) -> None:
    made = name_of(of=placement(name))
    assert made.startswith(begins)
    assert len(made) <= 63


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        # What another end or another way to be sure of it asks for is done again …
        ({"numaNode": 1}, True),
        ({"tolerance": "1Mi"}, True),
        ({"threads": "Leave"}, True),
        ({"dryRun": True}, True),
        # … and what only says how it is to be done is not.
        ({"priority": 7}, False),
        ({"limits": {"bandwidth": "1Gi"}}, False),
        ({"limits": {"attempts": 1}}, False),
    ],
)
def test_what_was_placed_is_done_again_only_for_another_goal(changes: dict[str, Any], again: bool) -> None:
    decision = decided(scene(placement(generation=2, **changes), VM, orders=(seen(verdict("Placed")),)))
    assert bool(decision.apply) is again
    assert not decision.delete


@pytest.mark.parametrize(
    ("changes", "again"),
    [({"priority": 7}, True), ({"limits": {"bandwidth": "1Gi"}}, True), ({"limits": {"attempts": 1}}, False)],
)
def test_an_order_under_way_is_replaced_when_its_manner_changes(changes: dict[str, Any], again: bool) -> None:
    decision = decided(scene(placement(generation=2, **changes), VM, orders=(seen(order(**taken_up())),)))
    assert bool(decision.apply) is again
    assert bool(decision.delete) is again


def test_a_placement_on_its_way_out_orders_nothing_and_says_nothing() -> None:
    orders = (seen(order(**taken_up())), seen(verdict("Failed", attempt=2)))
    situation = scene(placement(deleted=True), VM, orders=orders)
    decision = decided(situation)
    assert decision.status is None
    assert not decision.apply
    assert [old.name for old in decision.delete] == [name_of()]
    assert kstatus_of(situation, decision) == "Terminating"


def test_an_unreadable_placement_on_its_way_out_is_left_alone() -> None:
    decision = decided(scene(unreadable(placement(deleted=True))))
    assert decision == Decision()


def test_transition_times_stay_while_nothing_turns() -> None:
    before = state_conditions(State.WORKING, reason="VmNotFound", message="", generation=1, now=NOW)
    stored = NumaPlacementStatus(observed_generation=1, conditions=before)
    later = NOW + datetime.timedelta(hours=1)
    for vms, turned in (((), set()), ((VM,), set())):
        decision = decided(scene(placement(status=to_document(stored)), *vms, now=later))
        assert decision.status is not None
        times = {each.type: each.last_transition_time for each in decision.status.conditions}
        assert {kind for kind, time in times.items() if time == later} == turned
    done = decided(scene(placement(status=to_document(stored)), VM, now=later, orders=(seen(verdict("Placed")),)))
    assert done.status is not None
    times = {each.type: each.last_transition_time for each in done.status.conditions}
    assert times == {"Ready": later, "Reconciling": later, "Stalled": NOW}


@pytest.mark.parametrize("generation", [1, 2, 77])
def test_the_generation_observed_is_the_one_decided(generation: int) -> None:
    decision = decided(scene(placement(generation=generation), VM))
    assert decision.status is not None
    assert decision.status.observed_generation == generation
    assert {each.observed_generation for each in decision.status.conditions} == {generation}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (ended("Placed"), "All 512Mi are on NUMA node 0."),
        (
            ended("Placed", rows=[residue(count=MI)]),
            "511Mi of 512Mi are on NUMA node 0; the rest is within the tolerance.",
        ),
    ],
)
def test_what_was_reached_in_words(status: Document, words: str) -> None:
    assert message(decided(scene(DB, VM, orders=(seen(order(**status)),)))) == words


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [residue(WOULD_MOVE, count=300 * MI)],
            "Dry run: 300Mi of 512Mi would be moved to NUMA node 0. Nothing was touched.",
        ),
        (
            [residue(WOULD_MOVE, count=300 * MI), residue("pinned-by-device", count=12 * MI)],
            "Dry run: 300Mi of 512Mi would be moved to NUMA node 0, 12Mi would stay behind. Nothing was touched.",
        ),
        ([], "Dry run: 0 of 512Mi would be moved to NUMA node 0. Nothing was touched."),
    ],
)
def test_a_plan_in_words(rows: list[Document], words: str) -> None:
    dry = placement(dryRun=True)
    past = order(of=dry, **ended("Planned", rows=rows))
    assert message(decided(scene(dry, VM, orders=(seen(past),)))) == words


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        ({"stage": "Survey"}, "Moving to NUMA node 0: Survey."),
        ({"stage": "Move", "bytesTotal": 512 * MI}, "Moving to NUMA node 0: Move, 0% (0 of 512Mi)."),
        (
            {"stage": "Move", "bytesDone": 230 * MI, "bytesTotal": 512 * MI, "bytesPerSecond": 180 * MI},
            "Moving to NUMA node 0: Move, 44% (230Mi of 512Mi) at 180Mi/s.",
        ),
        (
            {"stage": "Verify", "bytesDone": 513 * MI, "bytesTotal": 512 * MI},
            "Moving to NUMA node 0: Verify, 100% (513Mi of 512Mi).",
        ),
    ],
)
def test_progress_in_words(progress: Document, words: str) -> None:
    assert message(decided(scene(DB, VM, orders=(seen(order(**taken_up(progress=progress))),)))) == words


def test_messages_name_what_to_look_at() -> None:
    for situation, words in (
        (scene(DB), ["VirtualMachineInstance db", "prod"]),
        (scene(DB, vmi(phase="Scheduling")), ["db", "Scheduling"]),
        (scene(DB, VM, hosts={}), ["h1", "NumaHost"]),
        (scene(placement(numaNode=9), VM), ["h1", "0-3", "9", "spec.numaNode"]),
        (scene(DB, VM, rivals=(placement("old", created=-9999, numaNode=1),)), ["NumaPlacement old", "NUMA node 1"]),
        (scene(DB, VM, orders=(seen(order(created=-31)),)), ["h1", name_of(), "30 s"]),
        (scene(unreadable(DB)), ["spec.x"]),
    ):
        for text in words:
            assert text in message(decided(situation))


def test_an_agent_without_conditions_still_gets_a_verdict_told() -> None:
    status = ended("Failed")
    status["conditions"] = []
    decision = decided(scene(placement(limits={"attempts": 1}), VM, orders=(
        seen(order(of=placement(limits={"attempts": 1}), **status)),)))  # fmt: skip
    assert word(decision) == ("Stalled", "Failed")
    assert "Failed" in message(decision)


def test_messages_never_exceed_what_the_schema_takes() -> None:
    past = verdict("Failed", attempt=3, message="long " * 200)
    decision = decided(scene(DB, VM, orders=(seen(past),)))
    assert decision.status is not None
    assert len(message(decision)) <= 1024
    assert len(decision.status.vms[0].message) <= 1024


def test_the_last_three_verdicts_of_a_vm_are_kept() -> None:
    past = [
        seen(order(of=placement(generation=number, priority=number), created=-1000 + number, **ended("Placed")))
        for number in range(1, 7)
    ]
    situation = scene(placement(generation=6, priority=6), VM, orders=tuple(past))
    assert {old.uid for old in decided(situation).delete} == {each.order.metadata.uid for each in past[:3]}
    assert {old.uid for old in decided(situation, history=1).delete} == {each.order.metadata.uid for each in past[:5]}


@pytest.mark.parametrize(("result", "hosts"), [("Placed", {"h1": host()}), ("Failed", {"h1": host()}), ("Failed", {})])
def test_the_order_that_speaks_for_the_present_is_never_history(result: str, hosts: dict[str, Any]) -> None:
    present = seen(verdict(result, seconds_ago=9000), changed=-9000)
    other_instances = [
        seen(order(vm=vmi(uid=f"earlier-{number}", pods={f"pod-{number}": "h1"}), created=-10, **ended("Placed")))
        for number in range(4)
    ]
    situation = scene(DB, VM, orders=(present, *other_instances), hosts=hosts)
    gone = {old.uid for old in decided(situation).delete}
    assert present.order.metadata.uid not in gone
    assert len(gone) == 1


def test_orders_of_one_second_are_told_apart_by_generation() -> None:
    one = seen(order(of=placement(generation=1), created=-5, **ended("Placed")))
    two = seen(order(of=placement(numaNode=1, generation=2), created=-5, **ended("Placed")))
    for orders in ((one, two), (two, one)):
        assert word(decided(scene(placement(numaNode=1, generation=2), VM, orders=orders))) == ("Ready", "Placed")
        assert decided(scene(placement(generation=3), VM, orders=orders)).apply


@pytest.mark.parametrize("label", ["", "x", "-1", "99999999999999999999999"])
def test_a_label_that_somebody_has_changed_is_no_fault(label: str) -> None:
    past = verdict("Placed")
    past["metadata"]["labels"][GENERATION_LABEL] = label
    assert word(decided(scene(DB, VM, orders=(seen(past),)))) == ("Ready", "Placed")


SHARED = [residue(reason, permanent=True, count=900 * MI) for reason in sorted(UNCOUNTED)]


@pytest.mark.parametrize(
    ("result", "rows", "expected"),
    [
        # Refused: what it was refused for decides, and that is most of it.
        ("Refused", [residue("pinned-by-device", permanent=True, count=500), residue(UNTRIED, count=900)], False),
        ("Refused", [residue("destination-full", count=500), *SHARED], True),
        ("Refused", [residue("destination-full", count=500), residue("x", permanent=True, count=5)], True),
        ("Refused", [residue("pod-not-found", count=0)], True),
        ("Refused", [residue("not-supported", count=0, permanent=True)], False),
        ("Refused", [residue(UNTRIED)], True),
        ("Refused", SHARED, True),
        ("Refused", [], True),
        # Else any byte that may still move is worth another try.
        ("Residue", [residue("pinned-by-io", count=1), residue("x", permanent=True, count=900)], True),
        ("Residue", [residue("x", permanent=True), *SHARED], False),
        ("Residue", [residue("x", permanent=True), residue(UNTRIED)], True),
        ("DeadlineExceeded", [residue("deadline"), *SHARED], True),
        ("Failed", [], True),
    ],
)
def test_whether_another_attempt_may_help(result: str, rows: list[Document], expected: bool) -> None:
    status = NumaMigrationStatus.model_validate({"result": result, "residue": rows})
    assert may_help(status) is expected
