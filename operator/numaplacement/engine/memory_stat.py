# SPDX-License-Identifier: Apache-2.0
"""The text of a cgroup's memory.numa_stat: bytes by kind and NUMA node (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import re
from collections.abc import Collection

MAPPED = frozenset({"anon", "file_mapped"})
"""Memory that page tables of the cgroup's tasks map; shared memory is part of file_mapped."""
OF_THE_KERNEL = ("pagetables", "sec_pagetables", "kernel_stack", "slab_reclaimable", "slab_unreclaimable")
"""Memory the kernel itself uses for the cgroup; sec_pagetables are those KVM keeps for its guests."""
_ON_NODE = re.compile(r" N(\d+)=(\d+)", re.ASCII)


def parse_numa_stat(text: str) -> dict[str, dict[int, int]]:
    """Return bytes by NUMA node for each kind."""
    kinds = (line.partition(" ") for line in text.splitlines())
    return {
        kind: {int(numa_node): int(count) for numa_node, count in _ON_NODE.findall(f" {rest}")}
        for kind, _, rest in kinds
        if kind
    }


def sums_of(text: str, kinds: Collection[str]) -> dict[int, int]:
    """Return the bytes of some kinds together, by NUMA node."""
    sums: dict[int, int] = {}
    for kind, by_numa_node in parse_numa_stat(text).items():
        for numa_node, count in by_numa_node.items() if kind in kinds else ():
            sums[numa_node] = sums.get(numa_node, 0) + count
    return sums
