# SPDX-License-Identifier: Apache-2.0
"""The controller against a real API server, with a stand-in agent: each state a person may see, and the way out of it.

The controller's sweep is ten minutes away: all of this comes by events.
"""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from numaplacement.api.migration import NumaMigrationSpec, Progress, Result
from tests.cluster.controller_process import ControllerProcess, Scene, install_rights
from tests.rig.children import Children
from tests.rig.control_plane import ControlPlane
from tests.rig.kstatus import kstatus
from tests.rig.kubevirt import delete_vm, new_vm, run_vm, schedule_vm, set_phase, start_vm
from tests.rig.stand_in_agent import Answer, places, residue


@pytest.fixture(scope="module")
def controller(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerProcess]:
    install_rights(control_plane)
    with Children() as children:
        process = ControllerProcess(control_plane, children, tmp_path_factory.mktemp("controller") / "log")
        process.start()
        yield process


@pytest.fixture
def scene(control_plane: ControlPlane, namespace: str, controller: ControllerProcess) -> Iterator[Scene]:
    yield Scene(control_plane, namespace)
    controller.check()


def start(scene: Scene, name: str = "db", *, host: str = "") -> Any:
    return start_vm(scene.control_plane, namespace=scene.namespace, name=name, host=host or scene.host)


def holds(release: threading.Event) -> Any:
    """Return the behaviour of an agent that is half way through until it is released."""
    progress = Progress(stage="Move", bytes_done=2**28, bytes_total=2**29, bytes_per_second=2**20)
    return lambda _: Answer(progress=progress, before_verdict=release)


def test_placed_and_told(scene: Scene) -> None:
    vm = start(scene)
    with scene.agent():
        scene.place()
        scene.wait("Ready", "Placed")
    placement = scene.get("nump", "db")
    status = placement["status"]
    assert kstatus(placement) == "Current"
    assert scene.message() == "All 512Mi are on NUMA node 0."
    assert status["summary"] == {
        "vms": 1, "placed": 1, "moving": 0, "residue": 0, "refused": 0, "failed": 0,
        "bytesAsked": 2**29, "bytesOnTarget": 2**29, "onTarget": "100%", "left": "0",
    }  # fmt: skip
    [order] = scene.orders()
    [row] = status["vms"]
    assert (row["name"], row["uid"], row["podUID"], row["nodeName"]) == ("db", vm.vmi_uid, vm.pod_uid, scene.host)
    assert (row["state"], row["order"]) == ("Placed", order["metadata"]["name"])
    assert (row["before"], row["after"][0]) == ([{"numaNode": 1, "bytes": 2**29}], {"numaNode": 0, "bytes": 2**29})
    assert order["spec"]["vm"] == {"name": "db", "uid": vm.vmi_uid, "firmwareUUID": vm.firmware_uuid}
    shown = scene.control_plane.kubectl("get", "nump", "db", "-n", scene.namespace).stdout
    assert {"db", "0", "True", "Placed", "100%"} <= set(shown.split())


def test_nothing_is_left_on_objects(scene: Scene) -> None:
    start(scene)
    with scene.agent():
        scene.place()
        scene.wait("Ready", "Placed")
    [order] = scene.orders()
    for kind, name, writers in (
        ("nump", "db", {("kubectl", ""), ("numaplacement-controller", "status")}),
        ("numam", order["metadata"]["name"], {("numaplacement-controller", ""), ("numaplacement-agent", "status")}),
    ):
        answer = scene.control_plane.kubectl(
            "get", kind, name, "-n", scene.namespace, "-o", "json", "--show-managed-fields"
        )
        metadata = json.loads(answer.stdout)["metadata"]
        assert "annotations" not in metadata
        assert "finalizers" not in metadata
        assert {(each["manager"], each.get("subresource", "")) for each in metadata["managedFields"]} == writers
    vmi = scene.control_plane.kubectl(
        "get", "vmi", "db", "-n", scene.namespace, "-o", "json", "--show-managed-fields"
    ).stdout
    assert "numaplacement" not in vmi
    assert "kopf" not in vmi


