# SPDX-License-Identifier: Apache-2.0
"""Whether memory stays where it was moved to, once AutoNUMA has had its say.

AutoNUMA (kernel.numa_balancing) goes through a process's address space again and again, and moves what a thread
touches next to that thread. How often it has come to the end is mm->numa_scan_seq in /proc/PID/sched
(kernel/sched/debug.c, sched_show_numa, where built with NUMA_BALANCING): when that has risen by two,
it has been through all of it once at least since. It scans only while the process runs, 256 MiB at a time, so an
idle process or a big one is watched for two of the longest scan periods instead, or for as long as the caller allows.

It is held against where the verdict's last survey saw it: what comes back until somebody looks counts as well.
Memory counts as stayed as long as no more came to be off target than the tolerance, 0.1 % of what is on target, or
1 MiB, whichever is most: so much a VM's process does anyway, with stacks and buffers of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from collections.abc import Mapping as Table
from dataclasses import dataclass

from .kernel import Kernel
from .listformat import format_list
from .mappings import NumaMapsRow
from .process import HeldProcess
from .reasons import Reason
from .surveyor import read_numa_maps, reading
from .verdict import NO_NUMA_NODE, Verdict
from .wording import count_text, size_text

_SHARE = 0.001
_LEAST = 1 << 20
_SCANS = 2
_DEFAULT_PERIOD = 60.0
"""Longest scan period of the kernel, in seconds, where it does not say (sysctl_numa_balancing_scan_period_max)."""
_SHORT_LOOK = 0.5
"""Seconds after which there is nothing more to wait for while AutoNUMA is off."""
_POLL = 0.25
_LOOK_COST = 20
"""A look at numa_maps walks the page tables: the next comes after so many times the seconds the last one took."""
_LAST_CPU = 36
"""Field 39 of proc(5)'s stat, counted from the state, which is field 3."""
_SCAN_SEQ = re.compile(r"^mm->numa_scan_seq\s*:\s*(\d+)", re.MULTILINE | re.ASCII)
_COUNTERS = ("numa_hint_faults", "numa_pages_migrated")
_NOT_LOOKED_AT = frozenset({Reason.NO_CELL, Reason.UNMIGRATABLE_MAPPING, Reason.SECRET_MEMORY})
"""Residue in mappings of which nothing was asked, or whose memory never moves."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Bytes of a process on their targets, and off them by NUMA node; see placement_at() and placement_of()."""

    on_target: int
    off_target: Table[int, int]


@dataclass(frozen=True, kw_only=True)
class Stay:
    """Whether memory stayed, the bytes that came to be off target since by NUMA node, and what was seen.

    `scans` is how often AutoNUMA came to the end of the process meanwhile; None where the kernel does not say.
    `balancing` is whether it was on.
    """

    stayed: bool
    came_back: Table[int, int]
    seconds: float
    scans: int | None
    evidence: str
    balancing: bool = True


def placement_at(verdict: Verdict) -> Placement:
    """Return where memory was when a verdict was come to, as far as a look at numa_maps sees the same memory.

    Page cache that others map too was not asked to move, but stands in the same mappings as memory that was: numa_maps
    does not tell the two apart, so it counts here and there.
    """
    off_target: dict[int, int] = {}
    for row in verdict.residue:
        if row.reason not in _NOT_LOOKED_AT and row.numa_node != NO_NUMA_NODE:
            off_target[row.numa_node] = off_target.get(row.numa_node, 0) + row.bytes
    return Placement(on_target=verdict.on_target, off_target=off_target)


def placement_of(rows: Iterable[NumaMapsRow], *, target_of: Callable[[int], int | None]) -> Placement:
    """Return where memory is; `target_of` says where that at an address belongs, None where nothing is to be seen."""
    on_target, off_target = 0, dict[int, int]()
    for row in rows:
        target = target_of(row.start)
        for numa_node, count in row.bytes_by_numa_node.items() if target is not None else ():
            if numa_node == target:
                on_target += count
            else:
                off_target[numa_node] = off_target.get(numa_node, 0) + count
    return Placement(on_target=on_target, off_target=off_target)


def came_back(then: Placement, now: Placement) -> dict[int, int]:
    """Return the bytes by NUMA node that are off target now and were not."""
    growth = {numa_node: count - then.off_target.get(numa_node, 0) for numa_node, count in now.off_target.items()}
    return {numa_node: count for numa_node, count in sorted(growth.items()) if count > 0}


def allowance(then: Placement, *, tolerance: int) -> int:
    """Return the bytes that may come to be off target while memory still counts as stayed."""
    return max(tolerance, int(_SHARE * then.on_target), _LEAST)


def look(process: HeldProcess, *, target_of: Callable[[int], int | None]) -> Placement:
    """Return where the memory of a process is now. Raises as read_numa_maps()."""
    return placement_of(read_numa_maps(process.pid, process.kernel), target_of=target_of)


