# SPDX-License-Identifier: Apache-2.0
"""One process: held so that no other is ever taken for it, and what is known of it beside its pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import EngineError, ProcessEnded, remedy_of
from .kernel import Kernel
from .listformat import parse_list
from .surveyor import reading

_KIB = 1024
_STAT_STATE, _STAT_FLAGS, _STAT_START_TIME, _STAT_POLICY = 0, 6, 19, 38
"""Fields 3, 9, 22 and 41 of proc(5)'s stat, counted from the state, which is field 3."""
_DEAD = frozenset("ZXx")
"""States of a process that has ended: zombie and dead."""
_EXITING = 0x4
"""PF_EXITING (include/linux/sched.h)."""
_REALTIME = {1: "FIFO", 2: "RR", 6: "DEADLINE"}
"""Scheduling policies of sched(7) that starve others."""
_VCPU = re.compile(r"^CPU (\d+)/", re.ASCII)
"""How QEMU names vCPU threads (CPU 0/KVM, CPU 0/TCG) under -name debug-threads=on."""


@dataclass(frozen=True, kw_only=True)
class ThreadFacts:
    """One thread: its name, the CPUs it may run on, those its cpuset allows, and its realtime policy, empty for none.

    `cpuset` is None where the cgroup's cpuset could not be read.
    """

    thread_id: int
    name: str
    affinity: frozenset[int]
    mems_allowed: frozenset[int]
    realtime: str = ""
    cpuset: frozenset[int] | None = None

    @property
    def is_vcpu(self) -> bool:
        """Whether QEMU runs a vCPU in it."""
        return self.vcpu is not None

    @property
    def vcpu(self) -> int | None:
        """The number of the vCPU that QEMU runs in it; None for another thread."""
        named = _VCPU.match(self.name)
        return int(named[1]) if named else None


def possible_vcpus(threads: Iterable[ThreadFacts]) -> tuple[ThreadFacts, ...]:
    """Return the threads that QEMU runs vCPUs in; all of them where it names none, as without debug-threads=on."""
    every = tuple(threads)
    return tuple(thread for thread in every if thread.is_vcpu) or every


@dataclass(frozen=True, kw_only=True)
class ProcessFacts:
    """What is known of a process beside its pages.

    `locked`, `pinned` and `swapped` are VmLck, VmPin and VmSwap in bytes; `open_files` what its file descriptors name.
    """

    command_line: tuple[str, ...]
    threads: tuple[ThreadFacts, ...]
    open_files: tuple[str, ...]
    locked: int
    pinned: int
    swapped: int


@dataclass(frozen=True, kw_only=True)
class HeldProcess:
    """A process behind a pidfd: its number stands for no other for as long as that one has not ended."""

    pid: int
    pidfd: int
    kernel: Kernel

    def check(self) -> None:
        """Raise ProcessEnded unless the number still stands for the same, living process."""
        with reading(self.pid):
            ended = self.kernel.has_ended(self.pidfd)
        if ended:
            raise ProcessEnded


@contextmanager
def hold(pid: int, kernel: Kernel, pidfd: int | None) -> Iterator[HeldProcess]:
    """Take hold of a process; a pidfd given stays its owner's. Raises ProcessEnded.

    What says in the `with` block that the process ended is believed only where it has, or is about to: another answer
    of /proc or of the kernel would be taken for its end. Raises EngineError then.
    """
    held = _opened(pid, kernel) if pidfd is None else pidfd
    started: int | None = None
    try:
        started = start_time(pid, kernel)
        process = HeldProcess(pid=pid, pidfd=held, kernel=kernel)
        process.check()
        yield process
    except ProcessEnded as error:
        if _is_gone(pid, held, started, kernel):
            raise
        seen = error.__cause__ or "the kernel says that it is not there"
        raise EngineError(f"process {pid} lives, but {seen}; mount the host's own /proc, and try again") from error
    finally:
        if pidfd is None:
            kernel.close(held)


def _opened(pid: int, kernel: Kernel) -> int:
    """Return a pidfd. Raises ProcessEnded, and EngineError where there can be none."""
    try:
        return kernel.open_pidfd(pid)
    except ProcessLookupError as error:
        raise ProcessEnded from error
    except OSError as error:
        remedy = remedy_of(error, "give the number of a process, not of one of its threads, on Linux 6.1 or newer")
        raise EngineError(f"cannot take hold of process {pid} with pidfd_open: {error}; {remedy}") from error