def test_a_vm_that_comes_later_is_picked_up(scene: Scene) -> None:
    with scene.agent():
        scene.place()
        scene.wait("Reconciling", "VmNotFound")
        assert kstatus(scene.get("nump", "db")) == "InProgress"
        assert scene.orders() == []
        start(scene)
        scene.wait("Ready", "Placed")


def test_a_vm_that_does_not_run_yet_is_waited_for(scene: Scene) -> None:
    vm = schedule_vm(scene.control_plane, namespace=scene.namespace, name="db", host=scene.host)
    with scene.agent():
        scene.place()
        scene.wait("Reconciling", "VmNotRunning")
        assert "Scheduled" in scene.message()
        assert scene.orders() == []
        run_vm(scene.control_plane, vm)
        scene.wait("Ready", "Placed")
        set_phase(scene.control_plane, vm, "Succeeded")
        scene.wait("Reconciling", "VmNotRunning")


def test_a_vm_that_is_started_again_is_placed_again(scene: Scene) -> None:
    first = start(scene)
    with scene.agent():
        scene.place()
        scene.wait("Ready", "Placed")
        delete_vm(scene.control_plane, first)
        scene.wait("Reconciling", "VmNotFound")
        second = start(scene)
        scene.wait("Ready", "Placed")
    assert {order["spec"]["vm"]["uid"] for order in scene.orders()} == {first.vmi_uid, second.vmi_uid}


def test_no_such_numa_node(scene: Scene) -> None:
    start(scene)
    with scene.agent():
        scene.place(numaNode=9)
        scene.wait("Stalled", "NumaNodeNotFound")
        assert kstatus(scene.get("nump", "db")) == "Failed"
        assert "0-3" in scene.message()
        assert scene.orders() == []
        scene.place(numaNode=3)
        scene.wait("Ready", "Placed")


def test_no_agent_on_the_host(scene: Scene) -> None:
    start(scene)
    scene.place()
    scene.wait("Reconciling", "AgentAbsent")
    assert scene.host in scene.message()
    assert scene.orders() == []
    with scene.agent():
        scene.wait("Ready", "Placed")


def test_an_agent_that_cannot_work(scene: Scene) -> None:
    start(scene)
    with scene.agent(not_ready="CAP_SYS_NICE is missing"):
        scene.place()
        scene.wait("Reconciling", "AgentNotReady")
        assert "CAP_SYS_NICE is missing" in scene.message()
        assert scene.orders() == []
    with scene.agent():
        scene.wait("Ready", "Placed")


def test_an_agent_that_does_not_answer(scene: Scene) -> None:
    start(scene)
    with scene.agent(behaviour=lambda _: None):
        scene.place()
        scene.wait("Reconciling", "Ordered")
        scene.wait("Reconciling", "AgentNotResponding")
        [order] = scene.orders()
    with scene.agent():
        scene.wait("Ready", "Placed")
    assert [each["metadata"]["uid"] for each in scene.orders()] == [order["metadata"]["uid"]]


def test_a_target_that_is_too_full_is_tried_again_and_then_told(scene: Scene) -> None:
    start(scene)

    def full(spec: NumaMigrationSpec) -> Answer:
        if spec.target.numa_node != 0:
            return places(spec)
        return Answer(
            result=Result.REFUSED,
            reason="DestinationFull",
            message="NUMA node 0 has 4Mi for 512Mi.",
            residue=(residue("destination-full"),),
        )

    with scene.agent(behaviour=full) as agent:
        scene.place()
        scene.wait("Stalled", "DestinationFull")
        assert scene.message() == "NUMA node 0 has 4Mi for 512Mi. Tried 3 times."
        assert sorted(order["spec"]["attempt"] for order in scene.orders()) == [1, 2, 3]
        assert len(agent.taken_up) == 3
        summary = scene.get("nump", "db")["status"]["summary"]
        assert (summary["refused"], summary["onTarget"], summary["left"]) == (1, "0%", "512Mi")
        scene.place(numaNode=2)
        scene.wait("Ready", "Placed")
        # Of four verdicts the last three are kept.
        scene.until(lambda: len(scene.orders()) == 3, "the oldest order gone")


