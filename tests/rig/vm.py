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
import ctypes
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.rig import vm_rom
from tests.rig.vm_memory import VmError, node_cpus, numa_pages, numastat_p, parse_list, ram_mapping

CGROUPS = Path("/sys/fs/cgroup")
STATES = Path("/run/rig-vm")
PAGE = os.sysconf("SC_PAGE_SIZE")
CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
_PR_SET_THP_DISABLE = 41
_NR_MOVE_PAGES = 279
_MPOL_MF_MOVE = 2
_THP = 2 << 20
_START_LIMIT = 90.0


@dataclass(frozen=True, kw_only=True)
class VmSpec:
    """What VM to start.

    `memory` is in bytes. `numa_nodes` is where its RAM shall lie, in equal parts one after the other if `exact_spread`;
    of a VM with `vfio` it lies there as it was first touched, since what a device pins cannot be placed afterwards.
    `qos` is Guaranteed, Burstable or BestEffort; `cgroup_driver` cgroupfs or systemd. `thp=False` gives RAM of 4 KiB
    pages only. `one_tick_in` is how busy the VM is (vm_rom.py); with `paused` it does not run until `resume`.
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
    thp: bool = True
    vfio: bool = False
    paused: bool = False
    accel: str = "auto"
    one_tick_in: int = 4


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
        return _qmp(Path(self.state_dir) / "monitor.sock", command, arguments)

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
        """How many pages the software in the VM has found wrong."""
        return self.read_u32(vm_rom.ERRORS_ADDRESS)

    def read_u32(self, guest_address: int) -> int:
        """A number in the VM's memory, read through /proc/PID/mem."""
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(self.ram_address + guest_address)
            return int.from_bytes(memory.read(4), "little")

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
    (state_dir / "rom.bin").write_bytes(vm_rom.build(ram_size=spec.memory, one_tick_in=spec.one_tick_in))
    accel = spec.accel if spec.accel != "auto" else "kvm" if Path("/dev/kvm").exists() else "tcg"
    vfio_device = bind_vfio() if spec.vfio else None
    cgroup = make_cgroup(spec)
    if spec.cpuset_mems:
        (cgroup / "cpuset.mems").write_text(spec.cpuset_mems)
    cpus = {cpu for node in spec.numa_nodes for cpu in node_cpus(node)}

    def enter() -> None:  # between fork and exec, in QEMU's parent; all of it is inherited by QEMU
        (cgroup / "cgroup.procs").write_text("0")
        os.sched_setaffinity(0, cpus)
        if not spec.thp:
            ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)

    command = qemu_command(spec, state_dir=state_dir, accel=accel, vfio_device=vfio_device)
    with _numa_balancing_off():
        _launch(command, state_dir / "qemu.log", enter)
        pid = _wait_for_monitor(state_dir, cgroup, deadline=begin + _START_LIMIT)
        parent_pid = _parent(pid)
        _let_run_anywhere(pid, parent_pid)
        ram_address = ram_mapping(pid, spec.memory)
        if spec.exact_spread and not spec.vfio:
            _spread(pid, ram_address, spec.memory, spec.numa_nodes)
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


@contextmanager
def _numa_balancing_off() -> Iterator[None]:
    """While memory is being placed: AutoNUMA's scan hides pages from move_pages (ENOENT, EFAULT) and moves some of its
    own accord.
    """
    setting = Path("/proc/sys/kernel/numa_balancing")
    before = setting.read_text()
    setting.write_text("0")
    try:
        yield
    finally:
        setting.write_text(before)


def find_vm(pid: int) -> RunningVm:
    """The VM started here whose QEMU has this PID. Raises VmError when there is none."""
    for state in STATES.glob("*/state.json"):
        values = json.loads(state.read_text())
        if values["pid"] == pid:
            return RunningVm(**values)
    raise VmError(f"no VM of this rig has PID {pid}")


def cgroup_path(*, pod_uid: str, container_id: str, qos: str, driver: str) -> str:
    """The container's cgroup below /sys/fs/cgroup as kubelet and containerd name it (kernel.md:
    pod_container_manager_linux.go).
    """
    level = "" if qos == "Guaranteed" else qos.lower()
    if driver == "systemd":
        slice_name = "-".join(part for part in ("kubepods", level) if part)
        pod = f"{slice_name}-pod{pod_uid.replace('-', '_')}.slice"
        parents = ["kubepods.slice", f"{slice_name}.slice"] if level else ["kubepods.slice"]
        return "/".join([*parents, pod, f"cri-containerd-{container_id}.scope"])
    return "/".join(part for part in ("kubepods", level, f"pod{pod_uid}", container_id) if part)


