# SPDX-License-Identifier: Apache-2.0
"""The threads of a process follow its memory, before it moves: what stays behind would call it back.

A NUMA-hint fault moves a page to the NUMA node of the CPU that touched it (kernel.numa_balancing), and pages are
made on the NUMA node of the CPU that first touches them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Mapping as Table
from dataclasses import dataclass, field, replace

from .cells import Cell
from .errors import EngineError, ProcessEnded
from .listformat import format_list
from .process import HeldProcess, ThreadFacts, read_threads
from .verdict import ThreadOutcome
from .wording import count_text

TargetCpusOf = Callable[[ThreadFacts], frozenset[int] | None]
"""The CPUs of the target of one thread; None where nothing was asked of it."""

_ROUNDS = 10
"""Rounds after which a process that never stops making threads is left at it."""


@dataclass
class ThreadPlan:
    """What is to become of threads, by thread id.

    `change` are those to be given other CPUs, `there` those that are on their target's CPUs, `left` says why others are
    left, and of those in `alone` nothing was asked.
    """

    change: dict[int, frozenset[int]] = field(default_factory=dict)
    there: dict[int, frozenset[int]] = field(default_factory=dict)
    left: dict[int, str] = field(default_factory=dict)
    alone: set[int] = field(default_factory=set)


def beside(threads: Iterable[ThreadFacts], *, own: frozenset[int], least: int) -> frozenset[int]:
    """Return the CPUs of `own`, at least so many, that threads of the VM are not bound to; none where there are none.

    A mover on the only CPU of a vCPU would take that from it. Threads that may run on all of them are not bound.
    """
    bound = frozenset[int]().union(*(thread.affinity for thread in threads if not own <= thread.affinity))
    free = own - bound
    return free if bound and len(free) >= least else frozenset()


def cpus_by_cell(
    cells: Iterable[Cell], asked: Table[int, int], numa_node_cpus: Table[int, frozenset[int]]
) -> TargetCpusOf:
    """Return which CPUs each thread is to follow to when guest cells were asked to be on a NUMA node each (`asked`).

    A vCPU goes where its cell goes, and is let alone when nothing was asked of its cell. All other threads, and vCPUs
    of which the cell is not known, serve the whole guest: they may use the CPUs of all targets. `numa_node_cpus` are
    the CPUs by NUMA node.
    """
    cell_of = {vcpu: cell.number for cell in cells for vcpu in cell.vcpus}
    cpus_of = {numa_node: numa_node_cpus.get(numa_node, frozenset()) for numa_node in asked.values()}
    everywhere = frozenset[int]().union(*cpus_of.values())

    def target_cpus_of(thread: ThreadFacts) -> frozenset[int] | None:
        vcpu = thread.vcpu
        if vcpu is None or vcpu not in cell_of:
            return everywhere
        numa_node = asked.get(cell_of[vcpu])
        return None if numa_node is None else cpus_of[numa_node]

    return target_cpus_of


def plan_threads(
    threads: Iterable[ThreadFacts],
    *,
    target_cpus: frozenset[int] | TargetCpusOf,
    numa_node_cpus: Iterable[frozenset[int]],
) -> ThreadPlan:
    """Decide for each thread; `target_cpus` are the CPUs of the one target, or tell those of each thread.

    A thread whose CPUs are fewer than its cpuset allows has been pinned by whoever runs the VM (libvirt's vcpupin,
    dedicated CPUs) and is left; unless it may run on exactly the CPUs, two or more each, of one NUMA node of
    `numa_node_cpus` or of several: then it was placed as a whole, perhaps by an earlier run of this program, and
    follows.
    """
    threads = tuple(threads)
    everywhere = frozenset[int]().union(*(thread.affinity for thread in threads))
    nodes = tuple(numa_node_cpus)
    plan = ThreadPlan()
    for thread in threads:
        target = _target_of(thread, target_cpus)
        if target is None:
            plan.alone.add(thread.thread_id)
            continue
        host = target.union(*nodes)
        cpuset = thread.cpuset or everywhere
        if thread.cpuset is None and not cpuset & target and _spans_numa_nodes(thread.affinity, host, nodes):
            cpuset = host  # not known from here; the kernel refuses what it does not allow
        wanted = target & cpuset
        if thread.affinity and thread.affinity <= target:
            plan.there[thread.thread_id] = target
        elif thread.realtime:
            plan.left[thread.thread_id] = f"with realtime policy {thread.realtime}"
        elif not wanted:
            plan.left[thread.thread_id] = "whose cpuset has no CPU of the target"
        elif not cpuset <= thread.affinity and not _spans_numa_nodes(thread.affinity, cpuset, nodes):
            plan.left[thread.thread_id] = "pinned to CPUs by whoever runs the process"
        else:
            plan.change[thread.thread_id] = wanted
    return plan


def _target_of(thread: ThreadFacts, target_cpus: frozenset[int] | TargetCpusOf) -> frozenset[int] | None:
    return target_cpus(thread) if callable(target_cpus) else target_cpus


def _spans_numa_nodes(
    affinity: frozenset[int], cpuset: frozenset[int], numa_node_cpus: tuple[frozenset[int], ...]
) -> bool:
    """Say whether CPUs are all those of some NUMA nodes; one CPU alone may be a pin."""
    whole = [cpus & cpuset for cpus in numa_node_cpus if len(cpus & cpuset) > 1 and cpus & cpuset <= affinity]
    return bool(whole) and affinity == frozenset[int]().union(*whole)


def follow(
    process: HeldProcess,
    *,
    target_cpus: frozenset[int] | TargetCpusOf,
    numa_node_cpus: Iterable[frozenset[int]],
) -> ThreadOutcome:
    """Give the threads their target's CPUs until no new ones appear, and say what became of them.

    `target_cpus` are the CPUs of the one target, or tell those of each thread, as cpus_by_cell() does. Raises
    ProcessEnded.
    """
    nodes = tuple(numa_node_cpus)
    seen: set[int] = set()
    followed: dict[int, frozenset[int]] = {}
    left: dict[int, str] = {}
    earlier: dict[int, frozenset[int]] = {}
    cpus: frozenset[int] = frozenset()
    wanted_by_left: frozenset[int] = frozenset()
    for _ in range(_ROUNDS):
        try:
            threads = [thread for thread in read_threads(process.pid, process.kernel) if thread.thread_id not in seen]
        except (EngineError, ProcessEnded):
            if not seen:
                raise
            break  # those made meanwhile have the CPUs of who made them
        if not threads:
            break
        seen |= {thread.thread_id for thread in threads}
        plan = plan_threads(threads, target_cpus=target_cpus, numa_node_cpus=nodes)
        followed |= plan.there
        left |= plan.left
        facts = {thread.thread_id: thread for thread in threads}
        for thread_id, wanted in plan.change.items():
            try:
                why = _apply(process, thread_id, wanted)
            except (EngineError, ProcessEnded):
                _put_back(process, earlier)
                raise
            if why:
                left[thread_id] = why
            else:
                followed[thread_id] = wanted
                earlier[thread_id] = facts[thread_id].affinity
                cpus |= wanted
        for thread_id in facts.keys() & left.keys():
            wanted_by_left |= _target_of(facts[thread_id], target_cpus) or frozenset()
    return ThreadOutcome(
        followed=len(followed),
        left=len(left),
        cpus=cpus or frozenset[int]().union(*followed.values()),
        message=message(left, wanted_by_left),
        earlier=tuple(sorted(earlier.items(), key=lambda item: item[0])),
    )


def restore(process: HeldProcess, outcome: ThreadOutcome) -> ThreadOutcome:
    """Put the threads that followed back on the CPUs they had, and say so: for when nothing has moved after all.

    A thread whose CPUs somebody has changed since is left to them. Threads that were made meanwhile keep the CPUs of
    the thread that made them. Raises ProcessEnded.
    """
    back = 0
    earlier = dict(outcome.earlier)
    for thread in read_threads(process.pid, process.kernel):
        cpus = earlier.get(thread.thread_id)
        if cpus and thread.affinity <= outcome.cpus and not _apply(process, thread.thread_id, cpus):
            back += 1
    told = f"{count_text(back, 'thread')} put back on the CPUs had before, since nothing moved" if back else ""
    return replace(
        outcome,
        followed=outcome.followed - back,
        cpus=outcome.cpus if outcome.followed > back else frozenset(),
        message="; ".join(filter(None, (outcome.message, told))),
        earlier=(),
    )


def _put_back(process: HeldProcess, earlier: Table[int, frozenset[int]]) -> None:
    """Give threads the CPUs back that they had, as far as that can be done."""
    for thread_id, cpus in earlier.items():
        with contextlib.suppress(EngineError, ProcessEnded):
            _apply(process, thread_id, cpus)


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
