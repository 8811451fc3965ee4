# SPDX-License-Identifier: Apache-2.0
"""Placements that select VMs by label: rows, sums, and one verdict for all."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from numaplacement.api.placement import VM_ROWS, VmState, VmStatus
from numaplacement.api.resources import Document
from numaplacement.controller.rows import shown, summary, worst_first
from numaplacement.controller.situation import SeenOrder, Situation, Unreadable
from tests.unit.controller_scene import (
    MI,
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
    taken_up,
    vmi,
    word,
)

EDGE = placement("edge", vm={"matchLabels": {"tier": "edge"}})
GIVE_UP = {"limits": {"attempts": 1}}
PINNED = ended(
    "Refused",
    reason="PinnedByDevice",
    message="Pinned.",
    rows=[residue("pinned-by-device", count=512 * MI, permanent=True)],
)

CASES: dict[str, tuple[Any, Document | None, VmState, str]] = {
    "placed": ({}, ended("Placed"), VmState.PLACED, "Ready"),
    "pinned": ({}, PINNED, VmState.REFUSED, "Stalled"),
    "moving": ({}, taken_up(), VmState.MOVING, "Reconciling"),
    "new": ({}, None, VmState.WAITING, "Reconciling"),
    "starting": ({"phase": "Scheduling"}, None, VmState.WAITING, "Reconciling"),
    "elsewhere": ({"host": "h9"}, None, VmState.WAITING, "Reconciling"),
}
"""Name of the VM: its facts, status of its order, state of its row, and what it makes of the placement alone."""


def situation(names: tuple[str, ...], of: Any = EDGE) -> Situation:
    vmis, orders = [], []
    for name in names:
        facts, status, *_ = CASES[name]
        instance = vmi(name, labels={"tier": "edge"}, **facts)
        vmis.append(instance)
        if status is not None:
            orders.append(seen(order_for(of, instance, **status)))
    return scene(of, *vmis, orders=tuple(orders))


@pytest.mark.parametrize("count", range(1, len(CASES) + 1))
def test_the_whole_is_worked_on_while_any_vm_is_and_ready_only_when_all_are(count: int) -> None:
    for names in itertools.combinations(CASES, count):
        decision = decided(situation(names))
        states = {CASES[name][3] for name in names}
        expected = next(state for state in ("Reconciling", "Stalled", "Ready") if state in states)
        assert word(decision)[0] == expected, names
        assert decision.status is not None
        assert {row.name: row.state for row in decision.status.vms} == {name: CASES[name][2] for name in names}
        flux = {"Reconciling": "InProgress", "Stalled": "Failed", "Ready": "Current"}[expected]
        assert kstatus_of(situation(names), decision) == flux
        assert sorted(new.spec.vm.name for new in decision.apply) == (["new"] if "new" in names else [])


def test_the_sums() -> None:
    decision = decided(situation(tuple(CASES)))
    assert decision.status is not None
    whole = decision.status.summary
    assert (whole.vms, whole.placed, whole.moving, whole.residue, whole.refused, whole.failed) == (6, 1, 4, 0, 1, 0)
    assert whole.bytes_asked == 2 * 512 * MI
    assert whole.bytes_on_target == 512 * MI
    assert (whole.on_target, whole.left) == ("50%", "512Mi")


def test_the_worst_comes_first_and_speaks() -> None:
    decision = decided(situation(("placed", "pinned")))
    assert decision.status is not None
    assert [row.name for row in decision.status.vms] == ["pinned", "placed"]
    assert message(decision) == "1 of 2 VMs are done. pinned: Pinned."
    assert word(decision) == ("Stalled", "PinnedByDevice")


def test_what_still_moves_speaks_before_what_is_stuck() -> None:
    decision = decided(situation(("moving", "pinned")))
    assert word(decision) == ("Reconciling", "Moving")
    assert message(decision).startswith("0 of 2 VMs are done. moving: Moving to NUMA node 0")


def test_all_placed() -> None:
    two = scene(
        EDGE,
        *(instances := [vmi(name, labels={"tier": "edge"}) for name in ("a", "b")]),
        orders=tuple(seen(order_for(EDGE, each, **ended("Placed"))) for each in instances),
    )
    decision = decided(two)
    assert word(decision) == ("Ready", "Placed")
    assert message(decision) == "All 2 VMs: Placed."


def test_no_vm_matches() -> None:
    decision = decided(scene(EDGE))
    assert word(decision) == ("Reconciling", "VmNotFound")
    assert "tier=edge" in message(decision)
    assert decision.status is not None
    assert decision.status.vms == ()
    assert decision.status.summary.on_target == ""


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_an_instance_that_has_ended_is_not_waited_for(phase: str) -> None:
    instance = vmi("a")
    placed = seen(order_for(EDGE, instance, **ended("Placed")))
    decision = decided(scene(EDGE, instance, vmi("b", phase=phase), orders=(placed,)))
    assert word(decision) == ("Ready", "Placed")
    assert decision.status is not None
    assert [row.name for row in decision.status.vms] == ["a"]


def test_a_vm_that_left_takes_its_unfinished_order_along() -> None:
    left = vmi("left")
    decision = decided(scene(EDGE, vmi("a"), orders=(seen(order_for(EDGE, left, **taken_up())),)))
    assert [old.uid for old in decision.delete] == [f"uid-of-{order_for(EDGE, left)['metadata']['name']}"]


def test_verdicts_of_vms_that_left_do_not_pile_up() -> None:
    instance = vmi("a")
    orders: list[SeenOrder] = [seen(order_for(EDGE, instance, created=-5000, **ended("Placed")))]
    orders += [
        seen(order_for(EDGE, vmi(f"gone-{number}"), created=-100 - number, **ended("Placed"))) for number in range(9)
    ]
    gone = decided(scene(EDGE, instance, orders=tuple(orders))).delete
    assert {old.uid for old in gone} == {each.order.metadata.uid for each in orders[4:]}


def test_a_conflict_about_one_vm_holds_up_only_that_one() -> None:
    old = placement("old", created=-9999, numaNode=1, vm="b")
    decision = decided(scene(EDGE, vmi("a"), vmi("b"), rivals=(old,)))
    assert [new.spec.vm.name for new in decision.apply] == ["a"]
    assert decision.status is not None
    assert {row.name: row.reason for row in decision.status.vms} == {"a": "Ordered", "b": "Conflict"}


def test_a_vm_that_cannot_be_read_holds_up_only_itself() -> None:
    strange = Unreadable(metadata=vmi("b").metadata, error="x")
    decision = decided(scene(EDGE, vmi("a"), strange))
    assert [new.spec.vm.name for new in decision.apply] == ["a"]


def test_each_host_is_looked_at_for_its_own_vms() -> None:
    hosts = {"h1": host("h1", numa_nodes=[1]), "h2": host("h2")}
    decision = decided(scene(EDGE, vmi("a"), vmi("b", host="h2"), hosts=hosts))
    assert [new.spec.node_name for new in decision.apply] == ["h2"]
    assert decision.status is not None
    assert {row.name: row.reason for row in decision.status.vms} == {"a": "NumaNodeNotFound", "b": "Ordered"}


def test_a_suspended_placement_says_of_each_vm_what_is_known() -> None:
    held = placement("edge", vm={"matchLabels": {"tier": "edge"}}, suspend=True, generation=2)
    decision = decided(scene(held, *situation(tuple(CASES)).vmis, orders=situation(tuple(CASES)).orders))
    assert word(decision) == ("Idle", "Suspended")
    assert decision.status is not None
    rows = {row.name: (row.state, row.reason) for row in decision.status.vms}
    assert rows.pop("placed") == (VmState.PLACED, "Placed")
    assert set(rows.values()) == {(VmState.WAITING, "Suspended")}
    assert {row.name: row.order for row in decision.status.vms}["moving"] == ""
    assert not decision.apply
    assert len(decision.delete) == 1


def row(name: str, state: VmState = VmState.PLACED, *, asked: int = 0, on_target: int = 0) -> VmStatus:
    return VmStatus(name=name, state=state, asked=asked, on_target=on_target)


def test_rows_in_order() -> None:
    ordered = [
        row("f", VmState.REFUSED),
        row("e", VmState.FAILED),
        row("c", VmState.RESIDUE, asked=9, on_target=1),
        row("b", VmState.RESIDUE, asked=9, on_target=8),
        row("d", VmState.RESIDUE, asked=9, on_target=8),
        row("a", VmState.WAITING),
        row("g", VmState.MOVING),
        row("h", VmState.PLANNED),
        row("i", VmState.PLACED),
    ]
    assert len({each.state for each in ordered}) == len(VmState)
    assert list(worst_first(reversed(ordered))) == ordered


def test_status_has_room_for_64_rows_and_the_sums_for_all() -> None:
    rows = [row(f"vm-{number:03}", asked=10, on_target=10) for number in range(200)]
    rows.append(row("zzz", VmState.REFUSED, asked=10))
    assert len(shown(rows)) == VM_ROWS
    assert shown(rows)[0].name == "zzz"
    whole = summary(rows)
    assert (whole.vms, whole.placed, whole.refused, whole.on_target) == (201, 200, 1, "99.5%")


@pytest.mark.parametrize(
    ("asked", "on_target", "expected"),
    [(0, 0, ("", "")), (1000, 975, ("97.5%", "25")), (1000, 1000, ("100%", "0")), (2**30, 2**30 - 1, ("99.9%", "1"))],
)
def test_shares_for_people(asked: int, on_target: int, expected: tuple[str, str]) -> None:
    whole = summary([row("a", asked=asked, on_target=on_target)])
    assert (whole.on_target, whole.left) == expected


def test_a_row_tells_what_its_order_found() -> None:
    instance = vmi("a")
    status = ended(
        "Residue",
        reason="Unexplained",
        rows=[
            residue(count=3 * MI),
            residue(count=4 * MI, numa_node=2),
            residue("destination-full", count=5 * MI),
        ],
        before=[
            {"numaNode": 2, "pageClass": "Anon", "bytes": MI},
            {"numaNode": 1, "pageClass": "Anon", "bytes": 500 * MI},
            {"numaNode": 1, "pageClass": "AnonHuge", "bytes": 11 * MI},
        ],
    )
    once = placement("edge", vm={}, **GIVE_UP)
    decision = decided(scene(once, instance, orders=(seen(order_for(once, instance, **status)),)))
    assert decision.status is not None
    [told] = decision.status.vms
    assert told.order == order_for(once, instance)["metadata"]["name"]
    assert (told.uid, told.pod_uid, told.node_name) == ("vmi-of-a", "pod-of-a", "h1")
    assert (told.state, told.reason) == (VmState.RESIDUE, "Unexplained")
    assert (told.asked, told.on_target) == (512 * MI, 500 * MI)
    assert [(each.numa_node, each.bytes) for each in told.before] == [(1, 511 * MI), (2, MI)]
    assert [(each.numa_node, each.bytes) for each in told.after] == [(0, 500 * MI)]
    assert [(each.reason, each.bytes) for each in told.residue] == [
        ("Unexplained", 7 * MI),
        ("destination-full", 5 * MI),
    ]


def test_a_new_attempt_does_not_hide_what_the_last_one_found() -> None:
    instance = vmi("a")
    first = seen(order_for(EDGE, instance, **ended("Residue", rows=[residue(count=MI)])))
    second = seen(order_for(EDGE, instance, attempt=2, created=-1, **taken_up()))
    decision = decided(scene(EDGE, instance, orders=(first, second)))
    assert decision.status is not None
    [told] = decision.status.vms
    assert told.order == second.order.metadata.name
    assert (told.asked, told.on_target) == (512 * MI, 511 * MI)


@pytest.mark.parametrize(
    ("result", "state"),
    [
        ("Residue", VmState.RESIDUE),
        ("DeadlineExceeded", VmState.RESIDUE),
        ("Refused", VmState.REFUSED),
        ("VmGone", VmState.FAILED),
        ("Failed", VmState.FAILED),
        ("Cancelled", VmState.FAILED),
    ],
)
def test_how_an_order_ended_is_how_its_row_stands(result: str, state: VmState) -> None:
    once, instance = placement(**GIVE_UP), vmi()
    decision = decided(scene(once, instance, orders=(seen(order_for(once, instance, **ended(result))),)))
    assert decision.status is not None
    assert decision.status.vms[0].state is state
    counted = {
        VmState.RESIDUE: decision.status.summary.residue,
        VmState.REFUSED: decision.status.summary.refused,
        VmState.FAILED: decision.status.summary.failed,
    }
    assert counted.pop(state) == 1
    assert set(counted.values()) == {0}
