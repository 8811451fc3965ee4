# SPDX-License-Identifier: Apache-2.0
"""What was seen, in whatever order it arrives, and which placements a change concerns."""

from __future__ import annotations

import datetime
from typing import Any

import hypothesis
import hypothesis.strategies as some
import pytest

from numaplacement.api.resources import HOSTS, MIGRATIONS, PLACEMENTS, VMIS, Document, NumaPlacement, Resource
from numaplacement.controller.gather import gather
from numaplacement.controller.handlers import note
from numaplacement.controller.situation import Unreadable
from numaplacement.controller.store import Store
from numaplacement.controller.workqueue import WorkQueue
from tests.unit.controller_scene import (
    NOW,
    at,
    ended,
    host_document,
    order_for,
    placement,
    placement_document,
    taken_up,
    vmi,
    vmi_document,
)

DB, WEB, EDGE = ("prod", "db"), ("prod", "web"), ("prod", "edge")
SELECTOR = {"matchLabels": {"tier": "edge"}}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime.datetime:
        return self.now


def store(*documents: tuple[Resource, Document], clock: Clock | None = None) -> Store:
    made = Store(now=clock or Clock())
    for resource, document in documents:
        made.put(resource, document)
    return made


def at_version(document: Document, version: int) -> Document:
    return document | {"metadata": document["metadata"] | {"resourceVersion": str(version)}}


# Order of arrival


def test_an_older_state_does_not_replace_a_newer_one() -> None:
    made = store((VMIS, vmi_document(phase="Running", version=20)))
    assert made.put(VMIS, vmi_document(phase="Pending", version=19)) == set()
    assert made.put(VMIS, vmi_document(phase="Pending", version=20)) == set()
    known = made.vmis.get(DB)
    assert known is not None
    assert not isinstance(known, Unreadable)
    assert known.status.phase == "Running"


def test_versions_are_numbers_and_not_text() -> None:
    made = store((VMIS, vmi_document(phase="Pending", version=999)))
    made.put(VMIS, vmi_document(phase="Running", version=1000))
    known = made.vmis.get(DB)
    assert known is not None
    assert not isinstance(known, Unreadable)
    assert known.status.phase == "Running"


def test_what_was_deleted_does_not_come_back_with_a_late_state() -> None:
    made = store((VMIS, vmi_document(version=20)))
    made.remove(VMIS, vmi_document(version=25))
    made.put(VMIS, vmi_document(version=24))
    made.replace_all(VMIS, [vmi_document(version=23)], resource_version="23")
    assert made.vmis.get(DB) is None
    made.put(VMIS, vmi_document(version=26, uid="made anew"))
    assert made.vmis.get(DB) is not None


def test_a_late_deletion_does_not_take_a_newer_object_of_the_name() -> None:
    made = store((VMIS, vmi_document(version=30, uid="made anew")))
    made.remove(VMIS, vmi_document(version=25))
    assert made.vmis.get(DB) is not None


def test_a_list_removes_what_vanished_and_spares_what_is_newer_than_it() -> None:
    made = store((VMIS, vmi_document("a", version=10)), (VMIS, vmi_document("b", version=50)))
    made.replace_all(VMIS, [vmi_document("c", version=20)], resource_version="40")
    assert {vmi.metadata.name for vmi in made.vmis} == {"b", "c"}


def test_a_kind_that_the_server_does_not_know_has_no_objects() -> None:
    made = store((VMIS, vmi_document()), (PLACEMENTS, placement_document()))
    assert made.clear(VMIS) == {DB}
    assert len(made.vmis) == 0
    assert len(made.placements) == 1


def test_our_own_deletion_is_known_at_once_and_only_of_that_very_object() -> None:
    document = order_for(placement(), vmi())
    key = ("prod", document["metadata"]["name"])
    made = store((MIGRATIONS, document))
    made.forget_order(key, uid="another")
    assert made.orders.get(key) is not None
    made.forget_order(key, uid=document["metadata"]["uid"])
    assert made.orders.get(key) is None
    assert made.seen_orders("uid-of-db") == ()


