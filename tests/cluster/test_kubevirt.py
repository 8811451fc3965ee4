# SPDX-License-Identifier: Apache-2.0
"""The VMs of the tests are held to KubeVirt's own schema and keep the shape that was recorded."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.control_plane import ControlPlane, ControlPlaneError
from tests.rig.kubevirt import Shape, create_host, delete_vm, launcher_pod, new_vm, set_phase, start_vm, vmi

SHAPES: tuple[Shape, ...] = ("emulated", "kvm")
SET_BY_API_SERVER = ("creationTimestamp", "generation", "managedFields", "resourceVersion")


@pytest.fixture
def host(control_plane: ControlPlane, namespace: str) -> Iterator[str]:
    name = f"host-{namespace}"
    create_host(control_plane, name)
    yield name
    control_plane.kubectl("delete", "node", name)


def without(found: dict[str, Any]) -> dict[str, Any]:
    """Drop what the API server adds to metadata."""
    rest = copy.deepcopy(found)
    for key in SET_BY_API_SERVER:
        rest["metadata"].pop(key, None)
    return rest


@pytest.mark.parametrize("shape", SHAPES)
def test_recorded_vmi_is_stored_whole(control_plane: ControlPlane, namespace: str, shape: Shape) -> None:
    wanted = vmi(new_vm(namespace=namespace, name="db", host="host-a"), shape=shape)
    stored = without(control_plane.create(wanted))
    # The API server gives the UID; all the rest, status included, is kept: the schema prunes none of it.
    stored["metadata"]["uid"] = wanted["metadata"]["uid"]
    assert stored == wanted


@pytest.mark.parametrize("shape", SHAPES)
def test_recorded_pod_is_stored_whole(control_plane: ControlPlane, namespace: str, shape: Shape) -> None:
    vm = start_vm(control_plane, namespace=namespace, name="db", host="host-a", shape=shape, guest_mebibytes=512)
    stored = control_plane.get("pod", vm.pod_name, "-n", namespace)
    wanted = launcher_pod(vm, shape=shape, guest_mebibytes=512)
    # The recorded cluster ran without the ServiceAccount admission plug-in, which is what puts these two in.
    assert stored["spec"] == {**wanted["spec"], "serviceAccount": "default", "serviceAccountName": "default"}
    assert stored["status"]["phase"] == "Running"
    ids = [status["containerID"] for status in stored["status"]["containerStatuses"]]
    assert ids == [f"containerd://{vm.container_id}"]
    metadata = without(stored)["metadata"]
    assert metadata == wanted["metadata"]
    assert metadata["ownerReferences"][0]["uid"] == vm.vmi_uid


def test_started_vm_points_at_its_real_pod(control_plane: ControlPlane, namespace: str, host: str) -> None:
    uuid = "7ea5a1c4-ab76-4776-b8e9-f00301702c02"
    vm = start_vm(control_plane, namespace=namespace, name="db", host=host, guest_mebibytes=512, firmware_uuid=uuid)
    stored = control_plane.get("vmi", "db", "-n", namespace)
    pod = control_plane.get("pod", vm.pod_name, "-n", namespace)
    assert stored["metadata"]["uid"] == vm.vmi_uid
    assert stored["status"]["activePods"] == {pod["metadata"]["uid"]: host}
    assert (stored["status"]["nodeName"], stored["status"]["phase"]) == (host, "Running")
    assert stored["spec"]["domain"]["firmware"]["uuid"] == uuid
    assert stored["spec"]["domain"]["memory"]["guest"] == "512Mi"


def test_host_is_ready_and_not_tainted(control_plane: ControlPlane, host: str) -> None:
    node = control_plane.get("node", host)
    assert "taints" not in node["spec"]
    assert {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"] == "True"


def test_phase_can_be_switched_and_vm_deleted(control_plane: ControlPlane, namespace: str) -> None:
    vm = start_vm(control_plane, namespace=namespace, name="db", host="host-a")
    set_phase(control_plane, vm, "Succeeded")
    assert control_plane.get("vmi", "db", "-n", namespace)["status"]["phase"] == "Succeeded"
    assert control_plane.get("pod", vm.pod_name, "-n", namespace)["status"]["phase"] == "Succeeded"
    delete_vm(control_plane, vm)
    assert control_plane.get("vmi", "-n", namespace)["items"] == []
    assert control_plane.get("pods", "-n", namespace)["items"] == []
    again = start_vm(control_plane, namespace=namespace, name="db", host="host-a")
    assert again.vmi_uid != vm.vmi_uid


def test_malformed_vmi_is_refused_by_kubevirts_schema(control_plane: ControlPlane, namespace: str) -> None:
    good = vmi(new_vm(namespace=namespace, name="db", host="host-a"))
    without_domain = copy.deepcopy(good)
    del without_domain["spec"]["domain"]
    with pytest.raises(ControlPlaneError, match=r"spec\.domain: Required value"):
        control_plane.create(without_domain)

    wrong_type = copy.deepcopy(good)
    wrong_type["spec"]["domain"]["cpu"]["cores"] = "two"
    with pytest.raises(ControlPlaneError, match=r"cores.*must be of type integer"):
        control_plane.create(wrong_type)

    unknown_field = copy.deepcopy(good)
    unknown_field["spec"]["domain"]["numaNode"] = 1
    with pytest.raises(ControlPlaneError, match=r'unknown field "spec\.domain\.numaNode"'):
        control_plane.create(unknown_field)


def test_token_of_an_agents_pod_carries_its_host(control_plane: ControlPlane, namespace: str, host: str) -> None:
    """KEP-4193: what the admission policy for agents decides by."""
    control_plane.kubectl("create", "serviceaccount", "agent", "-n", namespace)
    spec = {"serviceAccountName": "agent", "nodeName": host, "containers": [{"name": "agent", "image": "none"}]}
    metadata = {"name": "agent", "namespace": namespace}
    control_plane.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

    def extra(bound_pod: str | None) -> dict[str, list[str]]:
        kubeconfig = control_plane.service_account_kubeconfig(namespace, "agent", bound_pod=bound_pod)
        whoami = control_plane.kubectl("auth", "whoami", "-o", "json", kubeconfig=kubeconfig).stdout
        found: dict[str, list[str]] = json.loads(whoami)["status"]["userInfo"]["extra"]
        return found

    assert extra("agent")["authentication.kubernetes.io/node-name"] == [host]
    assert extra("agent")["authentication.kubernetes.io/pod-name"] == ["agent"]
    assert "authentication.kubernetes.io/node-name" not in extra(None)
