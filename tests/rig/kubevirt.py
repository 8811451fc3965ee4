# SPDX-License-Identifier: Apache-2.0
"""VMs as the API server shows them: VirtualMachineInstance and virt-launcher pod in the shape KubeVirt 1.9 gives them.

The objects come from `recorded/`, taken from a real KubeVirt; here only names, UIDs, host and memory are put in. In a
test these functions do the writing that virt-controller and virt-handler do. KubeVirt declares no status subresource
for VMIs: their status is written with the object itself.
"""

import dataclasses
import datetime
import functools
import json
import secrets
import string
import uuid
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from tests.rig.control_plane import ControlPlane

RECORDED = Path(__file__).parent / "recorded"
Shape = Literal["emulated", "kvm"]
"""Which recording: software emulation, or KVM with dedicated CPUs, NUMA passthrough and 2 MiB huge pages."""
Object = dict[str, Any]
FINAL_PHASES = ("Succeeded", "Failed")


@dataclasses.dataclass(frozen=True)
class Vm:
    """What tells one VM from another, under the names the recordings use."""

    namespace: str
    vm: str
    host: str
    vmi_uid: str
    pod_uid: str
    pod_name: str
    firmware_uuid: str
    container_id: str


def new_vm(*, namespace: str, name: str, host: str, firmware_uuid: str | None = None) -> Vm:
    """Return the identity of a VM that exists nowhere yet; UIDs are random until an API server gives real ones."""
    return Vm(
        namespace=namespace,
        vm=name,
        host=host,
        vmi_uid=str(uuid.uuid4()),
        pod_uid=str(uuid.uuid4()),
        pod_name=f"virt-launcher-{name}-{secrets.token_hex(3)[:5]}",
        firmware_uuid=firmware_uuid or str(uuid.uuid4()),
        container_id=secrets.token_hex(32),
    )


def vmi(vm: Vm, *, shape: Shape = "emulated", guest_mebibytes: int | None = None) -> Object:
    """Return the running VM's VirtualMachineInstance; guest memory is the recorded one unless given."""
    found = _recorded("vmi", shape, vm)
    if guest_mebibytes is not None:
        memory = f"{guest_mebibytes}Mi"
        found["spec"]["domain"]["memory"]["guest"] = memory
        found["status"]["memory"].update(guestAtBoot=memory, guestCurrent=memory, guestRequested=memory)
    return found


def launcher_pod(vm: Vm, *, shape: Shape = "emulated", guest_mebibytes: int | None = None) -> Object:
    """Return the running VM's virt-launcher pod, controlled by the VMI with `vm.vmi_uid`."""
    found = _recorded("pod", shape, vm)
    if guest_mebibytes is not None:
        resources = found["spec"]["containers"][0]["resources"]
        if shape == "kvm":
            for amounts in (resources["requests"], resources["limits"]):
                amounts["hugepages-2Mi"] = f"{guest_mebibytes}Mi"
        else:
            overhead = int(found["metadata"]["annotations"]["kubevirt.io/memory-overhead-bytes"]) >> 20
            resources["requests"]["memory"] = f"{guest_mebibytes + overhead}Mi"
        found["status"]["containerStatuses"][0]["resources"] = resources
    return found


def schedule_vm(
    control_plane: ControlPlane,
    *,
    namespace: str,
    name: str,
    host: str,
    shape: Shape = "emulated",
    guest_mebibytes: int | None = None,
    firmware_uuid: str | None = None,
) -> Vm:
    """Bring a VM so far that its pod runs and QEMU may start (phase Scheduled), and return it with its real UIDs."""
    vm = new_vm(namespace=namespace, name=name, host=host, firmware_uuid=firmware_uuid)
    running = vmi(vm, shape=shape, guest_mebibytes=guest_mebibytes)
    del running["metadata"]["labels"]
    created = control_plane.create({**running, "status": {"phase": "Scheduling"}})
    vm = dataclasses.replace(vm, vmi_uid=created["metadata"]["uid"])

    pod = launcher_pod(vm, shape=shape, guest_mebibytes=guest_mebibytes)
    created = control_plane.create(pod)
    vm = dataclasses.replace(vm, pod_uid=created["metadata"]["uid"])
    status = {"status": pod["status"]}
    _patch(control_plane, "pod", vm.pod_name, namespace, status, "--subresource=status")
    _patch(control_plane, "vmi", name, namespace, {"status": {"phase": "Scheduled"}})
    return vm