@hypothesis.settings(deadline=None)  # a shared machine may be slow at any moment
@hypothesis.given(some.data())
def test_any_order_of_arrival_ends_in_the_newest_state(data: Any) -> None:
    """Watch events (in any order), lists and their versions: in the end the store is what the server has."""
    history: list[tuple[int, dict[str, Document]]] = [(0, {})]
    events: list[tuple[str, Document]] = []
    for version in range(1, data.draw(some.integers(1, 12)) + 1):
        present = dict(history[-1][1])
        name = data.draw(some.sampled_from("ab"))
        if name in present and data.draw(some.booleans()):
            events.append(("DELETED", at_version(present.pop(name), version)))
        else:
            present[name] = vmi_document(name, version=version)
            events.append(("MODIFIED", present[name]))
        history.append((version, present))
    made = store()
    queue: WorkQueue[tuple[str, str]] = WorkQueue(clock=lambda: 0.0)
    for what, document in data.draw(some.permutations(events)):
        if data.draw(some.booleans()):
            version, present = data.draw(some.sampled_from(history))
            made.replace_all(VMIS, present.values(), resource_version=str(version))
        note(VMIS, what, document, store=made, queue=queue)
    last, present = history[-1]
    made.replace_all(VMIS, present.values(), resource_version=str(last))
    versions = {name: document["metadata"]["resourceVersion"] for name, document in present.items()}
    assert {each.metadata.name: each.metadata.resource_version for each in made.vmis} == versions


# What a change concerns

BASE = (
    (PLACEMENTS, placement_document("db")),
    (PLACEMENTS, placement_document("web", vm="web")),
    (PLACEMENTS, placement_document("edge", vm=SELECTOR)),
    (VMIS, vmi_document("db")),
    (VMIS, vmi_document("web", host="h2")),
    (VMIS, vmi_document("camera", labels={"tier": "edge"})),
    (HOSTS, host_document("h1")),
    (HOSTS, host_document("h2")),
)


@pytest.mark.parametrize(
    ("resource", "document", "expected"),
    [
        # VMs
        (VMIS, vmi_document("db", phase="Failed"), {DB}),
        (VMIS, vmi_document("web", phase="Failed"), {WEB}),
        (VMIS, vmi_document("new"), set()),
        (VMIS, vmi_document("new", labels={"tier": "edge"}), {EDGE}),
        (VMIS, vmi_document("camera", labels={}), {EDGE}),
        (VMIS, vmi_document("db", labels={"tier": "edge"}), {DB, EDGE}),
        (VMIS, vmi_document("db"), set()),
        # Hosts
        (HOSTS, host_document("h1", ready="False"), {DB, EDGE}),
        (HOSTS, host_document("h1", numa_nodes=[0]), {DB, EDGE}),
        (HOSTS, host_document("h2", ready="False", message="x"), {WEB}),
        (HOSTS, host_document("h1", vms=[{"podUID": "x"}]), set()),
        (HOSTS, host_document("h3"), set()),
        # Placements
        (PLACEMENTS, placement_document("db", numaNode=1), {DB, EDGE}),
        (PLACEMENTS, placement_document("db", status={"observedGeneration": 1}), {DB}),
        (PLACEMENTS, placement_document("db", vm="web"), {DB, WEB, EDGE}),
        (PLACEMENTS, placement_document("second", vm="db"), {DB, EDGE, ("prod", "second")}),
        (PLACEMENTS, placement_document("second", vm="none"), {EDGE, ("prod", "second")}),
        (PLACEMENTS, placement_document("db", deleted=True), {DB, EDGE}),
        # Orders
        (MIGRATIONS, order_for(placement("db"), vmi("db")), {DB}),
        (MIGRATIONS, order_for(placement("edge", vm=SELECTOR), vmi("camera")), {EDGE}),
    ],
)
def test_a_change_concerns(resource: Resource, document: Document, expected: set[tuple[str, str]]) -> None:
    assert store(*BASE).put(resource, at_version(document, 11)) == expected


