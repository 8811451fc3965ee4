# SPDX-License-Identifier: Apache-2.0
"""Which process is the VM's. Paths and command lines are those of a host of KubeVirt 1.9."""

import dataclasses
import itertools

import pytest

from numaplacement.agent.identify import ProcessFacts, WantedVm, identify, pod_uid
from numaplacement.agent.support import Refusal
from numaplacement.engine.qemu import guest_names, is_qemu, uuids

POD = "6e7b6e74-c27a-488b-ac18-c6c49d07c506"
OTHER_POD = "e96ac264-6315-4b6b-9ffd-06ba6ed100d3"
CONTAINER = "cf7e3f6492d2a8b8539fee344c982a42f89e80d80472e750aab53df34bb6d34f"
UUID = "7ea5a1c4-ab76-4776-b8e9-f00301702c02"
SYSTEMD_POD = POD.replace("-", "_")
ANOTHER = WantedVm(namespace="default", name="vm1", pod_uid=POD, firmware_uuid=UUID)

CGROUPS = {
    "cgroupfs, burstable": f"0::/kubepods/burstable/pod{POD}/{CONTAINER}",
    "cgroupfs, guaranteed": f"0::/kubepods/pod{POD}/{CONTAINER}",
    "cgroupfs, CRI-O": f"0::/kubepods/besteffort/pod{POD}/crio-{CONTAINER}",
    "systemd, containerd": (
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD_POD}.slice"
        f"/cri-containerd-{CONTAINER}.scope"
    ),
    "systemd, guaranteed": f"0::/kubepods.slice/kubepods-pod{SYSTEMD_POD}.slice/cri-containerd-{CONTAINER}.scope",
    "systemd, CRI-O with crun": (
        f"0::/kubepods.slice/kubepods-pod{SYSTEMD_POD}.slice/crio-{CONTAINER}.scope/container"
    ),
    "threaded housekeeping": f"0::/kubepods/pod{POD}/{CONTAINER}/housekeeping",
    "from a private cgroup namespace": f"0::/../../burstable/pod{POD}/{CONTAINER}",
    "cgroup root of the kubelet": f"0::/runtime/kubelet/kubepods/pod{POD}/{CONTAINER}",
    "systemd under a cgroup root": f"0::/kubelet.slice/kubelet-kubepods-pod{SYSTEMD_POD}.slice/x.scope",
    "the pod's own cgroup": f"0::/kubepods/pod{POD}",
    "version 1": f"12:cpuset:/kubepods/burstable/pod{POD}/{CONTAINER}\n0::/kubepods/burstable/pod{POD}/{CONTAINER}",
}
NO_POD = {
    "root": "0::/",
    "a service": "0::/system.slice/containerd.service",
    "empty": "",
    "a longer word": f"0::/kubepods/xpod{POD}/c",
    "a longer UID": f"0::/kubepods/pod{POD}0/c",
    "half a UID": f"0::/kubepods/pod{POD[:-1]}/c",
    "a name like it": f"0::/kubepods/podium-{POD}/c",
}


@pytest.mark.parametrize("name", CGROUPS)
def test_the_pod_is_in_the_cgroup_path(name):
    assert pod_uid(CGROUPS[name] + "\n") == POD


@pytest.mark.parametrize("name", NO_POD)
def test_no_pod(name):
    assert pod_uid(NO_POD[name]) == ""


@pytest.mark.parametrize("inner", [f"pod{POD}", f"kubepods-pod{SYSTEMD_POD}.slice"])
def test_what_a_container_calls_its_own_cgroups_does_not_count(inner):
    assert pod_uid(f"0::/kubepods/pod{OTHER_POD}/{CONTAINER}/{inner}/x") == OTHER_POD


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/usr/bin/qemu-system-x86_64", True),
        ("/usr/libexec/qemu-kvm", True),
        ("/usr/bin/qemu-system-aarch64", True),
        ("/usr/bin/qemu-system-s390x (deleted)", True),
        ("qemu-kvm", True),
        ("/usr/bin/qemu-img", False),
        ("/usr/bin/qemu-system-x86_64.sh", False),
        ("/usr/bin/my-qemu-kvm", False),
        ("/usr/bin/qemu-kvm/bash", False),
        ("/usr/bin/virt-launcher", False),
        ("", False),
        (None, False),
    ],
)
def test_executable(path, expected):
    assert is_qemu(path) is expected


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["-name", "guest=default_vm1,debug-threads=on"], ("default_vm1",)),
        (["-name", "debug-threads=on,guest=default_vm1"], ("default_vm1",)),
        (["--name", "guest=a_b"], ("a_b",)),
        (["-name", "a_b"], ("a_b",)),
        (["-name", "a_b,process=x"], ("a_b",)),
        (["-name", "guest=a,,b"], ("a,b",)),
        (["-name", "guest=a", "-name", "guest=b"], ("a", "b")),
        (["-object", "guest=a"], ()),
        (["-name"], ()),
        ([], ()),
    ],
)
def test_guest_names(words, names):
    assert guest_names(["/usr/bin/qemu-system-x86_64", *words]) == names