def _is_gone(pid: int, pidfd: int, started: int | None, kernel: Kernel) -> bool:
    """Say whether a process has ended or is about to: it loses its memory and its files before it is gone."""
    try:
        if kernel.has_ended(pidfd):
            return True
        fields = _after_name(kernel.read(kernel.process(pid, "stat")))
    except OSError:
        return False
    other = started is not None and int(fields[_STAT_START_TIME]) != started
    return other or fields[_STAT_STATE] in _DEAD or bool(int(fields[_STAT_FLAGS]) & _EXITING)


def start_time(pid: int, kernel: Kernel) -> int:
    """Return when a process started, in clock ticks since boot. Raises ProcessEnded."""
    with reading(pid):
        return int(_after_name(kernel.read(kernel.process(pid, "stat")))[_STAT_START_TIME])


def read_process(pid: int, kernel: Kernel) -> ProcessFacts:
    """Gather what is known of a process. Raises ProcessEnded, and EngineError where files may not be read."""
    with reading(pid):
        status = _fields(kernel.read(kernel.process(pid, "status")))
        command_line = kernel.read(kernel.process(pid, "cmdline")).rstrip("\0").split("\0")
        open_files = kernel.open_files(pid)
    return ProcessFacts(
        command_line=tuple(command_line),
        threads=read_threads(pid, kernel),
        open_files=open_files,
        locked=_kib(status.get("VmLck", "")),
        pinned=_kib(status.get("VmPin", "")),
        swapped=_kib(status.get("VmSwap", "")),
    )


def read_threads(pid: int, kernel: Kernel) -> tuple[ThreadFacts, ...]:
    """Return the threads of a process. Raises ProcessEnded, and EngineError where files may not be read."""
    with reading(pid):
        thread_ids = sorted(map(int, kernel.names(kernel.process(pid, "task"))))
    cpusets: dict[str, frozenset[int] | None] = {}
    threads = [_read_thread(kernel.process(pid, "task") / str(tid), tid, kernel, cpusets) for tid in thread_ids]
    return tuple(thread for thread in threads if thread is not None)


def _read_thread(
    task: Path, thread_id: int, kernel: Kernel, cpusets: dict[str, frozenset[int] | None]
) -> ThreadFacts | None:
    """Return one thread; None when it ended meanwhile."""
    try:
        stat, status = kernel.read(task / "stat"), _fields(kernel.read(task / "status"))
        cgroup = cgroup_path(kernel.read(task / "cgroup"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        remedy = remedy_of(error, "mount the host's /proc, and run as root")
        raise EngineError(f"cannot read {task}: {error}; {remedy}") from error
    if cgroup not in cpusets:
        cpusets[cgroup] = cpuset_cpus(cgroup, kernel)
    return ThreadFacts(
        thread_id=thread_id,
        name=stat[stat.index("(") + 1 : stat.rindex(")")],
        affinity=parse_list(status.get("Cpus_allowed_list", "")),
        mems_allowed=parse_list(status.get("Mems_allowed_list", "")),
        realtime=_REALTIME.get(int(_after_name(stat)[_STAT_POLICY]), ""),
        cpuset=cpusets[cgroup],
    )


def main_cgroup(pid: int, kernel: Kernel) -> str:
    """Return the cgroup v2 path of a process's main thread; empty where there is none. Raises ProcessEnded."""
    with reading(pid):
        return cgroup_path(kernel.read(kernel.process(pid, "cgroup")))


def cgroup_path(text: str) -> str:
    """Return the cgroup v2 path in the text of /proc/PID/cgroup; empty when there is none."""
    return next((line[3:] for line in text.splitlines() if line.startswith("0::")), "")


def cpuset_cpus(cgroup: str, kernel: Kernel) -> frozenset[int] | None:
    """Return the CPUs in effect for a cgroup, from the nearest ancestor that says; None where none can be read.

    A path that climbs out of this process's own cgroup namespace (/../..) cannot be opened: cgroup_namespaces(7).
    """
    if not cgroup.startswith("/") or "/.." in cgroup:
        return None
    root = kernel.sys / "fs/cgroup"
    directory = root / cgroup.lstrip("/")
    while True:
        try:
            return parse_list(kernel.read(directory / "cpuset.cpus.effective"))
        except (OSError, ValueError):
            if directory == root:
                return None
            directory = directory.parent


def _after_name(stat: str) -> list[str]:
    """Return the fields of stat behind the name, which may hold blanks and parentheses itself."""
    return stat[stat.rindex(")") + 1 :].split()


def _fields(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _kib(value: str) -> int:
    """Return the bytes of a value such as "12 kB"; 0 for none."""
    number = value.partition(" ")[0]
    return int(number) * _KIB if number.isdigit() else 0
