# SPDX-License-Identifier: Apache-2.0
"""The rig's VMs are what they claim to be."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.vm import Backing, RunningVm, VmSpec
from tests.rig.vm_memory import memory_policy, numa_pages, numastat_p
from tests.rig.waiting import wait_until

Start = Callable[[VmSpec], RunningVm]
PAGES_PER_MIB = 256


def test_a_vm_is_a_kvm_process_in_its_pod_and_lies_where_it_should(start: Start) -> None:
    vm = start(VmSpec(namespace="prod", name="db", memory=512 << 20, numa_nodes=(1, 2, 3), paused=True))

    assert vm.accel == "kvm"
    threads = {task.read_text().strip() for task in Path(f"/proc/{vm.pid}/task").glob("*/comm")}
    assert "CPU 0/KVM" in threads
    command = Path(f"/proc/{vm.pid}/cmdline").read_bytes().split(b"\0")
    assert b"guest=prod_db,debug-threads=on" in command
    assert vm.uuid.encode() in command
    assert f"/kubepods/burstable/pod{vm.pod_uid}/" in Path(f"/proc/{vm.pid}/cgroup").read_text()
    assert Path(f"/proc/{vm.parent_pid}/comm").read_text() == "virt-launcher-m\n"
    assert Path(f"/proc/{vm.pid}/exe").readlink() == Path("/usr/bin/qemu-system-x86_64")

    assert numa_pages(vm.pid, vm.ram_address) == {1: 43520, 2: 43520, 3: 44032}
    assert memory_policy(vm.pid, vm.ram_address) == "default"
    os.kill(vm.pid, signal.SIGSTOP)  # so that both speak of the same moment
    everything = numa_pages(vm.pid)
    for node, mebibytes in numastat_p(vm.pid).items():
        assert mebibytes == pytest.approx(everything.get(node, 0) / PAGES_PER_MIB, abs=0.01)


def test_the_software_in_a_vm_writes_to_all_its_memory_and_finds_it_as_it_left_it(start: Start) -> None:
    vm = start(VmSpec(namespace="prod", name="db", memory=32 << 20, numa_nodes=(1, 2, 3)))
    last_page = vm.ram_size - 4096
    wait_until(lambda: vm.passes() >= 2, timeout=60, what="the second pass over the VM's memory")
    assert vm.read_u32(last_page) >= 2
    assert vm.read_u32(last_page + 4) == last_page
    assert vm.serial().startswith("alive\n..")

    subprocess.run(["migratepages", str(vm.pid), "all", "0"], check=True)
    moved = vm.passes()
    wait_until(lambda: vm.passes() >= moved + 2, timeout=60, what="a pass after its memory was moved")
    assert vm.errors() == 0

    vm.pause()
    stopped = vm.read_u32(last_page)
    vm.resume()
    wait_until(lambda: vm.read_u32(last_page) > stopped, timeout=60, what="a pass after the pause")


def test_migratepages_moves_nothing_that_a_passed_through_device_pins_and_calls_it_success(start: Start) -> None:
    vm = start(
        VmSpec(
            namespace="prod",
            name="gpu",
            memory=64 << 20,
            numa_nodes=(1,),
            vfio=True,
            backing=Backing.ANON_4K,
            paused=True,
        )
    )
    status = Path(f"/proc/{vm.pid}/status").read_text()
    pinned = int(status.partition("VmLck:")[2].split()[0]) // 4
    assert pinned > 63 * PAGES_PER_MIB  # all that the device can reach: RAM but for the hole below 1 MiB
    descriptors = set()
    for link in Path(f"/proc/{vm.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the monitor's connections come and go
            descriptors.add(str(link.readlink()))
    assert {"/dev/vfio/vfio", "anon_inode:kvm-vfio"} <= descriptors

    subprocess.run(["migratepages", str(vm.pid), "all", "0"], check=True)

    assert numa_pages(vm.pid, vm.ram_address)[1] == pinned


@pytest.mark.parametrize(
    ("qos", "driver", "path"),
    [
        ("Guaranteed", "cgroupfs", "kubepods/pod{uid}/"),
        ("Burstable", "systemd", "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid_}.slice/"),
    ],
)
def test_cgroups_of_other_shapes_with_a_static_cpuset(start: Start, qos: str, driver: str, path: str) -> None:
    spec = VmSpec(
        namespace="prod",
        name="db",
        memory=16 << 20,
        numa_nodes=(2,),
        qos=qos,
        cgroup_driver=driver,
        cpuset_cpus="2",
        cpuset_mems="2-3",
        accel="tcg",
    )
    vm = start(spec)
    assert vm.cgroup.startswith(path.format(uid=vm.pod_uid, uid_=vm.pod_uid.replace("-", "_")))
    status = Path(f"/proc/{vm.pid}/status").read_text()
    assert "Cpus_allowed_list:\t2\n" in status
    assert "Mems_allowed_list:\t2-3\n" in status
    assert Path(f"/sys/fs/cgroup/{vm.cgroup}/cgroup.procs").read_text().split() == [str(vm.parent_pid), str(vm.pid)]
