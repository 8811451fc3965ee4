# SPDX-License-Identifier: Apache-2.0
"""The whole way: a placement is applied with kubectl, and the memory of a real VM under KVM is where it says."""

import contextlib
import sys

import pytest

from tests.e2e.conftest import SETTINGS
from tests.rig.waiting import wait_until

PAGE = 4096
SETTLED = 120.0
MEMORY = "256M"


def placement(name="db", **spec):
    return {
        "apiVersion": "numaplacement.io/v1alpha1",
        "kind": "NumaPlacement",
        "metadata": {"name": name},
        "spec": {"vm": {"name": "db"}, "numaNode": 0} | spec,
    }


class Placements:
    """What a person does with kubectl, and sees."""

    def __init__(self, installation, namespace):
        self.installation = installation
        self.cluster = installation.control_plane
        self.namespace = namespace

    def apply(self, document):
        self.cluster.apply(document | {"metadata": document["metadata"] | {"namespace": self.namespace}})

    def condition(self, name, kind):
        status = self.installation.placement(self.namespace, name)["status"]
        return next((each for each in status.get("conditions", []) if each["type"] == kind), None)

    def wait(self, name, *, status=None, reason=None, kind="Ready"):
        def there():
            found = self.condition(name, kind)
            right = found and status in (None, found["status"]) and reason in (None, found["reason"])
            return found if right else None

        return wait_until(there, what=f"{name}: {kind}={status} reason={reason}", timeout=SETTLED, interval=0.3)

    def order(self):
        return self.installation.orders(self.namespace)[-1]

    def wait_moving(self):
        """Wait until the newest order says that some of the memory has moved, and some not."""

        def some():
            orders = self.installation.orders(self.namespace)
            progress = orders[-1].get("status", {}).get("progress", {}) if orders else {}
            return 0 < progress.get("bytesDone", 0) < progress.get("bytesTotal", 0)

        wait_until(some, what="an order in the middle of its move", timeout=SETTLED, interval=0.2)


@pytest.fixture
def placements(installation, namespace):
    return Placements(installation, namespace)


def pages_of(rows):
    total = {}
    for row in rows:
        if row["bytes"]:
            total[row["numaNode"]] = total.get(row["numaNode"], 0) + row["bytes"] // PAGE
    return total


def assert_closed(status):
    before, after = (sum(row["bytes"] for row in status[kind]) for kind in ("before", "after"))
    assert before - status["freed"] + status["grown"] == after
    off_target = sum(row["bytes"] for row in status["after"] if row["numaNode"] != 0)
    assert sum(row["bytes"] for row in status["residue"]) == off_target


def assert_there(status, pages):
    """All is where the verdict says; what a VM that has just started touched since then it has on the target."""
    said = pages_of(status["after"])
    assert {numa_node: count for numa_node, count in pages.items() if numa_node != 0} == {
        numa_node: count for numa_node, count in said.items() if numa_node != 0
    }
    assert said[0] <= pages[0]


def test_a_placement_waits_for_its_vm_and_then_places_it_to_the_page(installation, namespace, placements, vms):
    placements.apply(placement())
    assert placements.wait("db", reason="VmNotFound")["status"] == "False"
    vm = vms(namespace=namespace, name="db", options=("--memory", MEMORY))
    placements.wait("db", status="True", reason="Placed")
    after = installation.pages(vm)
    status = placements.order()["status"]
    assert status["result"] == "Placed"
    assert_there(status, after)
    assert_closed(status)
    assert [row for row in status["residue"] if row["reason"] == "unexplained"] == []
    inside = installation.vm_tool("watch", "--pid", str(vm.pid))
    assert inside["errors"] == 0
    assert inside["passes"] > 0


def test_a_dry_run_touches_nothing(installation, namespace, placements, vms):
    vm = vms(namespace=namespace, name="db", options=("--memory", MEMORY))
    before = installation.ram_pages(vm)
    placements.apply(placement(dryRun=True))
    placements.wait("db", status="True", reason="Planned")
    assert placements.order()["status"]["result"] == "Planned"
    assert installation.ram_pages(vm) == before


