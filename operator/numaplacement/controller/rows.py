# SPDX-License-Identifier: Apache-2.0
"""Rows of a placement's status, and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from numaplacement.api.conditions import shortened
from numaplacement.api.migration import NO_NUMA_NODE, ClassBytes, NumaMigrationStatus, OrderTarget
from numaplacement.api.placement import VM_ROWS, NumaNodeBytes, ReasonBytes, Summary, VmState, VmStatus
from numaplacement.api.quantities import format_bytes, format_percent

from .situation import SeenOrder

REASON_ROWS = 64
"""Most reasons in one row, as the schema has it."""

_WORST_FIRST = (
    VmState.REFUSED,
    VmState.FAILED,
    VmState.RESIDUE,
    VmState.WAITING,
    VmState.MOVING,
    VmState.PLANNED,
    VmState.PLACED,
)


def waiting_row(name: str, *, reason: str, message: str, uid: str = "") -> VmStatus:
    """Return the row of a VM of which nothing is known but why it has to wait."""
    return VmStatus(name=name, state=VmState.WAITING, reason=str(reason), message=shortened(message), uid=uid)


def with_facts(row: VmStatus, orders: Sequence[SeenOrder], *, target: OrderTarget) -> VmStatus:
    """Return `row` with the newest order's name, and the bytes of the newest of `orders` to `target` that has any.

    `orders` are those of one VM instance, newest first. What is on another target says nothing about this one.
    """
    if not orders:
        return row
    facts: dict[str, object] = {"order": orders[0].order.metadata.name}
    measured = next(
        (seen.order.status for seen in orders if seen.order.status.before and seen.order.spec.target == target), None
    )
    if measured is not None:
        facts |= _bytes(measured)
    return row.model_copy(update=facts)


def _bytes(status: NumaMigrationStatus) -> dict[str, object]:
    reasons: Counter[str] = Counter()
    for residue in status.residue:
        reasons[residue.reason] += residue.bytes
    return {
        "asked": status.asked,
        "on_target": status.on_target,
        "before": by_numa_node(status.before),
        "after": by_numa_node(status.after),
        "residue": tuple(
            ReasonBytes(reason=reason, bytes=count)
            for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:REASON_ROWS]
        ),
    }


def by_numa_node(rows: Iterable[ClassBytes]) -> tuple[NumaNodeBytes, ...]:
    """Return the bytes of all page classes together, by NUMA node; what is swapped out is on none."""
    totals: Counter[int] = Counter()
    for row in rows:
        if row.numa_node != NO_NUMA_NODE:
            totals[row.numa_node] += row.bytes
    return tuple(NumaNodeBytes(numa_node=node, bytes=totals[node]) for node in sorted(totals))


def worst_first(rows: Iterable[VmStatus]) -> tuple[VmStatus, ...]:
    """Return the rows, those that need a person first, then by bytes left behind, then by name."""
    return tuple(sorted(rows, key=lambda row: (_WORST_FIRST.index(row.state), row.on_target - row.asked, row.name)))


def shown(rows: Iterable[VmStatus]) -> tuple[VmStatus, ...]:
    """Return the rows that status has room for."""
    return worst_first(rows)[:VM_ROWS]


def summary(rows: Iterable[VmStatus]) -> Summary:
    """Return all rows in a few numbers."""
    every = tuple(rows)
    states = Counter(row.state for row in every)
    asked, on_target = sum(row.asked for row in every), sum(row.on_target for row in every)
    return Summary(
        vms=len(every),
        placed=states[VmState.PLACED],
        moving=states[VmState.MOVING] + states[VmState.WAITING],
        residue=states[VmState.RESIDUE],
        refused=states[VmState.REFUSED],
        failed=states[VmState.FAILED],
        bytes_asked=asked,
        bytes_on_target=on_target,
        on_target=format_percent(on_target, asked) if asked else "",
        left=format_bytes(max(0, asked - on_target)) if asked else "",
    )
