# SPDX-License-Identifier: Apache-2.0
"""The controller's process: killed and started again, two at once, an API server that goes, KubeVirt that comes."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from numaplacement.api.migration import Result
from tests.cluster.controller_process import PATIENCE, ControllerProcess, Scene, install_rights
from tests.rig.children import Children
from tests.rig.control_plane import CRDS, ControlPlane
from tests.rig.gotools import kubevirt_crds
from tests.rig.kubevirt import delete_vm, start_vm
from tests.rig.ports import free_ports
from tests.rig.stand_in_agent import Answer, residue
from tests.rig.waiting import wait_until

Start = Callable[..., ControllerProcess]


@pytest.fixture
def start(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Start]:
    """Start as many controllers as a test wants; none of them has met a fault of its own in the end."""
    install_rights(control_plane)
    started: list[ControllerProcess] = []
    with Children() as children:

        def begin(**settings: str) -> ControllerProcess:
            process = ControllerProcess(control_plane, children, tmp_path / f"log-{len(started)}")
            process.start({f"NUMAPLACEMENT_{name}": value for name, value in settings.items()})
            started.append(process)
            return process

        yield begin
        for process in started:
            if process.child is not None:
                process.check()


@pytest.fixture
def scene(control_plane: ControlPlane, namespace: str) -> Scene:
    return Scene(control_plane, namespace)


def begin_vm(scene: Scene, name: str = "db") -> Any:
    return start_vm(scene.control_plane, namespace=scene.namespace, name=name, host=scene.host)


def story(orders: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """Return what of orders must not depend on when a controller was killed."""
    return sorted(
        (order["spec"]["vm"]["name"], order["spec"]["attempt"], order["status"].get("result", "")) for order in orders
    )


@pytest.mark.parametrize("moment", ["before the VM is there", "under way", "after the verdict", "between attempts"])
def test_killed_and_started_again_it_ends_in_the_same(scene: Scene, start: Start, moment: str) -> None:
    release = threading.Event()
    tries: list[int] = []

    def behaviour(spec: Any) -> Answer:
        tries.append(spec.attempt)
        if spec.attempt == 1:
            return Answer(
                result=Result.RESIDUE, reason="Busy", residue=(residue("busy", count=4096),), before_verdict=release
            )
        return Answer()

    retry = "1h" if moment == "between attempts" else "200ms"
    controller = start(RETRY=retry)
    with scene.agent(behaviour=behaviour):
        scene.place()
        if moment == "before the VM is there":
            scene.wait("Reconciling", "VmNotFound")
            controller.kill()
        begin_vm(scene)
        if moment == "under way":
            scene.wait("Reconciling", "Moving")
            controller.kill()
        if moment == "after the verdict":
            scene.wait("Reconciling", "Moving")
            controller.kill()
            release.set()
            scene.until(lambda: scene.orders()[0]["status"].get("result"), "the verdict nobody heard of")
        if moment == "between attempts":
            release.set()
            scene.wait("Reconciling", "Busy")
            controller.kill()
        controller.start()
        release.set()
        scene.wait("Ready", "Placed")
    assert story(scene.orders()) == [("db", 1, "Residue"), ("db", 2, "Placed")]
    assert tries == [1, 2]


def test_what_vanished_while_it_was_dead_is_noticed(scene: Scene, start: Start) -> None:
    controller = start()
    vm = begin_vm(scene)
    with scene.agent(behaviour=lambda _: Answer(before_verdict=threading.Event())) as agent:
        scene.place()
        scene.wait("Reconciling", "Moving")
        controller.kill()
        delete_vm(scene.control_plane, vm)
        controller.start()
        scene.wait("Reconciling", "VmNotFound")
        assert scene.orders() == []
        scene.until(lambda: len(agent.cancelled) == 1, "the move was cancelled")


def test_two_controllers_at_once_make_no_second_order(scene: Scene, start: Start) -> None:
    one, two = start(SWEEP="500ms"), start(SWEEP="500ms")
    names = [f"vm-{number}" for number in range(8)]
    for name in names:
        begin_vm(scene, name)
    with scene.agent() as agent:
        for name in names:
            scene.place(name, vm=name)
        for name in names:
            scene.wait("Ready", "Placed", name=name)
    assert story(scene.orders()) == [(name, 1, "Placed") for name in names]
    assert len(agent.taken_up) == len(names)
    # Both go on looking, and neither finds anything to write.
    before = versions(scene)
    scene.place("marker", vm="nobody")
    scene.wait("Reconciling", "VmNotFound", name="marker")
    one.kill()
    scene.place("marker", vm="nobody", suspend=True)
    scene.wait("Idle", "Suspended", name="marker")
    two.check()
    assert versions(scene) == before


def versions(scene: Scene) -> dict[str, str]:
    """Return the resource versions of all placements and orders but the marker."""
    found = scene.control_plane.get("nump,numam", "-n", scene.namespace)["items"]
    names = (each["metadata"] for each in found if each["metadata"]["name"] != "marker")
    return {each["name"]: each["resourceVersion"] for each in names}


def test_a_token_without_rights_is_told_in_a_line_and_waited_out(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    install_rights(control_plane)
    control_plane.kubectl("delete", "clusterrolebinding", "numaplacement-controller")
    with Children() as children:
        controller = ControllerProcess(control_plane, children, tmp_path / "log")
        starting = threading.Thread(target=controller.start)
        starting.start()
        try:
            wait_until(
                lambda: controller.log.exists() and "forbidden" in controller.log.read_text().lower(),
                what="the refusal in the log",
                timeout=PATIENCE,
            )
        finally:
            install_rights(control_plane)
            starting.join(PATIENCE)
        controller.check()
        scene = Scene(control_plane, namespace)
        scene.place()
        scene.wait("Reconciling", "VmNotFound")


def test_it_tells_that_it_lives_and_ends_when_told(scene: Scene, start: Start) -> None:
    [port] = free_ports(1)
    controller = start(LIVENESS=f"http://127.0.0.1:{port}/healthz")

    def answer() -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as found:
                return str(json.loads(found.read())["controller"])
        except OSError:
            return None

    assert scene.until(answer, "a liveness answer") == "alive"
    child = controller.child
    assert child is not None
    os.kill(child.pid, signal.SIGTERM)
    assert child.process.wait(PATIENCE) == 0
    assert "Traceback" not in controller.log.read_text()
    controller.child = None


def test_kubevirt_may_come_later_and_the_api_server_may_go_away(tmp_path: Path) -> None:
    with ControlPlane() as control_plane, Children() as children:
        control_plane.kubectl("create", "-k", CRDS)
        control_plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        install_rights(control_plane)
        control_plane.create_namespace("prod")
        controller = ControllerProcess(control_plane, children, tmp_path / "log")
        controller.start()
        scene = Scene(control_plane, "prod")
        scene.place()
        scene.wait("Reconciling", "VmNotFound")
        crd = control_plane.kubectl("create", "-f", kubevirt_crds(), "-o", "name").stdout.split()
        control_plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", *crd)
        begin_vm(scene)
        with scene.agent():
            scene.wait("Ready", "Placed")
        controller.check()

        control_plane.stop_apiserver(force=True)
        control_plane.start_apiserver()
        scene.place("web", vm="web")
        scene.wait("Reconciling", "VmNotFound", name="web")
        begin_vm(scene, "web")
        with scene.agent():
            scene.wait("Ready", "Placed", name="web")
        controller.check()