@pytest.mark.parametrize(
    ("resource", "document", "expected"),
    [
        (VMIS, vmi_document("db"), {DB}),
        (VMIS, vmi_document("camera", labels={"tier": "edge"}), {EDGE}),
        (HOSTS, host_document("h1"), {DB, EDGE}),
        (PLACEMENTS, placement_document("db"), {DB, EDGE}),
        (VMIS, vmi_document("never seen"), set()),
    ],
)
def test_a_deletion_concerns(resource: Resource, document: Document, expected: set[tuple[str, str]]) -> None:
    assert store(*BASE).remove(resource, at_version(document, 11)) == expected


def test_a_selector_concerns_only_those_that_may_share_a_vm() -> None:
    made = store(*BASE)
    changed = placement_document("edge", vm=SELECTOR, numaNode=1, version=11)
    assert made.put(PLACEMENTS, changed) == {EDGE}
    made.put(PLACEMENTS, placement_document("camera", vm="camera", version=12))
    assert made.put(PLACEMENTS, placement_document("edge", vm=SELECTOR, version=13)) == {EDGE, ("prod", "camera")}


def test_other_namespaces_are_not_concerned() -> None:
    made = store(*BASE)
    elsewhere = vmi_document("db", version=99)
    elsewhere["metadata"]["namespace"] = "test"
    assert made.put(VMIS, elsewhere) == set()
    theirs = placement_document("db", version=99)
    theirs["metadata"]["namespace"] = "test"
    assert made.put(PLACEMENTS, theirs) == {("test", "db")}


def test_an_order_moves_between_owners_with_its_references() -> None:
    document = order_for(placement("db"), vmi())
    made = store(*BASE, (MIGRATIONS, document))
    assert len(made.seen_orders("uid-of-db")) == 1
    stranger = at_version(document, 11)
    stranger["metadata"]["ownerReferences"] = []
    assert made.put(MIGRATIONS, stranger) == {DB}
    assert made.seen_orders("uid-of-db") == ()


def test_only_the_controlling_owner_counts() -> None:
    document = order_for(placement("db"), vmi())
    document["metadata"]["ownerReferences"][0]["controller"] = False
    assert store((MIGRATIONS, document)).seen_orders("uid-of-db") == ()


# What is gathered


def test_there_is_nothing_to_gather_of_an_unknown_placement() -> None:
    assert gather(store(), DB, now=NOW) is None


def test_all_that_belongs_to_a_placement_is_gathered() -> None:
    made = store(
        *BASE,
        (PLACEMENTS, placement_document("second", vm="db")),
        (MIGRATIONS, order_for(placement("db"), vmi())),
        (MIGRATIONS, order_for(placement("web", vm="web"), vmi("web"))),
    )
    found = gather(made, DB, now=NOW)
    assert found is not None
    assert [each.metadata.name for each in found.vmis] == ["db"]
    assert [each.order.spec.vm.name for each in found.orders] == ["db"]
    assert set(found.hosts) == {"h1"}
    assert [each.metadata.name for each in found.rivals] == ["edge", "second"]
    edge = gather(made, EDGE, now=NOW)
    assert edge is not None
    assert [each.metadata.name for each in edge.vmis] == ["camera"]


def test_a_host_that_is_not_known_is_left_out() -> None:
    made = store((PLACEMENTS, placement_document()), (VMIS, vmi_document(host="h9", pods={"p": "h9"})))
    found = gather(made, DB, now=NOW)
    assert found is not None
    assert dict(found.hosts) == {}


