# SPDX-License-Identifier: Apache-2.0
"""Whether a process may be moved at all, decided from facts before its first page is touched."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as Table
from dataclasses import dataclass, field

from .host import HostFacts
from .listformat import format_list
from .pins import Pins
from .plan import Demand
from .pools import PoolPlan
from .process import ProcessFacts, ThreadFacts, possible_vcpus
from .reasons import ADVICE, Reason
from .reclaim import Admission
from .targets import Targets
from .verdict import Allow, Refusal
from .wording import count_text, size_text

_GUEST_RAM_SHARE = 0.1
"""Part of a process's memory from which on a mapping's policy is that of guest RAM, not of some buffer."""
_ALLOWED_BY = {
    Reason.PINNED_BY_DEVICE: Allow.PINNED_PART,
    Reason.REALTIME: Allow.REALTIME,
    Reason.STRICT_BINDING: Allow.STRICT_BINDING,
    Reason.VM_CPUSET: Allow.REBIND_CPUSET,
}
"""The word that permits what is refused without it."""
_ORDER = {reason: number for number, reason in enumerate(Reason)}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is decided from.

    Bytes: `total` of the process, `needed` off target that could move, by target and size of page, `pinned_off_target`
    held in place there, `bound_elsewhere` off target under a bind policy that leaves the target out. `admissions` say
    by target whether base pages fit, `pools` by target and size of page how those of pools do. `locating` is the errno
    with which the kernel refused to locate pages, 0 for none; `cells_unknown` why guest cells could not be found, empty
    for no reason.
    """

    targets: Targets
    allow: frozenset[Allow] = frozenset()
    host: HostFacts
    process: ProcessFacts
    pins: Pins
    total: int = 0
    needed: Demand = field(default_factory=dict)
    admissions: Table[int, Admission] = field(default_factory=dict)
    pools: Table[tuple[int, int], PoolPlan] = field(default_factory=dict)
    pinned_off_target: int = 0
    bound_elsewhere: int = 0
    bindings: tuple[str, ...] = ()
    locating: int = 0
    cells_unknown: str = ""


def refusals(facts: Facts) -> tuple[Refusal, ...]:
    """Return every reason not to touch the process, in the order of reasons; empty when it may be moved.

    A process that has nothing to move is refused only for what is wrong with the order or this program itself.
    """
    found = [*_of_the_order(facts)]
    if facts.needed and not found:
        found += [*_of_the_process(facts), *_of_the_target(facts)]
    kept = (each for each in found if _ALLOWED_BY.get(each.reason) not in facts.allow)
    return tuple(sorted(kept, key=lambda each: _ORDER[each.reason]))


class Refused(Exception):
    """The move cannot be made after all; nothing was moved."""

    def __init__(self, found: Refusal) -> None:
        super().__init__(found.evidence)
        self.found = found


def refusal(reason: Reason, evidence: str) -> Refusal:
    """Return a refusal with the remedy of its reason."""
    return Refusal(reason=reason, evidence=evidence, remedy=ADVICE[reason].remedy)


def _of_the_order(facts: Facts) -> Iterator[Refusal]:
    having = format_list(node.numa_node for node in facts.host.numa_nodes if node.has_memory)
    for target in facts.targets.numa_nodes:
        node = facts.host.numa_node(target)
        if node is None or not node.has_memory:
            what = "does not exist" if node is None else "has no memory"
            yield refusal(
                Reason.NODE_HAS_NO_MEMORY, f"NUMA node {target} {what} on this host; those with memory are {having}"
            )
    if not facts.host.move_pages_allowed:
        filtered = "a seccomp filter is active" if facts.host.seccomp_mode else "no seccomp filter is active"
        yield refusal(Reason.SYSCALL_BLOCKED, f"move_pages is refused even on this program's own page; {filtered}")
    elif facts.locating:
        has = ", ".join(sorted(facts.host.capabilities)) or "none of CAP_SYS_PTRACE and CAP_SYS_NICE"
        yield refusal(Reason.NO_ACCESS, f"move_pages refuses to look at the process; this program has {has}")
    closed = {target for target in facts.targets.numa_nodes if _with_memory(facts, target)} - facts.host.mems_allowed
    if closed:
        yield refusal(
            Reason.AGENT_CPUSET,
            f"this program itself may use NUMA nodes {format_list(facts.host.mems_allowed)} only, without"
            f" {format_list(closed)}",
        )
    if facts.cells_unknown:
        yield refusal(Reason.CELLS_UNKNOWN, facts.cells_unknown)


def _with_memory(facts: Facts, target: int) -> bool:
    node = facts.host.numa_node(target)
    return node is not None and node.has_memory


def _of_the_process(facts: Facts) -> Iterator[Refusal]:
    threads = facts.process.threads
    wanted = set(facts.targets.numa_nodes)
    outside = [thread for thread in threads if not wanted <= thread.mems_allowed]
    if outside:
        allowed = format_list(outside[0].mems_allowed)
        yield refusal(
            Reason.VM_CPUSET,
            f"{count_text(len(outside), 'thread')} of {len(threads)} may use memory of NUMA nodes {allowed} only",
        )
    if facts.pins.encrypted():
        yield refusal(Reason.ENCRYPTED_GUEST, facts.pins.encrypted())
    if facts.pins.by_device and facts.pinned_off_target:
        yield refusal(Reason.PINNED_BY_DEVICE, facts.pins.evidence())
    realtime = [thread for thread in possible_vcpus(threads) if thread.realtime]
    if realtime:
        yield refusal(Reason.REALTIME, _realtime_evidence(realtime))
    if facts.bound_elsewhere > _GUEST_RAM_SHARE * facts.total:
        yield refusal(
            Reason.STRICT_BINDING,
            f"{size_text(facts.bound_elsewhere)} off target under policy {', '.join(facts.bindings)}",
        )


def _realtime_evidence(threads: list[ThreadFacts]) -> str:
    first = threads[0]
    if first.is_vcpu:
        return f"{count_text(len(threads), 'vCPU thread')} with policy {first.realtime}: {first.name}"
    return (
        f"{count_text(len(threads), 'thread')} with policy {first.realtime}: {first.name}; no thread is named as a vCPU"
        " (QEMU does so with -name debug-threads=on), so each may be one"
    )


def _of_the_target(facts: Facts) -> Iterator[Refusal]:
    for _, admission in sorted(facts.admissions.items(), key=lambda item: item[0]):
        if not admission.admitted:
            yield refusal(Reason.DESTINATION_FULL, admission.evidence)
    for _, plan in sorted(facts.pools.items(), key=lambda item: item[0]):
        if plan.short and weighty(plan, facts.total):
            yield refusal(Reason.HUGEPAGE_POOL, plan.evidence)


def weighty(plan: PoolPlan, total: int) -> bool:
    """Say whether what a pool is to take is guest RAM, of `total` bytes of the process.

    Where that stayed, threads and heap would leave it behind: a VM that was local could end up remote for good.
    """
    return plan.need * plan.page_size > _GUEST_RAM_SHARE * total
