# SPDX-License-Identifier: Apache-2.0
"""Whether the agent of a host can be given an order for a NUMA node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from numaplacement.api.conditions import ConditionStatus, State, find
from numaplacement.api.resources import NumaHost

from .reasons import Reason
from .situation import Unreadable


@dataclass(frozen=True)
class Obstacle:
    """Why a host's agent cannot be given the order."""

    state: State
    reason: Reason
    message: str


def obstacle(host: NumaHost | Unreadable | None, *, name: str, numa_nodes: Iterable[int] = ()) -> Obstacle | None:
    """Return why no order can go to host `name` for these NUMA nodes (none: any), or None when one can."""
    if host is None:
        return Obstacle(
            State.WORKING,
            Reason.AGENT_ABSENT,
            f"No agent has reported from host {name}: there is no NumaHost {name}. Check that the agent's DaemonSet "
            "runs there.",
        )
    if isinstance(host, Unreadable):
        return Obstacle(State.WORKING, Reason.UNREADABLE, f"NumaHost {name} cannot be read: {host.error}")
    ready = find(host.status.conditions, "Ready")
    if ready is None or ready.status is not ConditionStatus.TRUE:
        why = ready.message or ready.reason if ready is not None else "it has not finished its self-test"
        text = f"The agent of host {name} cannot move memory: {why.rstrip('.')}."
        return Obstacle(State.WORKING, Reason.AGENT_NOT_READY, text)
    numbers = [each.numa_node for each in host.status.numa_nodes]
    if not numbers:
        return Obstacle(
            State.WORKING, Reason.AGENT_NOT_READY, f"The agent of host {name} has not reported its NUMA nodes yet."
        )
    missing = ranges(set(numa_nodes) - set(numbers))
    if missing:
        plural = "s" if len(numbers) > 1 else ""
        return Obstacle(
            State.STALLED,
            Reason.NUMA_NODE_NOT_FOUND,
            f"Host {name} has NUMA node{plural} {ranges(numbers)}, and no {missing}."
            " Change spec.numaNode or spec.cells.",
        )
    return None


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers in the kernel's list form: ``0-3,8``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
