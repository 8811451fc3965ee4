# SPDX-License-Identifier: Apache-2.0
"""Processes of this host by number or name, and a hold on one of them."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from numaplacement.engine import qemu
from numaplacement.engine.errors import EngineError, ProcessEnded
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.process import start_time
from numaplacement.engine.surveyor import reading

from .plain import plain

_KERNEL_THREAD = 0x00200000
"""PF_KTHREAD (include/linux/sched.h), in field 9 of /proc/PID/stat."""
_STATE, _FLAGS = 0, 6
"""Fields 3 and 9 of proc(5)'s stat, counted from the state."""
_OF_PODS = re.compile(r"(^|[:/-])kubepods([/.-]|$)", re.MULTILINE)
"""kubelet's name for the cgroup above all pods, as cgroupfs and systemd spell it, in /proc/PID/cgroup."""
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_OF_KUBEVIRT = re.compile(f"({_LABEL})_({_LABEL})")
"""How KubeVirt calls a guest: NAMESPACE_NAME (virt-launcher's DomainFromNamespaceName)."""
_ALIKE = 0.6
"""From which ratio of difflib on a name is offered as what may be meant."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A process as found; `executable` is None where that may not be read, `leader` the process a thread is of.

    `in_pod` is whether its cgroup is one of kubelet's.
    """

    pid: int
    start_time: int
    executable: str | None
    command_line: tuple[str, ...]
    state: str
    kernel_thread: bool
    leader: int
    in_pod: bool = False

    @property
    def is_qemu(self) -> bool:
        """Whether it is QEMU, by its program, or by the name it was called with where the program may not be read."""
        return qemu.is_qemu(self.command_line[0] if self.executable is None else self.executable)

    @property
    def guest(self) -> str:
        """The guest's name on QEMU's command line, empty for none."""
        return next(iter(qemu.guest_names(self.command_line)), "")

    @property
    def uuid(self) -> str:
        """The guest's UUID on QEMU's command line, empty for none."""
        return next(iter(qemu.uuids(self.command_line)), "")

    @property
    def names(self) -> tuple[str, ...]:
        """What a person may call the guest: its name, and of KubeVirt's guests also NAMESPACE/NAME and NAME."""
        parts = _OF_KUBEVIRT.fullmatch(self.guest) if self.in_pod else None
        return (self.guest, f"{parts[1]}/{parts[2]}", parts[2]) if parts else tuple(filter(None, (self.guest,)))

    @property
    def words(self) -> str:
        """The process as messages name it."""
        return f"{plain(self.guest)} (pid {self.pid})" if self.guest else f"pid {self.pid}"


def read_candidate(pid: int, kernel: Kernel) -> Candidate:
    """Look at one process. Raises ProcessEnded, and EngineError where /proc cannot be read."""
    started = start_time(pid, kernel)
    with reading(pid):
        stat = kernel.read(kernel.process(pid, "stat"))
        status = kernel.read(kernel.process(pid, "status"))
        command_line = kernel.read(kernel.process(pid, "cmdline"))
    group = re.search(r"^Tgid:\s+(\d+)$", status, re.MULTILINE | re.ASCII)
    fields = stat[stat.rindex(")") + 1 :].split()
    try:
        executable: str | None = str(kernel.process(pid, "exe").readlink())
    except PermissionError:
        executable = None
    except OSError:  # a kernel thread, or a process at its end
        executable = ""
    cgroups = ""
    with contextlib.suppress(OSError):
        cgroups = kernel.read(kernel.process(pid, "cgroup"))
    return Candidate(
        pid=pid,
        start_time=started,
        executable=executable,
        command_line=tuple(command_line.rstrip("\0").split("\0")),
        state=fields[_STATE],
        kernel_thread=bool(int(fields[_FLAGS]) & _KERNEL_THREAD),
        leader=int(group[1]) if group else pid,
        in_pod=_OF_PODS.search(cgroups) is not None,
    )


def qemus(kernel: Kernel) -> tuple[Candidate, ...]:
    """Return every QEMU process of the host, in order of their numbers. Raises EngineError."""
    found = []
    try:
        pids = sorted(int(entry.name) for entry in kernel.proc.iterdir() if entry.name.isdecimal())
    except OSError as error:
        raise EngineError(f"cannot list {kernel.proc}: {error.strerror}; mount the host's /proc") from error
    for pid in pids:
        with contextlib.suppress(ProcessEnded, EngineError):  # /proc may be mounted so that others' are hidden
            candidate = read_candidate(pid, kernel)
            if candidate.is_qemu and candidate.state != "Z":
                found.append(candidate)
    return tuple(found)


def named(candidates: tuple[Candidate, ...], name: str) -> tuple[Candidate, ...]:
    """Return the candidates a person means with a name: the guest's whole name or UUID.

    Where nobody has that, NAMESPACE/NAME or NAME of a guest of KubeVirt's. Of another guest a part of its name is not
    enough: who asks for `db` does not mean `old_db`.
    """
    exact = tuple(each for each in candidates if name and (each.guest == name or each.uuid == name.lower()))
    return exact or tuple(each for each in candidates if name and name in each.names)


def alike(candidates: tuple[Candidate, ...], name: str) -> tuple[str, ...]:
    """Return the names of guests that look like a name nobody has."""
    guests = dict.fromkeys(each.guest for each in candidates if each.guest)
    low = name.lower().replace("/", "_")
    close = difflib.get_close_matches(low, [guest.lower() for guest in guests], n=3, cutoff=_ALIKE)
    return tuple(guest for guest in guests if low in guest.lower() or guest.lower() in close)[:3]


@contextlib.contextmanager
def held(candidate: Candidate, kernel: Kernel) -> Iterator[int]:
    """Hold a pidfd of the very process that was found. Raises ProcessEnded."""
    with reading(candidate.pid):
        pidfd = kernel.open_pidfd(candidate.pid)
    try:
        if start_time(candidate.pid, kernel) != candidate.start_time:
            raise ProcessEnded
        yield pidfd
    finally:
        kernel.close(pidfd)
