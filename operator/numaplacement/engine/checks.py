# SPDX-License-Identifier: Apache-2.0
"""Whether a process may be moved at all, decided from facts before its first page is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .host import HostFacts
from .listformat import format_list
from .pins import Pins
from .process import ProcessFacts
from .reasons import ADVICE, Reason
from .verdict import Refusal
from .wording import count_text, size_text

_GUEST_RAM_SHARE = 0.1
"""Part of a process's memory from which on a mapping's policy is that of guest RAM, not of some buffer."""
_ENCRYPTED = ("sev-guest", "sev-snp-guest", "tdx-guest")
"""QEMU's confidential-guest objects (qemu(1), -object)."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is decided from.

    Bytes: `total` of the process, `needed` off target that could move, `pinned_off_target` held in place there,
    `in_pools` off target in huge-page pools, `bound_elsewhere` off target under a bind policy that leaves the target
    out. `locating` is the errno with which the
    kernel refused to locate pages, 0 for none.
    """

    target: int
    host: HostFacts
    process: ProcessFacts
    pins: Pins
    total: int = 0
    needed: int = 0
    in_pools: int = 0
    pinned_off_target: int = 0
    bound_elsewhere: int = 0
    bindings: tuple[str, ...] = ()
    locating: int = 0


def refusals(facts: Facts) -> tuple[Refusal, ...]:
    """Return every reason not to touch the process, the first to remove first; empty when it may be moved.

    A process that has nothing to move is refused only for what is wrong with the order or this program itself.
    """
    found = [*_of_the_order(facts)]
    if facts.needed and not found:
        found += [*_of_the_process(facts), *_of_the_target(facts)]
    if facts.in_pools > _GUEST_RAM_SHARE * facts.total:
        # Threads and heap would leave guest RAM behind: a VM that was local could end up remote for good.
        found.append(refusal(Reason.HUGETLB_NOT_YET, f"{size_text(facts.in_pools)} off target in huge-page pools"))
    return tuple(found)


def refusal(reason: Reason, evidence: str) -> Refusal:
    """Return a refusal with the remedy of its reason."""
    return Refusal(reason=reason, evidence=evidence, remedy=ADVICE[reason].remedy)


def _of_the_order(facts: Facts) -> Iterator[Refusal]:
    node = facts.host.numa_node(facts.target)
    if node is None or not node.has_memory:
        having = format_list(node.numa_node for node in facts.host.numa_nodes if node.has_memory)
        what = "does not exist" if node is None else "has no memory"
        yield refusal(
            Reason.NODE_HAS_NO_MEMORY, f"NUMA node {facts.target} {what} on this host; those with memory are {having}"
        )
    if not facts.host.move_pages_allowed:
        filtered = "a seccomp filter is active" if facts.host.seccomp_mode else "no seccomp filter is active"
        yield refusal(Reason.SYSCALL_BLOCKED, f"move_pages is refused even on the agent's own page; {filtered}")
    elif facts.locating:
        has = ", ".join(sorted(facts.host.capabilities)) or "none of CAP_SYS_PTRACE and CAP_SYS_NICE"
        yield refusal(Reason.NO_ACCESS, f"move_pages refuses to look at the process; the agent has {has}")
    if node is not None and node.has_memory and facts.target not in facts.host.mems_allowed:
        yield refusal(
            Reason.AGENT_CPUSET, f"the agent itself may use NUMA nodes {format_list(facts.host.mems_allowed)} only"
        )


def _of_the_process(facts: Facts) -> Iterator[Refusal]:
    threads = facts.process.threads
    outside = [thread for thread in threads if facts.target not in thread.mems_allowed]
    if outside:
        allowed = format_list(outside[0].mems_allowed)
        yield refusal(
            Reason.VM_CPUSET,
            f"{count_text(len(outside), 'thread')} of {len(threads)} may use memory of NUMA nodes {allowed} only",
        )
    encrypted = [word for argument in facts.process.command_line for word in _ENCRYPTED if word in argument]
    if encrypted or "/dev/sev" in facts.process.open_files:
        yield refusal(
            Reason.ENCRYPTED_GUEST,
            f"QEMU's command line names {encrypted[0]}" if encrypted else "QEMU holds /dev/sev",
        )
    if facts.pins.by_device and facts.pinned_off_target:
        yield refusal(Reason.PINNED_BY_DEVICE, facts.pins.evidence())
    realtime = [thread for thread in threads if thread.is_vcpu and thread.realtime]
    if realtime:
        yield refusal(
            Reason.REALTIME,
            f"{count_text(len(realtime), 'vCPU thread')} with policy {realtime[0].realtime}: {realtime[0].name}",
        )
    if facts.bound_elsewhere > _GUEST_RAM_SHARE * facts.total:
        yield refusal(
            Reason.STRICT_BINDING,
            f"{size_text(facts.bound_elsewhere)} off target under policy {', '.join(facts.bindings)}",
        )


def _of_the_target(facts: Facts) -> Iterator[Refusal]:
    node = facts.host.numa_node(facts.target)
    if node is not None and node.has_memory and facts.needed > node.safe:
        yield refusal(
            Reason.DESTINATION_FULL,
            f"{size_text(facts.needed)} to move, {size_text(node.safe)} can be taken on NUMA node {facts.target}"
            f" without making others give memory back ({size_text(node.free)} free)",
        )