def test_what_is_pinned_is_not_tried_again(scene: Scene) -> None:
    start(scene)
    pinned = Answer(
        result=Result.REFUSED,
        reason="PinnedByDevice",
        message="vfio-pci holds it.",
        residue=(residue("pinned-by-device", permanent=True),),
    )
    with scene.agent(behaviour=lambda _: pinned):
        scene.place()
        scene.wait("Stalled", "PinnedByDevice")
    assert scene.message() == "vfio-pci holds it."
    assert len(scene.orders()) == 1


def test_the_older_of_two_contradicting_placements_wins(scene: Scene) -> None:
    start(scene)
    with scene.agent():
        scene.place("old")
        scene.wait("Ready", "Placed", name="old")
        made = datetime.datetime.fromisoformat(scene.get("nump", "old")["metadata"]["creationTimestamp"])
        # Creation times have whole seconds.
        scene.until(
            lambda: datetime.datetime.now(tz=datetime.UTC) > made + datetime.timedelta(seconds=1), "a second later"
        )
        scene.place("new", numaNode=1)
        scene.wait("Stalled", "Conflict", name="new")
        assert "NumaPlacement old is older" in scene.message("new")
        assert scene.reason("old") == ("Ready", "Placed")
        assert len(scene.orders()) == 1
        # The same place is no contradiction.
        scene.place("new", numaNode=0)
        scene.wait("Ready", "Placed", name="new")
        scene.place("new", numaNode=2)
        scene.wait("Stalled", "Conflict", name="new")
        scene.control_plane.kubectl("delete", "nump", "old", "-n", scene.namespace)
        scene.wait("Ready", "Placed", name="new")


def test_one_target_and_one_kind_of_vm_reference(scene: Scene) -> None:
    def refused(**spec: Any) -> str:
        document = {
            "apiVersion": "numaplacement.io/v1alpha1",
            "kind": "NumaPlacement",
            "metadata": {"name": "db", "namespace": scene.namespace},
            "spec": spec,
        }
        answer = scene.control_plane.kubectl(
            "apply", "--server-side", "-f", "-", input=json.dumps(document), check=False
        )
        assert answer.returncode != 0
        return answer.stderr

    cells = [{"cell": 0, "numaNode": 1}]
    assert "exactly one of numaNode and cells" in refused(vm={"name": "db"}, numaNode=0, cells=cells)
    assert "exactly one of numaNode and cells" in refused(vm={"name": "db"})
    assert "exactly one of name and selector" in refused(vm={"name": "db", "selector": {}}, numaNode=0)
    assert "exactly one of name and selector" in refused(vm={}, numaNode=0)


def test_what_this_version_cannot_do_is_said(scene: Scene) -> None:
    scene.place(mode="Keep")
    scene.wait("Stalled", "NotSupported")
    assert "spec.mode" in scene.message()
    assert scene.orders() == []


def test_progress_is_told_and_a_move_can_be_suspended(scene: Scene) -> None:
    start(scene)
    release = threading.Event()
    with scene.agent(behaviour=holds(release)) as agent:
        scene.place()
        scene.wait("Reconciling", "Moving")
        scene.until(lambda: "50% (256Mi of 512Mi) at 1Mi/s" in scene.message(), "progress")
        scene.place(suspend=True)
        scene.wait("Idle", "Suspended")
        assert scene.orders() == []
        scene.until(lambda: len(agent.cancelled) == 1, "the move was cancelled")
        release.set()
        scene.place(suspend=False)
        scene.wait("Ready", "Placed")
        assert len(scene.orders()) == 1