def test_uuids_in_lower_case():
    assert uuids(["qemu", "-uuid", "7EA5-X", "-smbios", "type=1,uuid=other"]) == ("7ea5-x",)


_pids = itertools.count(1000)


def process(
    *, cgroup=CGROUPS["cgroupfs, burstable"], executable="/usr/bin/qemu-system-x86_64", guest="default_vm1", uuid=UUID
):
    words = ["/usr/bin/qemu-system-x86_64"]
    words += ["-name", f"guest={guest},debug-threads=on"] if guest else []
    words += ["-uuid", uuid] if uuid else []
    return ProcessFacts(
        pid=next(_pids), start_time=1, cgroup=cgroup, executable=executable, command_line=(*words, "-S")
    )


LAUNCHER = process(executable="/usr/bin/virt-launcher", guest="", uuid="")
MONITOR = process(executable="/usr/bin/virt-launcher-monitor", guest="", uuid="")
PROBE = process(guest="", uuid="")
NEIGHBOUR = process(cgroup=f"0::/kubepods/pod{OTHER_POD}/{CONTAINER}")
FOUND = {
    "alone": ([process()], ANOTHER),
    "among its launcher's processes": ([LAUNCHER, MONITOR, process()], ANOTHER),
    "beside a neighbour of the same name": ([NEIGHBOUR, process()], ANOTHER),
    "beside libvirt's nameless probe": ([PROBE, process()], ANOTHER),
    "order without a UUID": ([process()], WantedVm(namespace="default", name="vm1", pod_uid=POD)),
    "neither has a UUID": ([process(uuid="")], WantedVm(namespace="default", name="vm1", pod_uid=POD)),
    "UUID in capitals": ([process(uuid=UUID.upper())], ANOTHER),
    "order's UUID in capitals": (
        [process()],
        WantedVm(namespace="default", name="vm1", pod_uid=POD, firmware_uuid=UUID.upper()),
    ),
    "housekeeping": ([process(cgroup=CGROUPS["threaded housekeeping"])], ANOTHER),
    "systemd": ([process(cgroup=CGROUPS["systemd, containerd"])], ANOTHER),
    "qemu-kvm": ([process(executable="/usr/libexec/qemu-kvm")], ANOTHER),
}


@pytest.mark.parametrize("name", FOUND)
def test_exactly_one(name):
    processes, wanted = FOUND[name]
    assert identify(processes, wanted) is processes[-1]


REFUSED = {
    "no process at all": ([], "PodNotFound", [POD]),
    "only other pods": ([NEIGHBOUR], "PodNotFound", [POD]),
    "no QEMU yet": ([LAUNCHER, MONITOR], "QemuNotFound", ["virt-launcher, virt-launcher-monitor"]),
    "QEMU's name in another directory only": (
        [process(executable="/qemu-kvm/sleep")], "QemuNotFound", ["sleep"],
    ),
    "programs may not be seen": ([process(executable=None)], "NoAccess", ["CAP_SYS_PTRACE"]),
    "two of them": ([process(), process()], "SeveralProcesses", ["2 QEMU processes", "default_vm1"]),
    "the VM's and another": ([process(), process(guest="default_vm2")], "SeveralProcesses", ["default_vm2"]),
    "another VM's name": ([process(guest="default_vm2")], "VmMismatch", ["default_vm2", "default_vm1 is expected"]),
    "another namespace": ([process(guest="other_vm1")], "VmMismatch", ["other_vm1"]),
    "a name that only begins so": ([process(guest="default_vm10")], "VmMismatch", ["default_vm10"]),
    "no name": ([PROBE], "VmMismatch", ["no guest name"]),
    "another UUID": ([process(uuid="0" * 8 + UUID[8:])], "VmMismatch", ["00000000-ab76", UUID]),
    "no UUID": ([process(uuid="")], "VmMismatch", ["UUID none"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    processes, reason, words = REFUSED[name]
    refusal = identify(processes, ANOTHER)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    for word in words:
        assert word in refusal.seen + refusal.remedy
    assert not refusal.permanent


@pytest.mark.parametrize(
    "words", [("-name", "guest=default_vm2"), ("-uuid", "00000000-0000-4000-8000-000000000000")], ids=["name", "uuid"]
)
def test_two_of_a_kind_on_one_command_line_are_no_match(words):
    facts = process()
    assert identify([facts], ANOTHER) is facts
    forged = dataclasses.replace(facts, command_line=(*facts.command_line, *words))
    assert identify([forged], ANOTHER).reason == "VmMismatch"