def test_a_vm_with_a_device_passed_through_is_refused_before_a_page_is_touched(
    installation, namespace, placements, vms
):
    vm = vms(namespace=namespace, name="db", numa_nodes="3", options=("--vfio", "--memory", "64M"))
    before = installation.ram_pages(vm)
    placements.apply(placement())
    stalled = placements.wait("db", kind="Stalled", status="True")
    assert stalled["reason"] == "PinnedByDevice"
    status = placements.order()["status"]
    assert installation.ram_pages(vm) == before
    assert (status["calls"]["count"], status["moved"]) == (0, 0)
    assert pages_of(status["before"]) == pages_of(status["after"])
    (pinned,) = (row for row in status["residue"] if row["reason"] == "pinned-by-device")
    assert pinned["bytes"] >= 60 * 2**20
    assert "/dev/vfio" in pinned["evidence"]
    assert pinned["remedy"]
    assert_closed(status)


def test_a_target_that_is_too_full_is_refused_and_taken_when_there_is_room(installation, namespace, placements, vms):
    vm = vms(namespace=namespace, name="db", options=("--memory", MEMORY))
    before = installation.ram_pages(vm)
    with hog(installation, numa_node=0, leave_mebibytes=100):
        placements.apply(placement(limits={"attempts": 1}))
        stalled = placements.wait("db", kind="Stalled", status="True")
        assert stalled["reason"] == "DestinationFull"
        assert installation.ram_pages(vm) == before
    placements.apply(placement(limits={"attempts": 2}))
    placements.wait("db", status="True", reason="Placed")


@contextlib.contextmanager
def hog(installation, *, numa_node, leave_mebibytes):
    """Hold the free memory of a NUMA node, but for so much."""
    process = installation.guest.start([sys.executable, "-m", "tests.rig.hog", str(numa_node), str(leave_mebibytes)])
    try:
        next(process.lines(timeout=90))
        yield
    finally:
        process.kill()
        process.wait(30)


SLOW = {"bandwidth": "16Mi"}


def test_killing_the_controller_in_the_middle_changes_nothing(installation, namespace, placements, vms):
    vm = vms(namespace=namespace, name="db", options=("--memory", MEMORY))
    placements.apply(placement(limits=SLOW))
    placements.wait_moving()
    installation.kill_controller()
    installation.start_controller(**SETTINGS)
    placements.wait("db", status="True", reason="Placed")
    assert len(installation.orders(namespace)) == 1
    assert_there(placements.order()["status"], installation.pages(vm))


def test_killing_the_agent_in_the_middle_changes_nothing(installation, namespace, placements, vms):
    vm = vms(namespace=namespace, name="db", options=("--memory", MEMORY))
    placements.apply(placement(limits=SLOW))
    placements.wait_moving()
    installation.kill_agent()
    installation.start_agent()
    placements.wait("db", status="True", reason="Placed")
    assert len(installation.orders(namespace)) == 1
    status = placements.order()["status"]
    assert_there(status, installation.pages(vm))
    assert_closed(status)


def test_deleting_a_placement_ends_its_move(installation, namespace, placements, vms):
    vm = vms(namespace=namespace, name="db", options=("--memory", MEMORY))
    placements.apply(placement(limits=SLOW))
    placements.wait_moving()
    placements.cluster.kubectl("delete", "nump", "db", "-n", namespace)
    wait_until(lambda: not installation.orders(namespace), what="the order is gone", timeout=SETTLED)
    here = installation.ram_pages(vm)
    again = installation.ram_pages(vm)
    assert set(here) - {0}, "something stayed behind, or the move was not ended"
    assert again == here


def test_a_process_that_is_not_the_vms_is_never_touched(installation, namespace, placements):
    """QEMU in the right cgroup with another UUID on its command line: somebody's forgery, or an order gone stale."""
    api = installation.schedule(namespace=namespace, name="db")
    words = ("start", "--namespace", namespace, "--name", "db", "--pod-uid", api.pod_uid, "--memory", "64M")
    forged = installation.vm_tool(*words)
    try:
        before = installation.vm_tool("numa", "--pid", str(forged["pid"]))["ram"]
        installation.run(api)
        placements.apply(placement(limits={"attempts": 1}))
        assert placements.wait("db", kind="Stalled", status="True")["reason"] == "VmMismatch"
        assert installation.vm_tool("numa", "--pid", str(forged["pid"]))["ram"] == before
    finally:
        installation.vm_tool("stop", "--pid", str(forged["pid"]))
