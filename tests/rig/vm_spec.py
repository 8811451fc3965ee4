# SPDX-License-Identifier: Apache-2.0
"""What VM to start, and QEMU's command line for it."""

from __future__ import annotations

import enum
import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
HUGE_PAGE = 2 << 20


class Backing(enum.StrEnum):
    """What a VM's RAM is made of: private 4 KiB pages, private huge pages, a memfd, a memfd of the 2 MiB pool."""

    ANON_4K = "anon-4k"
    THP = "thp"
    MEMFD = "memfd"
    HUGETLB = "hugetlb"

    @property
    def page_size(self) -> int:
        """Bytes of the pages the kernel cannot split."""
        return HUGE_PAGE if self is Backing.HUGETLB else PAGE


@dataclass(frozen=True, kw_only=True)
class VmSpec:
    """What VM to start.

    `memory` is in bytes. `numa_nodes` is where its RAM shall lie, in equal parts one after the other if `exact_spread`;
    of a VM with `vfio` it lies there as it was first touched, since what a device pins cannot be placed afterwards.
    `qos` is Guaranteed, Burstable or BestEffort; `cgroup_driver` cgroupfs or systemd. RAM in the huge-page pool needs
    `nr_hugepages` raised before. `one_tick_in` and `stride` are how busy the VM is and what it writes (vm_rom.py); with
    `paused` it does not run until `resume`.
    """

    namespace: str
    name: str
    memory: int = 512 << 20
    numa_nodes: tuple[int, ...] = (1, 2, 3)
    exact_spread: bool = True
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    pod_uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    qos: str = "Burstable"
    cgroup_driver: str = "cgroupfs"
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    backing: Backing = Backing.THP
    vfio: bool = False
    paused: bool = False
    accel: str = "auto"
    one_tick_in: int = 4
    stride: int = PAGE


def qemu_command(spec: VmSpec, *, state_dir: Path, accel: str, vfio_device: str | None) -> list[str]:
    """QEMU's command line as libvirt writes it for a KubeVirt VM (recorded with KubeVirt 1.9.0), with our ROM and
    prealloc.
    """
    ram = {"qom-type": "memory-backend-ram", "id": "pc.ram", "size": spec.memory, "prealloc": True}
    ram["prealloc-threads"] = len(spec.numa_nodes)
    if spec.backing in {Backing.MEMFD, Backing.HUGETLB}:
        ram["qom-type"] = "memory-backend-memfd"
    if spec.backing is Backing.HUGETLB:
        ram |= {"hugetlb": True, "hugetlbsize": HUGE_PAGE}
    monitor = f"socket,id=charmonitor,path={state_dir}/monitor.sock,server=on,wait=off"
    smbios = f"type=1,manufacturer=KubeVirt,product=None,uuid={spec.uuid},family=KubeVirt"
    command = ["/usr/bin/qemu-system-x86_64", "-name", f"guest={spec.namespace}_{spec.name},debug-threads=on", "-S"]
    command += ["-machine", "pc,usb=off,dump-guest-core=off,memory-backend=pc.ram", "-accel", accel]
    command += ["-m", f"size={spec.memory // 1024}k", "-object", json.dumps(ram), "-overcommit", "mem-lock=off"]
    command += ["-smp", "1,sockets=1,cores=1,threads=1", "-uuid", spec.uuid, "-smbios", smbios]
    command += ["-display", "none", "-no-user-config", "-nodefaults", "-bios", f"{state_dir}/rom.bin"]
    command += ["-chardev", monitor, "-mon", "chardev=charmonitor,id=monitor,mode=control"]
    command += ["-rtc", "base=utc", "-no-shutdown", "-boot", "strict=on"]
    command += ["-chardev", f"file,id=charserial0,path={state_dir}/serial.log"]
    command += ["-device", json.dumps({"driver": "isa-serial", "chardev": "charserial0", "id": "serial0", "index": 0})]
    if vfio_device:
        command += ["-device", json.dumps({"driver": "vfio-pci", "host": vfio_device, "id": "hostdev0"})]
    return [*command, "-msg", "timestamp=on"]
