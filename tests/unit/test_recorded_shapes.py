# SPDX-License-Identifier: Apache-2.0
"""The builders fill every placeholder of the recorded objects and nothing else."""

import json
from typing import get_args

import pytest

from tests.rig.kubevirt import Shape, launcher_pod, new_vm, vmi

SHAPES = get_args(Shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_carry_the_vms_identity(shape: Shape) -> None:
    vm = new_vm(namespace="prod", name="db", host="host-a", firmware_uuid="7ea5a1c4-ab76-4776-b8e9-f00301702c02")
    instance, pod = vmi(vm, shape=shape), launcher_pod(vm, shape=shape)
    assert "${" not in json.dumps([instance, pod])
    assert instance["status"]["activePods"] == {vm.pod_uid: "host-a"}
    assert instance["spec"]["domain"]["firmware"]["uuid"] == "7ea5a1c4-ab76-4776-b8e9-f00301702c02"
    owner = pod["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == (
        "VirtualMachineInstance", "db", vm.vmi_uid, True,
    )  # fmt: skip
    assert pod["metadata"]["namespace"] == instance["metadata"]["namespace"] == "prod"
    assert pod["spec"]["nodeName"] == instance["status"]["nodeName"] == "host-a"
    assert pod["metadata"]["name"].startswith("virt-launcher-db-")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["1", "true", "null", "a.b", "x" * 63])
def test_any_name_stays_a_string(shape: Shape, name: str) -> None:
    vm = new_vm(namespace="prod", name=name, host="1")
    assert vmi(vm, shape=shape)["metadata"]["name"] == name
    assert launcher_pod(vm, shape=shape)["spec"]["containers"][0]["command"][4] == name
    assert vmi(vm, shape=shape)["status"]["nodeName"] == "1"


def test_objects_are_separate_copies() -> None:
    vm = new_vm(namespace="prod", name="db", host="host-a")
    vmi(vm)["status"]["phase"] = "Failed"
    launcher_pod(vm)["spec"]["containers"].clear()
    assert vmi(vm)["status"]["phase"] == "Running"
    assert launcher_pod(vm)["spec"]["containers"]


def test_guest_memory_shows_where_kubevirt_shows_it() -> None:
    vm = new_vm(namespace="prod", name="db", host="host-a")
    assert vmi(vm)["spec"]["domain"]["memory"]["guest"] == "256Mi"
    assert launcher_pod(vm)["spec"]["containers"][0]["resources"]["requests"]["memory"] == "492Mi"

    instance = vmi(vm, guest_mebibytes=512)
    assert instance["spec"]["domain"]["memory"]["guest"] == "512Mi"
    assert {instance["status"]["memory"][key] for key in ("guestAtBoot", "guestCurrent", "guestRequested")} == {"512Mi"}
    # The overhead KubeVirt had added to the recorded VM stays: 492 - 256.
    pod = launcher_pod(vm, guest_mebibytes=512)
    assert pod["spec"]["containers"][0]["resources"]["requests"]["memory"] == "748Mi"
    pod = launcher_pod(vm, shape="kvm", guest_mebibytes=512)
    assert pod["spec"]["containers"][0]["resources"]["limits"]["hugepages-2Mi"] == "512Mi"
