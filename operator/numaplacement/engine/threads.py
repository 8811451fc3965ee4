# SPDX-License-Identifier: Apache-2.0
"""The threads of a process follow its memory, before it moves: what stays behind would call it back.

A NUMA-hint fault moves a page to the NUMA node of the CPU that touched it (kernel.numa_balancing), and pages are
made on the NUMA node of the CPU that first touches them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .listformat import format_list
from .process import HeldProcess, ThreadFacts, read_threads
from .verdict import ThreadOutcome
from .wording import count_text

_ROUNDS = 10
"""Rounds after which a process that never stops making threads is left at it."""


@dataclass
class ThreadPlan:
    """Threads to be given other CPUs, those that are where they should be, and why others are left."""

    change: dict[int, frozenset[int]] = field(default_factory=dict)
    there: set[int] = field(default_factory=set)
    left: dict[int, str] = field(default_factory=dict)


def plan_threads(
    threads: Iterable[ThreadFacts], *, target_cpus: frozenset[int], numa_node_cpus: Iterable[frozenset[int]]
) -> ThreadPlan:
    """Decide for each thread.

    A thread whose CPUs are fewer than its cpuset allows has been pinned by whoever runs the VM (libvirt's vcpupin,
    dedicated CPUs) and is left; unless it may run on exactly the CPUs, two or more, of one NUMA node of
    `numa_node_cpus`: then it was placed as a whole, perhaps by an earlier run of this program, and follows.
    """
    threads = tuple(threads)
    everywhere = frozenset[int]().union(*(thread.affinity for thread in threads))
    nodes = tuple(numa_node_cpus)
    host = target_cpus.union(*nodes)
    plan = ThreadPlan()
    for thread in threads:
        cpuset = thread.cpuset or everywhere
        if thread.cpuset is None and not cpuset & target_cpus and _spans_a_numa_node(thread.affinity, host, nodes):
            cpuset = host  # not known from here; the kernel refuses what it does not allow
        wanted = target_cpus & cpuset
        if thread.affinity and thread.affinity <= target_cpus:
            plan.there.add(thread.thread_id)
        elif thread.realtime:
            plan.left[thread.thread_id] = f"with realtime policy {thread.realtime}"
        elif not wanted:
            plan.left[thread.thread_id] = "whose cpuset has no CPU of the target"
        elif not cpuset <= thread.affinity and not _spans_a_numa_node(thread.affinity, cpuset, nodes):
            plan.left[thread.thread_id] = "pinned to CPUs by whoever runs the process"
        else:
            plan.change[thread.thread_id] = wanted
    return plan


def _spans_a_numa_node(
    affinity: frozenset[int], cpuset: frozenset[int], numa_node_cpus: tuple[frozenset[int], ...]
) -> bool:
    return len(affinity) > 1 and any(affinity == cpus & cpuset for cpus in numa_node_cpus)


def follow(
    process: HeldProcess, *, target_cpus: frozenset[int], numa_node_cpus: Iterable[frozenset[int]]
) -> ThreadOutcome:
    """Give the threads the target's CPUs until no new ones appear, and say what became of them. Raises ProcessEnded."""
    nodes = tuple(numa_node_cpus)
    followed: set[int] = set()
    left: dict[int, str] = {}
    cpus: frozenset[int] = frozenset()
    for _ in range(_ROUNDS):
        threads = [
            thread
            for thread in read_threads(process.pid, process.kernel)
            if thread.thread_id not in followed and thread.thread_id not in left
        ]
        if not threads:
            break
        plan = plan_threads(threads, target_cpus=target_cpus, numa_node_cpus=nodes)
        followed |= plan.there
        left |= plan.left
        for thread_id, wanted in plan.change.items():
            why = _apply(process, thread_id, wanted)
            if why:
                left[thread_id] = why
            else:
                followed.add(thread_id)
                cpus |= wanted
    return ThreadOutcome(
        followed=len(followed),
        left=len(left),
        cpus=cpus or (target_cpus if followed else frozenset()),
        message=message(left, target_cpus),
    )


def _apply(process: HeldProcess, thread_id: int, cpus: frozenset[int]) -> str:
    """Give one thread its CPUs; say why not, if not. A thread that ended meanwhile needs none."""
    process.check()
    try:
        process.kernel.set_affinity(thread_id, cpus)
    except ProcessLookupError:
        process.check()
    except PermissionError:
        return "this process may not touch (CAP_SYS_NICE is missing)"
    except OSError:
        return "whose cpuset has no CPU of the target"
    return ""


def message(left: dict[int, str], target_cpus: frozenset[int]) -> str:
    """Return why threads were left, or nothing when none were."""
    if not left:
        return ""
    parts = [f"{count_text(count, 'thread')} {why}" for why, count in Counter(left.values()).most_common()]
    where = f"CPUs {format_list(target_cpus)}" if target_cpus else "the target, which has no CPU"
    return f"left as they were: {'; '.join(parts)}; {where} wanted"