def test_times_at_which_an_order_was_seen() -> None:
    clock = Clock()
    made = store((PLACEMENTS, placement_document()), clock=clock)

    def sight() -> tuple[Any, ...]:
        [one] = made.seen_orders("uid-of-db")
        return one.first_seen, one.changed, one.finished

    made.put(MIGRATIONS, order_for(placement(), vmi(), version=11))
    assert sight() == (at(0), at(0), None)
    clock.now = at(5)
    made.put(MIGRATIONS, order_for(placement(), vmi(), version=11))
    assert sight() == (at(0), at(0), None)
    made.put(MIGRATIONS, order_for(placement(), vmi(), version=12, **taken_up()))
    assert sight() == (at(0), at(5), None)
    clock.now = at(9)
    made.put(MIGRATIONS, order_for(placement(), vmi(), version=13, **ended("Failed")))
    clock.now = at(11)
    made.put(MIGRATIONS, order_for(placement(), vmi(), version=14, **ended("Failed", message="more")))
    assert sight() == (at(0), at(11), at(9))
    made.put(MIGRATIONS, order_for(placement(), vmi(), version=15, uid="made anew"))
    assert sight() == (at(11), at(11), None)


# What cannot be read


def strange(document: Document, **more: Any) -> Document:
    return document | {"spec": document.get("spec", {}) | more, "status": document.get("status", {})}


def test_a_placement_that_cannot_be_read_keeps_its_status() -> None:
    status = {
        "observedGeneration": 1,
        "conditions": [
            {"type": "Ready", "status": "False", "reason": "X", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ],
    }
    made = store((PLACEMENTS, strange(placement_document(status=status), newField=1)))
    found = gather(made, DB, now=NOW)
    assert found is not None
    assert isinstance(found.placement, Unreadable)
    assert "newField" in found.placement.error
    assert [each.type for each in found.placement.status.conditions] == ["Ready"]


def test_a_placement_of_which_nothing_can_be_read_is_no_fault() -> None:
    made = store((PLACEMENTS, placement_document(status={"conditions": "none"}) | {"spec": 1}))
    found = gather(made, DB, now=NOW)
    assert found is not None
    assert isinstance(found.placement, Unreadable)


def test_an_order_that_cannot_be_read_is_told_apart() -> None:
    document = strange(order_for(placement(), vmi()), newField=1)
    made = store((PLACEMENTS, placement_document()), (MIGRATIONS, document))
    found = gather(made, DB, now=NOW)
    assert found is not None
    assert found.orders == ()
    assert [each.metadata.name for each in found.unreadable_orders] == [document["metadata"]["name"]]


def test_vms_and_hosts_that_cannot_be_read_are_told_apart() -> None:
    made = store(
        (PLACEMENTS, placement_document()),
        (VMIS, vmi_document() | {"status": {"activePods": "none"}}),
        (HOSTS, host_document() | {"status": {"vms": 1}}),
    )
    found = gather(made, DB, now=NOW)
    assert found is not None
    assert isinstance(found.vmis[0], Unreadable)
    assert isinstance(made.hosts.get(("", "h1")), Unreadable)
    assert made.put(HOSTS, host_document(version=11)) == set()


def test_a_placement_becomes_readable_again() -> None:
    made = store((PLACEMENTS, strange(placement_document(), newField=1)), (VMIS, vmi_document()))
    assert made.put(PLACEMENTS, placement_document(version=11)) == {DB}
    found = gather(made, DB, now=NOW)
    assert found is not None
    assert isinstance(found.placement, NumaPlacement)
    assert made.put(VMIS, vmi_document(phase="Failed", version=11)) == {DB}


# Events


@pytest.mark.parametrize("event_type", [None, "ADDED", "MODIFIED"])
def test_events_put_placements_into_the_queue(event_type: str | None) -> None:
    made, queue = store(*BASE), WorkQueue[tuple[str, str]](clock=lambda: 0.0)
    note(VMIS, event_type, vmi_document("db", labels={"tier": "edge"}, version=11), store=made, queue=queue)
    assert [queue.take() for _ in range(3)] == [DB, EDGE, None]


def test_a_deletion_is_an_event_too() -> None:
    made, queue = store(*BASE), WorkQueue[tuple[str, str]](clock=lambda: 0.0)
    note(VMIS, "DELETED", vmi_document("db", version=11), store=made, queue=queue)
    assert made.vmis.get(DB) is None
    assert queue.take() == DB
