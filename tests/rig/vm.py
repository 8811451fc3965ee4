# SPDX-License-Identifier: Apache-2.0
"""Real VMs on the emulated host, as KubeVirt and libvirt would leave them there. Runs inside the guest, as root.

A VM is Debian's QEMU under KVM with libvirt's command line, in a kubelet-shaped cgroup, below a parent that stays,
running the ROM of vm_rom.py. Its memory is where the kernel's default policy put it: QEMU's threads first touched it
from CPUs of the wanted NUMA nodes, as happens on real hosts, and no policy is left behind.

    python -m tests.rig.vm start --namespace prod --name db --memory 512M --numa-nodes 1,2,3      prints JSON
    python -m tests.rig.vm numa --pid PID  |  watch --pid PID  |  stop --pid PID
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.rig import vm_rom
from tests.rig.vm_cgroup import CGROUPS, make_cgroup
from tests.rig.vm_memory import VmError, node_cpus, numa_pages, numastat_p, parse_list, ram_mapping
from tests.rig.vm_monitor import qmp, wait_for_monitor
from tests.rig.vm_placement import let_run_anywhere, numa_balancing_off, spread
from tests.rig.vm_spec import PAGE, Backing, VmSpec, qemu_command

STATES = Path("/run/rig-vm")
_PR_SET_THP_DISABLE = 41
_START_LIMIT = 90.0


@dataclass(frozen=True, kw_only=True)
class RunningVm:
    """A started VM: QEMU's PID, its parent's, its cgroup below /sys/fs/cgroup, and where its RAM is in QEMU's address
    space.
    """

    namespace: str
    name: str
    uuid: str
    pod_uid: str
    pid: int
    parent_pid: int
    accel: str
    cgroup: str
    ram_address: int
    ram_size: int
    state_dir: str
    start_seconds: float

    def qmp(self, command: str, **arguments: object) -> object:
        """Run one QMP command on QEMU's monitor and return its answer. Raises VmError when QEMU refuses it."""
        return qmp(Path(self.state_dir) / "monitor.sock", command, arguments)

    def pause(self) -> None:
        """Stop its vCPUs."""
        self.qmp("stop")

    def resume(self) -> None:
        """Let its vCPUs run again."""
        self.qmp("cont")

    def passes(self) -> int:
        """How often the software in the VM has been through all its memory by now."""
        return self.read_u32(vm_rom.PASSES_ADDRESS)

    def errors(self) -> int:
        """How many places the software in the VM has found wrong."""
        return self.read_u32(vm_rom.ERRORS_ADDRESS)

    def time(self) -> int:
        """What the software in the VM last read from its clock: thousands of ticks (vm_rom.py), modulo 2**32."""
        return self.read_u32(vm_rom.TIME_ADDRESS)

    def longest_pause(self) -> int:
        """The longest the software in the VM went without a step since it began or since `forget_pauses`, by its own
        clock.
        """
        return self.read_u32(vm_rom.PAUSE_ADDRESS)

    def forget_pauses(self) -> None:
        """Begin anew with the longest pause."""
        self.write_u32(vm_rom.PAUSE_ADDRESS, 0)

    def read_u32(self, guest_address: int) -> int:
        """A number in the VM's memory, read through /proc/PID/mem."""
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(self.ram_address + guest_address)
            return int.from_bytes(memory.read(4), "little")

    def write_u32(self, guest_address: int, value: int) -> None:
        """Put a number into the VM's memory from outside."""
        with Path(f"/proc/{self.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(self.ram_address + guest_address)
            memory.write(value.to_bytes(4, "little"))

    def serial(self) -> str:
        """What the VM wrote to its serial port."""
        return (Path(self.state_dir) / "serial.log").read_text()

    def stop(self) -> None:
        """End QEMU, wait until it is gone and remove its cgroup. Harmless when it has ended already."""
        for pid in (self.pid, self.parent_pid):
            _kill_and_wait(pid)
        for group in (CGROUPS / self.cgroup, (CGROUPS / self.cgroup).parent):
            if group.is_dir() and not any(child.is_dir() for child in group.iterdir()):
                group.rmdir()
        (Path(self.state_dir) / "state.json").unlink(missing_ok=True)


def start_vm(spec: VmSpec) -> RunningVm:
    """Start a VM and wait until it runs and its memory lies where `spec` wants it. Raises VmError."""
    begin = time.monotonic()
    if spec.cpuset_mems and not set(spec.numa_nodes) <= set(parse_list(spec.cpuset_mems)):
        raise VmError(f"cpuset.mems {spec.cpuset_mems} keeps the VM's memory off NUMA nodes {spec.numa_nodes}")
    state_dir = STATES / spec.uuid
    state_dir.mkdir(parents=True, exist_ok=True)
    rom = vm_rom.build(ram_size=spec.memory, one_tick_in=spec.one_tick_in, stride=spec.stride)
    (state_dir / "rom.bin").write_bytes(rom)
    accel = spec.accel if spec.accel != "auto" else "kvm" if Path("/dev/kvm").exists() else "tcg"
    vfio_device = bind_vfio() if spec.vfio else None
    cgroup = make_cgroup(spec)
    if spec.cpuset_mems:
        (cgroup / "cpuset.mems").write_text(spec.cpuset_mems)
    cpus = {cpu for node in spec.numa_nodes for cpu in node_cpus(node)}

    def enter() -> None:  # between fork and exec, in QEMU's parent; all of it is inherited by QEMU
        (cgroup / "cgroup.procs").write_text("0")
        os.sched_setaffinity(0, cpus)
        if spec.backing is Backing.ANON_4K:
            ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)

    command = qemu_command(spec, state_dir=state_dir, accel=accel, vfio_device=vfio_device)
    with numa_balancing_off():
        _launch(command, state_dir / "qemu.log", enter)
        pid = wait_for_monitor(state_dir, cgroup, deadline=begin + _START_LIMIT)
        parent_pid = _parent(pid)
        let_run_anywhere(pid, parent_pid)
        ram_address = ram_mapping(pid, spec.memory)
        if spec.exact_spread and not spec.vfio:
            spread(pid, ram_address, spec.memory, numa_nodes=spec.numa_nodes, page_size=spec.backing.page_size)
        lies_on = numa_pages(pid, ram_address)
    if not set(lies_on) <= set(spec.numa_nodes) or sum(lies_on.values()) != spec.memory // PAGE:
        raise VmError(f"the VM's memory should lie on NUMA nodes {spec.numa_nodes}, pages by node are {lies_on}")
    if spec.cpuset_cpus:
        (cgroup / "cpuset.cpus").write_text(spec.cpuset_cpus)
    vm = RunningVm(
        namespace=spec.namespace,
        name=spec.name,
        uuid=spec.uuid,
        pod_uid=spec.pod_uid,
        pid=pid,
        parent_pid=parent_pid,
        accel=accel,
        cgroup=str(cgroup.relative_to(CGROUPS)),
        ram_address=ram_address,
        ram_size=spec.memory,
        state_dir=str(state_dir),
        start_seconds=round(time.monotonic() - begin, 2),
    )
    if not spec.paused:
        vm.resume()
    (state_dir / "state.json").write_text(json.dumps(asdict(vm)))
    return vm


