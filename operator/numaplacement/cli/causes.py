# SPDX-License-Identifier: Apache-2.0
"""Why memory is where it is: what the kernel goes by when it chooses a NUMA node for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from numaplacement.engine.host import HostFacts
from numaplacement.engine.listformat import format_list
from numaplacement.engine.mappings import NumaMapsRow
from numaplacement.engine.process import ProcessFacts, ThreadFacts
from numaplacement.engine.reasons import ADVICE, Reason
from numaplacement.engine.verdict import Note
from numaplacement.engine.wording import count_text, size_text


def causes(
    process: ProcessFacts, policies: Iterable[NumaMapsRow], host: HostFacts, *, targets: frozenset[int]
) -> tuple[Note, ...]:
    """Return what keeps memory off the targets, or will bring it there again."""
    return (
        *_of_policies(policies, targets),
        *_of_cpusets(process, targets),
        *_of_threads(process, host, targets),
        *_of_autonuma(host),
    )


def _of_policies(policies: Iterable[NumaMapsRow], targets: frozenset[int]) -> Iterator[Note]:
    bound: dict[str, int] = {}
    for row in policies:
        if row.bound_to is not None and not row.bound_to & targets:
            bound[row.policy] = bound.get(row.policy, 0) + sum(row.bytes_by_numa_node.values())
    for policy, count in sorted(bound.items(), key=lambda item: -item[1]):
        if count:
            yield Note(
                reason=Reason.STRICT_BINDING,
                bytes=count,
                evidence=f"{size_text(count)} in mappings with policy {policy}: their pages are made there only",
                remedy=ADVICE[Reason.STRICT_BINDING].remedy,
            )


def _of_cpusets(process: ProcessFacts, targets: frozenset[int]) -> Iterator[Note]:
    outside = [thread for thread in process.threads if not targets <= thread.mems_allowed]
    if outside:
        allowed = format_list(outside[0].mems_allowed)
        yield Note(
            reason=Reason.VM_CPUSET,
            evidence=f"{count_text(len(outside), 'thread')} may use memory of NUMA nodes {allowed} only (cpuset.mems)",
            remedy=ADVICE[Reason.VM_CPUSET].remedy,
        )


def _of_threads(process: ProcessFacts, host: HostFacts, targets: frozenset[int]) -> Iterator[Note]:
    cpus = frozenset[int]().union(*(node.cpus for node in host.numa_nodes if node.numa_node in targets))
    away = [thread for thread in process.threads if thread.affinity - cpus]
    if away:
        affinity = frozenset[int]().union(*(thread.affinity for thread in away))
        nodes = format_list(node.numa_node for node in host.numa_nodes if node.cpus & affinity)
        yield Note(
            reason=Reason.NEW_ON_SOURCE,
            evidence=(
                f"{threads_text(away)} may run on CPUs {format_list(affinity)} of NUMA nodes {nodes}: the kernel makes"
                " pages where the thread that first touches them runs"
            ),
            remedy="Let the threads follow when the memory moves, or pin them to CPUs of the target.",
        )


def _of_autonuma(host: HostFacts) -> Iterator[Note]:
    if host.numa_balancing:
        yield Note(
            reason=Reason.AUTO_NUMA,
            evidence="kernel.numa_balancing is on: it moves pages to the NUMA node of the threads that use them",
            remedy=ADVICE[Reason.AUTO_NUMA].remedy,
        )


def threads_text(threads: Iterable[ThreadFacts]) -> str:
    """Return how many threads these are, vCPUs told apart: ``4 vCPU threads and 2 others``."""
    every = list(threads)
    vcpus = sum(thread.is_vcpu for thread in every)
    others = len(every) - vcpus
    if not vcpus:
        return count_text(others, "thread")
    rest = f" and {count_text(others, 'other')}" if others else ""
    return f"{count_text(vcpus, 'vCPU thread')}{rest}"