def test_another_numa_node_replaces_a_move_under_way(scene: Scene) -> None:
    start(scene)
    release = threading.Event()
    with scene.agent(behaviour=holds(release)) as agent:
        scene.place()
        scene.wait("Reconciling", "Moving")
        [first] = scene.orders()
        release.set()
        release = threading.Event()
        agent.behaviour = holds(release)
        scene.place(numaNode=2)
        scene.wait("Reconciling", "Moving")
        assert scene.orders()[-1]["spec"]["target"] == {"numaNode": 2} or scene.orders()[0]["spec"]["target"] == {
            "numaNode": 2
        }
        release.set()
        scene.wait("Ready", "Placed")
    assert "NUMA node 2" in scene.message()
    assert first["spec"]["target"] == {"numaNode": 0}


def test_an_order_that_somebody_deletes_is_made_anew(scene: Scene) -> None:
    start(scene)
    release = threading.Event()
    with scene.agent(behaviour=holds(release)) as agent:
        scene.place()
        scene.wait("Reconciling", "Moving")
        [order] = scene.orders()
        scene.control_plane.kubectl("delete", "numam", order["metadata"]["name"], "-n", scene.namespace)
        scene.until(lambda: len(agent.taken_up) == 2, "the order made anew and taken up")
        release.set()
        scene.wait("Ready", "Placed")
    [again] = scene.orders()
    assert again["metadata"]["name"] == order["metadata"]["name"]
    assert again["metadata"]["uid"] != order["metadata"]["uid"]


def test_a_dry_run(scene: Scene) -> None:
    start(scene)
    with scene.agent():
        scene.place(dryRun=True)
        scene.wait("Ready", "Planned")
        assert scene.message() == "Dry run: 512Mi of 512Mi would be moved to NUMA node 0. Nothing was touched."
        scene.place()
        scene.wait("Ready", "Placed")


def test_a_selector_follows_vms_as_they_come_and_go(scene: Scene) -> None:
    def label(name: str, value: str) -> None:
        scene.control_plane.kubectl("label", "vmi", name, "-n", scene.namespace, f"tier={value}", "--overwrite")

    def rows() -> dict[str, str]:
        return {row["name"]: row["state"] for row in scene.get("nump", "edge")["status"].get("vms", [])}

    with scene.agent():
        scene.place("edge", vm={"matchExpressions": [{"key": "tier", "operator": "In", "values": ["edge"]}]})
        scene.wait("Reconciling", "VmNotFound", name="edge")
        vms = {name: start(scene, name) for name in ("a", "b", "c")}
        label("a", "edge")
        label("b", "edge")
        scene.until(lambda: rows() == {"a": "Placed", "b": "Placed"}, "two VMs placed")
        scene.wait("Ready", "Placed", name="edge")
        label("c", "edge")
        label("a", "core")
        scene.until(lambda: rows() == {"b": "Placed", "c": "Placed"}, "one left and one came")
        delete_vm(scene.control_plane, vms["b"])
        scene.until(lambda: rows() == {"c": "Placed"}, "one was deleted")
        assert scene.get("nump", "edge")["status"]["summary"]["vms"] == 1


def test_rows_change_places_with_what_is_worst(scene: Scene) -> None:
    stuck = Answer(
        result=Result.REFUSED, reason="PinnedByDevice", residue=(residue("pinned-by-device", permanent=True),)
    )
    pinned = {"a"}
    with scene.agent(behaviour=lambda spec: stuck if spec.vm.name in pinned else places(spec)):
        for name in ("a", "b", "c"):
            start(scene, name)
        scene.place("all", vm={})
        scene.wait("Stalled", "PinnedByDevice", name="all")
        assert [row["name"] for row in scene.get("nump", "all")["status"]["vms"]] == ["a", "b", "c"]
        pinned.clear()
        pinned.add("c")
        scene.place("all", vm={}, numaNode=2)
        scene.wait("Stalled", "PinnedByDevice", name="all")
        assert [row["name"] for row in scene.get("nump", "all")["status"]["vms"]] == ["c", "a", "b"]


