# SPDX-License-Identifier: Apache-2.0
"""Pools of huge pages (hugetlb): what a NUMA node's pool can take, and by how much it would have to grow.

A page of a pool moves to a free page of the target's pool. Without one the kernel makes a fresh page from free memory
and gives the old one back to free memory, so that the pools of two NUMA nodes change in silence; pages too large for
the buddy allocator (1 GiB) do not move then (mm/hugetlb.c, alloc_hugetlb_folio_nodemask, move_hugetlb_state). How large
a pool is on which NUMA node was somebody's decision. So a call never moves more than `usable` pages, which are in the
target's pool already, and pools change only where that is allowed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .kernel import Kernel
from .wording import count_text, size_text

_KIB = 1024
_NUMA_NODE = re.compile(r"^node(\d+)$", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The pool of one NUMA node, in its pages; `surplus` are those beyond its size, from overcommit."""

    total: int
    free: int
    surplus: int = 0


@dataclass(frozen=True, kw_only=True)
class HostPool:
    """All pools of one page size, by NUMA node. `reserved` pages were promised to mappings that have not touched them.

    The kernel does not say on which NUMA node a reserved page will be wanted.
    """

    page_size: int
    by_numa_node: dict[int, Pool]
    reserved: int = 0

    @property
    def surplus(self) -> int:
        """Pages beyond the pools' sizes on all NUMA nodes."""
        return sum(pool.surplus for pool in self.by_numa_node.values())

    @property
    def free(self) -> int:
        """Free pages on all NUMA nodes."""
        return sum(pool.free for pool in self.by_numa_node.values())

    def on(self, numa_node: int) -> Pool:
        """Return the pool of a NUMA node; an empty one when it has none."""
        return self.by_numa_node.get(numa_node, Pool(total=0, free=0))

    def usable(self, numa_node: int) -> int:
        """Return how many free pages of a NUMA node's pool may be taken.

        Every reserved page may be one of this NUMA node, and who then finds none is killed by SIGBUS: so all of them
        are left. That keeps to the kernel's own rule too, by which it takes pages of a pool only while more are free on
        the host than reserved.
        """
        return unpromised(self.on(numa_node).free, self.reserved)


def unpromised(free: int, reserved: int) -> int:
    """Return how many of a NUMA node's `free` pages may be taken where `reserved` ones of the host are promised."""
    return max(0, free - reserved)


@dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """What a target's pool can take, in pages: `need` of it, `usable` now, and `grow` more to raise it by.

    `short` pages stay without a place. `evidence` is one clause, empty when nothing is missing.
    """

    numa_node: int
    page_size: int
    need: int
    usable: int
    grow: int = 0
    evidence: str = ""

    @property
    def short(self) -> int:
        """Pages that will find no place even once the pool has grown."""
        return max(0, self.need - self.usable - self.grow)


def plan_pool(
    need: int, *, pools: HostPool, numa_node: int, allowed: bool, largest_block: int, held: int = 0
) -> PoolPlan:
    """Decide how `need` bytes in huge pages find a place in the pool of a NUMA node.

    `allowed` says whether the pool may be raised, `largest_block` is the largest block in bytes that the buddy
    allocator has, `held` are bytes of the pool that other runs have reserved.

    Where the host has pages beyond its pools' sizes a pool is not raised: the kernel counts these first, and it could
    not be given back to the page.
    """
    size = pools.page_size
    wanted = -(-need // size)
    usable = max(0, pools.usable(numa_node) - -(-held // size))
    plan = PoolPlan(numa_node=numa_node, page_size=size, need=wanted, usable=usable)
    if wanted <= usable:
        return plan
    reserved = f", {pools.reserved} on the host are reserved" if pools.reserved else ""
    counted_on = f", {size_text(held)} of that is reserved by other moves" if held else ""
    evidence = (
        f"{count_text(wanted, 'page')} of {size_text(size)} to move, {pools.on(numa_node).free} free in the pool of"
        f" NUMA node {numa_node}{counted_on}{reserved}"
    )
    if not allowed:
        return replace(plan, evidence=evidence)
    if size > largest_block:
        return replace(plan, evidence=f"{evidence}; a pool of pages that large is not raised while the host runs")
    if pools.surplus:
        surplus = f"the host has {count_text(pools.surplus, 'surplus page')} of that size"
        return replace(plan, evidence=f"{evidence}; the pool is not raised while {surplus}")
    return replace(plan, evidence=evidence, grow=wanted - usable)


def wandered(before: HostPool, after: HostPool) -> str:
    """Return in one clause how pools changed between two looks; empty when none did.

    To be told where nothing was meant to change: others that take a free page at the same moment make the kernel move a
    page out of one pool and into the other.
    """
    changes = [
        f"NUMA node {numa_node} from {before.on(numa_node).total} to {after.on(numa_node).total}"
        for numa_node in sorted(before.by_numa_node.keys() | after.by_numa_node.keys())
        if before.on(numa_node).total != after.on(numa_node).total
    ]
    return f"pools of {size_text(before.page_size)} pages changed: {', '.join(changes)}" if changes else ""


def read_pools(kernel: Kernel, page_size: int) -> HostPool:
    """Return the pools of one page size; raises OSError."""
    name = f"hugepages-{page_size // _KIB}kB"
    root = kernel.sys / "devices/system/node"
    found = {}
    # First: a page that is taken meanwhile is not free then, where it was promised it would seem to be so otherwise.
    reserved = int(kernel.read(kernel.sys / "kernel/mm/hugepages" / name / "resv_hugepages"))
    for numa_node in filter(None, map(_NUMA_NODE.match, kernel.names(root))):
        directory = root / numa_node[0] / "hugepages" / name
        try:
            total, free, surplus = (
                int(kernel.read(directory / file)) for file in ("nr_hugepages", "free_hugepages", "surplus_hugepages")
            )
        except FileNotFoundError:  # of a NUMA node without memory
            continue
        found[int(numa_node[1])] = Pool(total=total, free=free, surplus=surplus)
    return HostPool(page_size=page_size, by_numa_node=found, reserved=reserved)


class PoolFiles:
    """The two files that say how many pages of one NUMA node's pool may be taken."""

    def __init__(self, kernel: Kernel, page_size: int, numa_node: int) -> None:
        name = f"hugepages-{page_size // _KIB}kB"
        self._kernel = kernel
        self._free = kernel.sys / f"devices/system/node/node{numa_node}/hugepages" / name / "free_hugepages"
        self._reserved = kernel.sys / "kernel/mm/hugepages" / name / "resv_hugepages"

    def usable(self) -> int:
        """Return how many pages may be taken now, 0 where there is no such pool; raises OSError."""
        try:
            reserved = int(self._kernel.read(self._reserved))  # first: a page that is taken meanwhile is not free then
            return unpromised(int(self._kernel.read(self._free)), reserved)
        except FileNotFoundError:
            return 0


def largest_block(kernel: Kernel) -> int:
    """Return the largest block of the buddy allocator in bytes, by the columns of /proc/buddyinfo; raises OSError."""
    lines = kernel.read(kernel.proc / "buddyinfo").splitlines()
    columns = max((len(line.partition("zone")[2].split()) - 1 for line in lines), default=0)
    return kernel.page_size << max(0, columns - 1)