def _launch(command: list[str], log: Path, enter: Callable[[], None]) -> None:
    """Start QEMU below a parent that stays, in the same cgroup, as virt-launcher-monitor does in KubeVirt's pods."""
    script = '(echo virt-launcher-m >/proc/self/comm; "$@" & wait) &'
    with log.open("wb") as output:
        subprocess.run(
            ["/bin/sh", "-c", script, "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=enter,
            start_new_session=True,
            check=True,
        )


def find_vm(pid: int) -> RunningVm:
    """The VM started here whose QEMU has this PID. Raises VmError when there is none."""
    for state in STATES.glob("*/state.json"):
        values = json.loads(state.read_text())
        if values["pid"] == pid:
            return RunningVm(**values)
    raise VmError(f"no VM of this rig has PID {pid}")


def bind_vfio() -> str:
    """Give QEMU's `edu` device (1234:11e8) to vfio-pci, as KubeVirt does with a device to be passed through; its PCI
    address.
    """
    subprocess.run(["modprobe", "-a", "vfio_iommu_type1", "vfio-pci"], check=True)
    for device in Path("/sys/bus/pci/devices").iterdir():
        if (device / "device").read_text().strip() == "0x11e8":
            (device / "driver_override").write_text("vfio-pci")
            Path("/sys/bus/pci/drivers_probe").write_text(device.name)
            if not (device / "iommu_group").exists():
                raise VmError("the edu device has no IOMMU group: was the host booted with intel_iommu=on?")
            return device.name
    raise VmError("this host has no edu device to pass through")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _kill_and_wait(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):  # QEMU's parent ends by itself once QEMU has
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], 30)[0]:
            raise VmError(f"process {pid} does not end")
    finally:
        os.close(handle)


def parse_size(text: str) -> int:
    """`512M`, `1G` or a number of bytes."""
    match = re.fullmatch(r"(\d+)([KMG]?)(i?B?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512M")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.rig.vm", description="Real VMs on the emulated host.")
    actions = parser.add_subparsers(dest="action", required=True)
    start = actions.add_parser("start", help="start a VM and print what it is")
    start.add_argument("--namespace", required=True)
    start.add_argument("--name", required=True)
    start.add_argument("--uuid", default=argparse.SUPPRESS)
    start.add_argument("--pod-uid", default=argparse.SUPPRESS)
    start.add_argument("--memory", type=parse_size, default=argparse.SUPPRESS)
    start.add_argument("--numa-nodes", type=lambda text: tuple(parse_list(text)), default=argparse.SUPPRESS)
    start.add_argument("--qos", choices=("Guaranteed", "Burstable", "BestEffort"), default=argparse.SUPPRESS)
    start.add_argument("--cgroup-driver", choices=("cgroupfs", "systemd"), default=argparse.SUPPRESS)
    start.add_argument("--cpuset-cpus", default=argparse.SUPPRESS)
    start.add_argument("--cpuset-mems", default=argparse.SUPPRESS)
    start.add_argument("--backing", type=Backing, choices=list(Backing), default=argparse.SUPPRESS)
    start.add_argument("--paused", action="store_true", default=argparse.SUPPRESS)
    start.add_argument("--vfio", action="store_true", default=argparse.SUPPRESS)
    start.add_argument("--accel", choices=("auto", "kvm", "tcg"), default=argparse.SUPPRESS)
    for name, text in (("numa", "its 4 KiB pages by NUMA node"), ("watch", "what runs in it"), ("stop", "end it")):
        actions.add_parser(name, help=text).add_argument("--pid", type=int, required=True)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command line; every answer is one line of JSON."""
    options = vars(_parser().parse_args(arguments))
    action = options.pop("action")
    try:
        if action == "start":
            answer: object = asdict(start_vm(VmSpec(**options)))
        elif action == "numa":
            pid = options["pid"]
            ram = numa_pages(pid, find_vm(pid).ram_address)
            answer = {"numa_maps": numa_pages(pid), "ram": ram, "numastat_mib": numastat_p(pid)}
        else:
            vm = find_vm(options["pid"])
            if action == "stop":
                vm.stop()
            answer = {"stopped": vm.pid} if action == "stop" else {"passes": vm.passes(), "errors": vm.errors()}
    except (VmError, ValueError, OSError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