def test_a_live_migration_is_waited_for_and_then_the_memory_is_moved_on_the_new_host(scene: Scene) -> None:
    vm = start(scene)
    other = new_vm(namespace=scene.namespace, name="db", host=f"{scene.host}-b")

    def patch(status: dict[str, Any]) -> None:
        change = json.dumps({"status": status})
        scene.control_plane.kubectl("patch", "vmi", "db", "-n", scene.namespace, "--type=merge", "-p", change)

    release = threading.Event()
    with scene.agent(behaviour=holds(release)) as agent, scene.agent(host=other.host):
        scene.place()
        scene.wait("Reconciling", "Moving")
        patch({"activePods": {vm.pod_uid: scene.host, other.pod_uid: other.host}})
        scene.wait("Reconciling", "VmMigrating")
        scene.until(lambda: len(agent.cancelled) == 1, "the move was cancelled")
        assert scene.orders() == []
        patch({"nodeName": other.host, "activePods": {vm.pod_uid: None, other.pod_uid: other.host}})
        scene.wait("Ready", "Placed")
    [order] = scene.orders()
    assert (order["spec"]["nodeName"], order["spec"]["podUID"]) == (other.host, other.pod_uid)
    release.set()


def test_orders_go_with_their_placement(scene: Scene) -> None:
    start(scene)
    release = threading.Event()
    with scene.agent(behaviour=holds(release)) as agent:
        scene.place()
        scene.wait("Reconciling", "Moving")
        scene.control_plane.kubectl("delete", "nump", "db", "-n", scene.namespace)
        scene.until(lambda: scene.orders() == [], "the garbage collector took the order")
        scene.until(lambda: len(agent.cancelled) == 1, "the move was cancelled")
    release.set()


def test_a_placement_kept_from_going_by_somebodys_finalizer_moves_nothing_any_more(scene: Scene) -> None:
    start(scene)
    with scene.agent(behaviour=holds(threading.Event())):
        scene.place()
        scene.wait("Reconciling", "Moving")
        for finalizers in (["example.com/held"], None):
            if finalizers is None:
                scene.control_plane.kubectl("delete", "nump", "db", "-n", scene.namespace, "--wait=false")
                scene.until(lambda: scene.orders() == [], "the order was taken back")
                assert kstatus(scene.get("nump", "db")) == "Terminating"
            change = json.dumps({"metadata": {"finalizers": finalizers}})
            scene.control_plane.kubectl("patch", "nump", "db", "-n", scene.namespace, "--type=merge", "-p", change)


def test_a_status_that_somebody_spoils_is_set_right(scene: Scene) -> None:
    start(scene)
    with scene.agent():
        scene.place()
        scene.wait("Ready", "Placed")
        spoiled = json.dumps({"status": {"observedGeneration": 77, "summary": {"placed": 9}}})
        scene.control_plane.kubectl(
            "patch", "nump", "db", "-n", scene.namespace, "--type=merge", "--subresource=status", "-p", spoiled
        )
        scene.wait("Ready", "Placed")
        scene.until(lambda: scene.get("nump", "db")["status"]["summary"]["placed"] == 1, "the sum set right")


def granted(control_plane: ControlPlane, namespace: str, account: str) -> set[str]:
    kubeconfig = control_plane.service_account_kubeconfig(namespace, account)
    listed = control_plane.kubectl("auth", "can-i", "--list", "--no-headers", kubeconfig=kubeconfig).stdout
    return {" ".join(line.split()) for line in listed.splitlines()}


def test_the_controller_may_do_nothing_else(scene: Scene) -> None:
    what_everybody_may = granted(scene.control_plane, scene.namespace, "default")
    assert granted(scene.control_plane, "numaplacement", "numaplacement-controller") - what_everybody_may == {
        "numaplacements.numaplacement.io [] [] [list watch]",
        "numaplacements.numaplacement.io/status [] [] [patch]",
        "numamigrations.numaplacement.io [] [] [list watch create patch delete]",
        "numahosts.numaplacement.io [] [] [list watch]",
        "virtualmachineinstances.kubevirt.io [] [] [list watch]",
        "customresourcedefinitions.apiextensions.k8s.io [] [] [list watch]",
    }
