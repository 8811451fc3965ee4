# SPDX-License-Identifier: Apache-2.0
"""Gathers what /proc says of processes in pods, and holds on to one of them. Decides nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from numaplacement.engine.kernel import Kernel

from .identify import ProcessFacts, pod_uid


def processes_in_pods(proc: Path, *, wanted: Callable[[str], bool]) -> tuple[ProcessFacts, ...]:
    """Return the processes of the pods whose UID is `wanted`; one pass over `proc`, those that end meanwhile left out.

    :raises OSError: `proc` itself cannot be read.
    """
    found = []
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                cgroup = (entry / "cgroup").read_text(errors="replace")
                uid = pod_uid(cgroup)
                if uid and wanted(uid):
                    found.append(_facts(entry, cgroup))
    return tuple(sorted(found, key=lambda facts: facts.pid))


def _facts(entry: Path, cgroup: str) -> ProcessFacts:
    # The start time first: what is read afterwards is of that process or of a later one, and a later one is noticed.
    started = start_time(entry)
    try:
        executable = str((entry / "exe").readlink())
    except PermissionError:
        executable = None
    except FileNotFoundError:  # a kernel thread, or a process at its end
        executable = ""
    return ProcessFacts(
        pid=int(entry.name),
        start_time=started,
        cgroup=cgroup,
        executable=executable,
        command_line=tuple((entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")),
    )


def start_time(entry: Path) -> int:
    """Return field 22 of /proc/PID/stat, in clock ticks since boot (proc(5)); raises OSError."""
    # The second field, the program's name in parentheses, may hold spaces and parentheses itself.
    return int((entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()[19])


@contextlib.contextmanager
def held(facts: ProcessFacts, kernel: Kernel) -> Iterator[int | None]:
    """Yield a pidfd of the process `facts` are of, open for as long as the context lasts; None when it has ended.

    The start time is compared after the pidfd was opened: from then on neither can be another process.
    """
    try:
        pidfd = kernel.open_pidfd(facts.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield pidfd if _still(facts, kernel) else None
    finally:
        os.close(pidfd)


def _still(facts: ProcessFacts, kernel: Kernel) -> bool:
    try:
        return start_time(kernel.process(facts.pid, "stat").parent) == facts.start_time
    except OSError:
        return False