def make_cgroup(spec: VmSpec) -> Path:
    """Create the VM's container cgroup, with every controller on down to it."""
    container_id = secrets.token_hex(32)
    path = cgroup_path(pod_uid=spec.pod_uid, container_id=container_id, qos=spec.qos, driver=spec.cgroup_driver)
    group = CGROUPS
    for part in Path(path).parts:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in CONTROLLERS))
        group /= part
        group.mkdir(exist_ok=True)
    return group


def qemu_command(spec: VmSpec, *, state_dir: Path, accel: str, vfio_device: str | None) -> list[str]:
    """QEMU's command line as libvirt writes it for a KubeVirt VM (recorded with KubeVirt 1.9.0), with our ROM and
    prealloc.
    """
    ram = {"qom-type": "memory-backend-ram", "id": "pc.ram", "size": spec.memory, "prealloc": True}
    ram["prealloc-threads"] = len(spec.numa_nodes)
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


def _let_run_anywhere(*pids: int) -> None:
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), range(os.cpu_count() or 1))


def _spread(pid: int, address: int, size: int, numa_nodes: tuple[int, ...]) -> None:
    """Move equal parts of a stopped VM's RAM to the given nodes, in their order; parts begin at 2 MiB borders.

    Raises VmError when a page cannot be brought where it should be.
    """
    blocks = size // _THP
    for position, node in enumerate(numa_nodes):
        first, last = (blocks * part // len(numa_nodes) * _THP for part in (position, position + 1))
        if position == len(numa_nodes) - 1:
            last = size
        wrong = list(range(address + first, address + last, PAGE))
        before = len(wrong) + 1
        while wrong := [
            page for page, found in zip(wrong, _move_pages(pid, wrong, None), strict=True) if found != node
        ]:
            if len(wrong) >= before:
                raise VmError(f"{len(wrong)} pages of the VM do not go to NUMA node {node}")
            before = len(wrong)
            # The kernel ends a call at the first page it cannot move, and cannot move a huge page a second time in one
            # call, so first one address for each of those.
            _move_pages(pid, [page for page in wrong if page % _THP == 0] or wrong, node)


def _move_pages(pid: int, addresses: list[int], numa_node: int | None) -> list[int]:
    """move_pages(2) to a NUMA node; with None the NUMA node (or negative errno) where each page is."""
    count = len(addresses)
    pages = (ctypes.c_void_p * count)(*addresses)
    nodes = None if numa_node is None else (ctypes.c_int * count)(*[numa_node] * count)
    status = (ctypes.c_int * count)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_NR_MOVE_PAGES, pid, ctypes.c_ulong(count), pages, nodes, status, _MPOL_MF_MOVE) < 0:
        raise VmError(f"move_pages for process {pid}: {os.strerror(ctypes.get_errno())}")
    return list(status)


def _wait_for_monitor(state_dir: Path, cgroup: Path, *, deadline: float) -> int:
    """Wait until QEMU has made its machine, memory and devices included; its PID. Raises VmError when it ends first."""
    path = state_dir / "monitor.sock"
    while time.monotonic() < deadline and (cgroup / "cgroup.procs").read_text():
        try:
            # The greeting comes from a thread of its own, before the machine is made: only the answer to a command
            # tells.
            _qmp(path, "query-status", {}, timeout=deadline - time.monotonic())
            with socket.socket(socket.AF_UNIX) as monitor:
                monitor.connect(str(path))
                credentials = monitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return int.from_bytes(credentials[:4], "little")
        except (FileNotFoundError, ConnectionError):
            time.sleep(0.05)
        except TimeoutError:
            break
    raise VmError(f"QEMU did not come up: {(state_dir / 'qemu.log').read_text().strip()[-2000:]}")


def _qmp(path: Path, command: str, arguments: dict[str, object], *, timeout: float = 30) -> object:
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(timeout)
        monitor.connect(str(path))
        answer: dict[str, object] = {}
        with monitor.makefile("rb") as lines:
            for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                monitor.sendall(json.dumps(request).encode())
                # The greeting and events come in between.
                messages = (message for message in map(json.loads, lines) if not {"QMP", "event"} & set(message))
                answer = next(messages, {})
                if not answer:
                    raise ConnectionResetError("QEMU closed its monitor")
        if "error" in answer:
            raise VmError(f"QEMU refuses {command}: {answer['error']}")
        return answer["return"]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _kill_and_wait(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
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
    start.add_argument("--no-thp", dest="thp", action="store_false", default=argparse.SUPPRESS)
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