def watch(
    process: HeldProcess,
    *,
    then: Placement,
    target_of: Callable[[int], int | None],
    target_cpus: frozenset[int],
    tolerance: int,
    limit: float,
    check: Callable[[], None],
    clock: Callable[[], float],
) -> Stay:
    """Wait until AutoNUMA has had its say, at most `limit` seconds, and return whether memory stayed.

    `then` is where it was at the verdict, `target_cpus` are the CPUs of the targets. The wait ends early once memory
    has come back. `check` is called every quarter of a second; what it raises (a cancel, a deadline) passes through.
    Raises ProcessEnded, and EngineError where files may not be read.
    """
    kernel = process.kernel
    counters, first_scan, started = _counters(kernel), scan_seq(process.pid, kernel), clock()
    balancing = _setting(kernel, "proc/sys/kernel/numa_balancing") not in {"", "0"}
    ends = started + min(limit, _SCANS * scan_period_max(kernel) if balancing else _SHORT_LOOK)
    next_look = started
    while True:
        check()
        process.check()
        scans = _since(first_scan, scan_seq(process.pid, kernel))
        last = clock() >= ends or (scans or 0) >= _SCANS
        if last or clock() >= next_look:
            looked = clock()
            back = came_back(then, look(process, target_of=target_of))
            next_look = clock() + max(1.0, _LOOK_COST * (clock() - looked))
            stayed = sum(back.values()) <= allowance(then, tolerance=tolerance)
            if last or not stayed:
                break
        kernel.sleep(min(_POLL, max(0.0, ends - clock())))
    seconds = clock() - started
    parts = [
        _came_back_text(back, stayed=stayed),
        _scans_text(scans, seconds=seconds) if balancing else "AutoNUMA is off",
        _counters_text(counters, _counters(kernel)) if balancing else "",
        "" if stayed else _threads_text(last_cpus(process), target_cpus),
    ]
    return Stay(
        stayed=stayed,
        came_back=back,
        seconds=seconds,
        scans=scans,
        evidence="; ".join(filter(None, parts)),
        balancing=balancing,
    )


def scan_seq(pid: int, kernel: Kernel) -> int | None:
    """Return how often AutoNUMA came to the end of a process's memory; None where the kernel does not say."""
    try:
        found = _SCAN_SEQ.search(kernel.read(kernel.process(pid, "sched")))
    except OSError:
        return None
    return int(found[1]) if found else None


def scan_period_max(kernel: Kernel) -> float:
    """Return the longest time between two scans, in seconds."""
    text = _setting(kernel, "sys/kernel/debug/sched/numa_balancing/scan_period_max_ms")
    return int(text) / 1000 if text.isdigit() else _DEFAULT_PERIOD


def last_cpus(process: HeldProcess) -> dict[int, int]:
    """Return the CPU each thread ran on last. Raises ProcessEnded."""
    with reading(process.pid):
        threads = sorted(map(int, process.kernel.names(process.kernel.process(process.pid, "task"))))
    found: dict[int, int] = {}
    for thread in threads:
        try:
            stat = process.kernel.read(process.kernel.process(process.pid, "task") / str(thread) / "stat")
        except OSError:
            continue
        found[thread] = int(stat[stat.rindex(")") + 1 :].split()[_LAST_CPU])
    return found


def _since(first: int | None, now: int | None) -> int | None:
    return None if first is None or now is None else now - first


def _came_back_text(back: Table[int, int], *, stayed: bool) -> str:
    if not back:
        return "nothing came back"
    more = ", ".join(f"{size_text(count)} more on NUMA node {numa_node}" for numa_node, count in back.items())
    return f"{more}, no more than a VM does anyway (1 MiB or 0.1 %) or the tolerance" if stayed else more


def _scans_text(scans: int | None, *, seconds: float) -> str:
    seen = "" if scans is None else f", which came to the end of its memory {count_text(scans, 'time')}"
    return f"watched for {seconds:.0f} s with AutoNUMA on{seen}"


def _counters_text(before: Table[str, int], after: Table[str, int]) -> str:
    rises = [f"{name} +{after[name] - before[name]:,}" for name in _COUNTERS if name in before and name in after]
    return f"on the whole host {', '.join(rises)}" if rises else ""


def _threads_text(cpus: Table[int, int], target_cpus: frozenset[int]) -> str:
    outside = [cpu for cpu in cpus.values() if cpu not in target_cpus]
    if not target_cpus or not outside:
        return ""
    return (
        f"{len(outside)} of {count_text(len(cpus), 'thread')} ran last on CPUs {format_list(outside)}, off the target"
    )


def _counters(kernel: Kernel) -> dict[str, int]:
    words = (line.split() for line in _setting(kernel, "proc/vmstat").splitlines())
    return {pair[0]: int(pair[1]) for pair in words if pair and pair[0] in _COUNTERS}


def _setting(kernel: Kernel, name: str) -> str:
    """Return the text of a file below /proc or /sys, empty where it cannot be read."""
    root, _, rest = name.partition("/")
    try:
        return kernel.read((kernel.proc if root == "proc" else kernel.sys) / rest).strip()
    except OSError:
        return ""
