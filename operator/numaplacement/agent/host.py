# SPDX-License-Identifier: Apache-2.0
"""What goes into the NumaHost, and whether that is news. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from numaplacement import __version__
from numaplacement.api.host import HostNumaNode, HostVm, HugePagePool, NumaHostStatus
from numaplacement.api.placement import NumaNodeBytes
from numaplacement.engine.host import HostFacts, NumaNodeFacts
from numaplacement.engine.listformat import format_list

from .selftest import self_test

JITTER = 0.02
"""Share of a NUMA node's memory, or of a VM's, by which figures may change without being news."""


@dataclass(frozen=True, kw_only=True)
class VmMemory:
    """One VM on the host; `bytes` by NUMA node."""

    pod_uid: str
    guest: str
    bytes: Mapping[int, int]


def host_status(
    facts: HostFacts, vms: Iterable[VmMemory], *, now: datetime.datetime, previous: NumaHostStatus | None
) -> NumaHostStatus:
    """Return the status of the NumaHost; `previous` is the one last written."""
    return NumaHostStatus(
        conditions=self_test(facts, now=now, previous=previous.conditions if previous is not None else ()),
        agent_version=__version__,
        kernel=facts.kernel_release,
        numa_node_list=format_list(node.numa_node for node in facts.numa_nodes),
        numa_nodes=tuple(_numa_node(node) for node in facts.numa_nodes),
        vms=tuple(_vm(vm) for vm in sorted(vms, key=lambda vm: vm.pod_uid)),
    )


def _numa_node(node: NumaNodeFacts) -> HostNumaNode:
    return HostNumaNode(
        numa_node=node.numa_node,
        cpus=format_list(node.cpus),
        distances=node.distances,
        total=node.total,
        free=node.free,
        movable=node.safe,
        huge_pages=tuple(
            HugePagePool(page_size=pool.page_size, total=pool.total, free=pool.free) for pool in node.huge_pages
        ),
    )


def _vm(vm: VmMemory) -> HostVm:
    rows = tuple(NumaNodeBytes(numa_node=number, bytes=count) for number, count in sorted(vm.bytes.items()))
    return HostVm(pod_uid=vm.pod_uid, guest=vm.guest, bytes=rows)


def is_news(previous: NumaHostStatus | None, current: NumaHostStatus) -> bool:
    """Say whether `current` is worth writing: amounts that changed by little are not."""
    if previous is None or _without_amounts(previous) != _without_amounts(current):
        return True
    return any(
        abs(old - new) > JITTER * scale
        for (old, scale), (new, _) in zip(_amounts(previous), _amounts(current), strict=True)
    )


def _without_amounts(status: NumaHostStatus) -> NumaHostStatus:
    nodes = tuple(node.model_copy(update={"free": 0, "movable": 0}) for node in status.numa_nodes)
    vms = tuple(
        vm.model_copy(update={"bytes": tuple(row.model_copy(update={"bytes": 0}) for row in vm.bytes)})
        for vm in status.vms
    )
    return status.model_copy(update={"numa_nodes": nodes, "vms": vms})


def _amounts(status: NumaHostStatus) -> list[tuple[int, int]]:
    """Return each amount that varies by itself, with what it is a share of."""
    amounts = [(value, node.total) for node in status.numa_nodes for value in (node.free, node.movable)]
    for vm in status.vms:
        whole = sum(row.bytes for row in vm.bytes)
        amounts += [(row.bytes, whole) for row in vm.bytes]
    return amounts