def run_vm(
    control_plane: ControlPlane, vm: Vm, *, shape: Shape = "emulated", guest_mebibytes: int | None = None
) -> None:
    """Bring a scheduled VM to phase Running, as virt-handler does once QEMU runs."""
    running = vmi(vm, shape=shape, guest_mebibytes=guest_mebibytes)
    update = {"metadata": {"labels": running["metadata"]["labels"]}, "status": running["status"]}
    _patch(control_plane, "vmi", vm.vm, vm.namespace, update)


def start_vm(
    control_plane: ControlPlane,
    *,
    namespace: str,
    name: str,
    host: str,
    shape: Shape = "emulated",
    guest_mebibytes: int | None = None,
    firmware_uuid: str | None = None,
) -> Vm:
    """Bring a VM to phase Running on the API server, in the steps KubeVirt takes, and return it with its real UIDs."""
    vm = schedule_vm(
        control_plane,
        namespace=namespace,
        name=name,
        host=host,
        shape=shape,
        guest_mebibytes=guest_mebibytes,
        firmware_uuid=firmware_uuid,
    )
    run_vm(control_plane, vm, shape=shape, guest_mebibytes=guest_mebibytes)
    return vm


def set_phase(control_plane: ControlPlane, vm: Vm, phase: str) -> None:
    """Set the VMI's phase; a final one ends its pod as well, as it does when QEMU has gone."""
    if phase in FINAL_PHASES:
        _patch(control_plane, "pod", vm.pod_name, vm.namespace, {"status": {"phase": phase}}, "--subresource=status")
    _patch(control_plane, "vmi", vm.vm, vm.namespace, {"status": {"phase": phase}})


def delete_vm(control_plane: ControlPlane, vm: Vm) -> None:
    """Delete the VMI, then its pod, then take the finalizer away: what virt-controller does, in its order."""
    where = ("-n", vm.namespace)
    control_plane.kubectl("delete", "vmi", vm.vm, *where, "--wait=false")
    control_plane.kubectl("delete", "pod", vm.pod_name, *where, "--force", "--grace-period=0")
    _patch(control_plane, "vmi", vm.vm, vm.namespace, {"metadata": {"finalizers": None}})
    control_plane.kubectl("wait", "--for=delete", f"vmi/{vm.vm}", *where, "--timeout=30s")


def host(name: str) -> Object:
    """Return a Node that is ready to run VMs."""
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubevirt.io/schedulable": "true",
            },
        },
        "spec": {},
        "status": {
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "10.0.2.15"}, {"type": "Hostname", "address": name}],
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        },
    }


def create_host(control_plane: ControlPlane, name: str) -> None:
    """Create a Node and make it ready: the API server taints every new one until a kubelet has reported."""
    node = host(name)
    control_plane.create(node)
    status = json.dumps({"status": node["status"]})
    control_plane.kubectl("patch", "node", name, "--type=merge", "--subresource=status", "-p", status)
    control_plane.kubectl("patch", "node", name, "--type=merge", "-p", '{"spec":{"taints":null}}')


def _patch(control_plane: ControlPlane, kind: str, name: str, namespace: str, change: Object, *flags: str) -> None:
    control_plane.kubectl("patch", kind, name, "-n", namespace, "--type=merge", *flags, "-p", json.dumps(change))


def _recorded(kind: Literal["pod", "vmi"], shape: Shape, vm: Vm) -> Object:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    filled = _fill(_load(kind, shape), {**dataclasses.asdict(vm), "time": now})
    return cast("Object", filled)


@functools.cache
def _load(kind: str, shape: str) -> object:
    found: object = yaml.safe_load((RECORDED / f"{kind}-{shape}.yaml").read_text())
    return found


def _fill(template: object, values: dict[str, str]) -> object:
    """Return a copy with each ${name} in keys and strings replaced; after parsing, so a VM named "1" stays a string."""
    if isinstance(template, dict):
        return {_fill(key, values): _fill(value, values) for key, value in template.items()}
    if isinstance(template, list):
        return [_fill(item, values) for item in template]
    if isinstance(template, str):
        return string.Template(template).substitute(values)
    return template
