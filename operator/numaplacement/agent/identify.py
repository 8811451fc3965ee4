# SPDX-License-Identifier: Apache-2.0
"""Which process is the QEMU of a VM. Pure decisions; the facts come from processes.py.

An order names a VM and a pod, and is not believed: the process must be in the pod's cgroup, be QEMU, and carry the VM's
name, and its firmware UUID, on the command line that libvirt gave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from numaplacement.engine.qemu import guest_names, is_qemu, uuids

from .support import Refusal


@dataclass(frozen=True, kw_only=True)
class ProcessFacts:
    """What /proc says of a process.

    `start_time` is field 22 of /proc/PID/stat, in clock ticks since boot; together with `pid` it names a process for
    ever. `cgroup` is the text of /proc/PID/cgroup. `executable` is where /proc/PID/exe points to, None when that may
    not be read.
    """

    pid: int
    start_time: int
    cgroup: str
    executable: str | None
    command_line: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class WantedVm:
    """The VM of an order; `firmware_uuid` is empty when the VM has none."""

    namespace: str
    name: str
    pod_uid: str
    firmware_uuid: str = ""

    @property
    def guest(self) -> str:
        """Return the domain name KubeVirt gives the VM. Neither part can contain the underscore."""
        return f"{self.namespace}_{self.name}"


_POD = re.compile(
    r"(?:^|[/-])pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})(?=\.slice|/|$)"
)


def pod_uid(cgroup: str) -> str:
    """Return the UID of the pod whose cgroup the text of /proc/PID/cgroup is of, or "" for a process of no pod.

    The kubelet writes ``pod<UID>`` with its cgroupfs driver and ``…-pod<UID with underscores>.slice`` with systemd
    (pod_container_manager_linux.go), under any prefix. Only the outermost counts: what is below the pod's own cgroup
    may be made, and named, by what runs inside it.
    """
    for line in cgroup.splitlines():
        path = line.split(":", 2)[-1]
        if match := _POD.search(path):
            return match[1].replace("_", "-")
    return ""


def identify(processes: Iterable[ProcessFacts], wanted: WantedVm) -> ProcessFacts | Refusal:
    """Return the one process that is the QEMU of `wanted`, or why there is none that may be touched."""
    in_pod = [process for process in processes if pod_uid(process.cgroup) == wanted.pod_uid.lower()]
    if not in_pod:
        return Refusal(
            reason="PodNotFound",
            seen=f"No process on this host belongs to pod {wanted.pod_uid}.",
            remedy="The VM does not run here, or no longer. If it does: the agent must share the host's process IDs "
            "(hostPID).",
        )
    qemus = [process for process in in_pod if is_qemu(process.executable)]
    if not qemus:
        return _no_qemu(in_pod, wanted)
    # libvirt starts nameless QEMUs for a moment, to find out what they can do.
    named = [process for process in qemus if guest_names(process.command_line)]
    if not named:
        return _forged(qemus[0], wanted, f"no guest name, where {wanted.guest} is expected")
    if len(named) > 1:
        listed = ", ".join(f"{process.pid} ({'/'.join(guest_names(process.command_line))})" for process in named)
        return Refusal(
            reason="SeveralProcesses",
            seen=f"Pod {wanted.pod_uid} runs {len(named)} QEMU processes, {listed}; a VM's pod runs one.",
            remedy="Look what runs in that pod; nothing in it is touched.",
        )
    return _checked(named[0], wanted)


def _checked(process: ProcessFacts, wanted: WantedVm) -> ProcessFacts | Refusal:
    names = guest_names(process.command_line)
    if set(names) != {wanted.guest}:
        return _forged(process, wanted, f"guest name {'/'.join(names)}, where {wanted.guest} is expected")
    expected, seen = wanted.firmware_uuid.lower(), uuids(process.command_line)
    if expected and set(seen) != {expected}:
        return _forged(process, wanted, f"UUID {'/'.join(seen) or 'none'}, where {expected} is expected")
    return process


def _no_qemu(in_pod: Sequence[ProcessFacts], wanted: WantedVm) -> Refusal:
    if any(process.executable is None for process in in_pod):
        return Refusal(
            reason="NoAccess",
            seen=f"The agent may not see which programs run in pod {wanted.pod_uid}.",
            remedy="Give the agent CAP_SYS_PTRACE in the host's own user namespace and, with SELinux, the type spc_t.",
        )
    programs = sorted({(process.executable or "").rsplit("/", 1)[-1] for process in in_pod} - {""})
    return Refusal(
        reason="QemuNotFound",
        seen=f"Pod {wanted.pod_uid} runs no QEMU, only {', '.join(programs) or 'nothing with a program'}.",
        remedy="The VM has not started yet, or has ended; it is placed once it runs.",
    )


def _forged(process: ProcessFacts, wanted: WantedVm, seen: str) -> Refusal:
    return Refusal(
        reason="VmMismatch",
        seen=f"QEMU process {process.pid} in pod {wanted.pod_uid} has {seen}.",
        remedy="The order names a VM that does not run in that pod; delete it and let the operator make another.",
    )
