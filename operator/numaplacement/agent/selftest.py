# SPDX-License-Identifier: Apache-2.0
"""Whether the agent can do its work on this host, as conditions of its NumaHost. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass

from numaplacement.api.conditions import Condition, ConditionStatus, shortened, with_transition_times
from numaplacement.api.quantities import format_bytes
from numaplacement.engine.host import HostFacts
from numaplacement.engine.listformat import format_list

NEEDED = ("CAP_SYS_NICE", "CAP_SYS_PTRACE")
"""Capabilities without which the memory of no VM can be moved (kernel/mm: find_mm_struct, kernel_move_pages)."""
HELPFUL = "CAP_SYS_ADMIN"
"""With it the kernel tells page frame numbers, by which more reasons can be told apart (pagemap(5))."""


@dataclass(frozen=True)
class Check:
    """What one self-test found; `needed` when the agent is not ready without it."""

    type: str
    passed: bool
    reason: str
    message: str
    needed: bool = False


def checks(facts: HostFacts) -> tuple[Check, ...]:
    """Return every self-test of the agent on a host of which this is known."""
    return (_syscalls(facts), _capabilities(facts), _cpuset(facts), _auto_numa(facts), _swap(facts))


def self_test(facts: HostFacts, *, now: datetime.datetime, previous: Iterable[Condition] = ()) -> tuple[Condition, ...]:
    """Return ``Ready`` and a condition for each self-test; Ready is True when all that is needed is there."""
    results = checks(facts)
    missing = [check for check in results if check.needed and not check.passed]
    if missing:
        ready = Check(
            "Ready", passed=False, reason=missing[0].reason, message=" ".join(each.message for each in missing)
        )
    else:
        ready = Check(
            "Ready", passed=True, reason="AllNeededPresent", message="The agent can move memory on this host."
        )
    wanted = tuple(
        Condition(
            type=check.type,
            status=ConditionStatus.TRUE if check.passed else ConditionStatus.FALSE,
            reason=check.reason,
            message=shortened(check.message),
            last_transition_time=now,
        )
        for check in (ready, *results)
    )
    return with_transition_times(wanted, previous=previous)


def _syscalls(facts: HostFacts) -> Check:
    kind = "SyscallsAllowed"
    if facts.move_pages_allowed:
        return Check(kind, passed=True, reason="MovePagesWorks", message="move_pages works.", needed=True)
    why = "a seccomp filter is in force" if facts.seccomp_mode else "no seccomp filter is in force"
    return Check(
        kind,
        passed=False,
        reason="MovePagesBlocked",
        message=f"The kernel refuses move_pages ({why}). Give the agent's container a seccomp profile that allows it: "
        "Unconfined, or Localhost with a profile of yours.",
        needed=True,
    )


def _capabilities(facts: HostFacts) -> Check:
    kind = "CapabilitiesPresent"
    missing = [name for name in NEEDED if name not in facts.capabilities]
    if missing:
        return Check(
            kind,
            passed=False,
            reason="CapabilitiesMissing",
            message=f"The agent lacks {' and '.join(missing)}. Add them to its container's "
            "securityContext.capabilities, and run it in the host's own user namespace.",
            needed=True,
        )
    extra = "" if HELPFUL in facts.capabilities else f" Without {HELPFUL} fewer reasons can be told apart."
    return Check(
        kind,
        passed=True,
        reason="CapabilitiesPresent",
        message=f"{' and '.join(NEEDED)} are there.{extra}",
        needed=True,
    )


def _cpuset(facts: HostFacts) -> Check:
    kind = "CpusetOpen"
    with_memory = {node.numa_node for node in facts.numa_nodes if node.has_memory}
    closed = with_memory - facts.mems_allowed
    if not closed:
        return Check(kind, passed=True, reason="AllNumaNodesAllowed", message="The agent may use every NUMA node.")
    return Check(
        kind,
        passed=False,
        reason="NumaNodesClosed",
        message=f"The agent's own cpuset.mems leaves out NUMA nodes {format_list(closed)}: no memory can be moved "
        "there. Run the agent's container without cpuset.mems.",
    )


def _auto_numa(facts: HostFacts) -> Check:
    kind = "AutoNumaOff"
    if not facts.numa_balancing:
        return Check(kind, passed=True, reason="NumaBalancingOff", message="The kernel moves no memory by itself.")
    return Check(
        kind,
        passed=False,
        reason="NumaBalancingOn",
        message="kernel.numa_balancing is on: the kernel moves memory after the threads that use it. Let threads "
        "follow (the default), or switch it off.",
    )


def _swap(facts: HostFacts) -> Check:
    kind = "SwapOff"
    if not facts.swap_total:
        return Check(kind, passed=True, reason="NoSwap", message="The host has no swap space.")
    return Check(
        kind,
        passed=False,
        reason="SwapOn",
        message=f"The host has {format_bytes(facts.swap_total)} of swap space: memory that is swapped out is on no "
        "NUMA node until a move reads it back on the target.",
    )
