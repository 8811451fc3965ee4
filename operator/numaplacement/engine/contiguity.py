# SPDX-License-Identifier: Apache-2.0
"""Whether a NUMA node can take huge pages whole, and how to make it able to: by compaction of that one NUMA node.

A transparent huge page for which the target has no free block of its size is split and moved in base pages
(mm/migrate.c, migrate_pages_batch), after the kernel has tried to compact and to reclaim there for that one page. So
this is looked at, and done, before the first page moves. Free blocks are those of /proc/buddyinfo. It does not say
which of them the kernel keeps for atomic requests, 1 % of a zone at most: that many may be counted too much.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass

from .admission import zones
from .kernel import Kernel
from .wording import size_text

_LINE = re.compile(r"^Node (\d+), zone\s+(\S+)((?:\s+\d+)+)\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Free memory of a NUMA node for huge pages of one size, in bytes.

    `usable` lies in free blocks of that size at least and can be taken without waking reclaim; `possible` could be so
    taken if all that is free were contiguous.
    """

    numa_node: int
    usable: int
    possible: int


@dataclass(frozen=True, kw_only=True)
class Contiguity:
    """Whether huge pages fit whole: `usable` bytes can be had now. `compact` says whether compaction could help.

    `evidence` is one clause of what was seen.
    """

    enough: bool
    compact: bool
    usable: int
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """What asking for compaction came to: an errno, 0 for none."""

    numa_node: int
    errno: int = 0

    @property
    def evidence(self) -> str:
        """One clause of what came of it."""
        if not self.errno:
            return f"the memory of NUMA node {self.numa_node} was compacted"
        name = errno.errorcode.get(self.errno, str(self.errno))
        return f"NUMA node {self.numa_node} could not be compacted ({name}: {os.strerror(self.errno)})"


def free_blocks(buddyinfo: str, zoneinfo: str, *, numa_node: int, page_size: int, huge_page_size: int) -> Blocks:
    """Return what is free for huge pages, from the texts of /proc/buddyinfo and /proc/zoneinfo.

    What a zone keeps below its high watermark may as well be its smaller blocks: so the lesser of what is in large
    blocks and of what is above the watermark counts, zone by zone. A zone whose blocks end below that size has none.
    """
    order = (huge_page_size // page_size).bit_length() - 1
    counts = {
        match[2]: [int(word) for word in match[3].split()]
        for match in _LINE.finditer(buddyinfo)
        if int(match[1]) == numa_node
    }
    usable = possible = 0
    for zone in zones(zoneinfo, numa_node):
        by_order = counts.get(zone.name, [])
        if len(by_order) <= order:
            continue
        large = sum(count << index for index, count in enumerate(by_order) if index >= order)
        usable += min(large, zone.safe) >> order
        possible += zone.safe >> order
    return Blocks(numa_node=numa_node, usable=usable * huge_page_size, possible=possible * huge_page_size)


def plan_contiguity(
    need: int, blocks: Blocks, huge_page_size: int, *, others: int = 0, compaction: Compaction | None = None
) -> Contiguity:
    """Decide whether `need` bytes fit in whole huge pages, or whether to compact first.

    `others` are bytes that are to be taken on that NUMA node as well, in pages of any size, and must still fit above
    the high watermark. `compaction` is what an earlier try came to: there is no second one.
    """
    need = -(-need // huge_page_size) * huge_page_size
    most = max(0, blocks.possible - others) // huge_page_size * huge_page_size
    usable = min(blocks.usable, most)
    tried = f" after {compaction.evidence}" if compaction else ""
    evidence = (
        f"{size_text(need)} of huge pages to place, {size_text(usable)} can be had whole on NUMA node"
        f" {blocks.numa_node}{tried}"
    )
    enough = usable >= need
    compact = not enough and compaction is None and usable < most
    return Contiguity(enough=enough, compact=compact, usable=usable, evidence=evidence)


def compact(numa_node: int, kernel: Kernel) -> Compaction:
    """Let the kernel compact the memory of one NUMA node, never of the whole host as vm.compact_memory does.

    It moves pages of whoever has some there within that NUMA node. The call returns when it is through with the NUMA
    node, which may take seconds for each hundred GiB, and cannot be cancelled meanwhile: the kernel gives up only for
    a signal that kills. Without the right to write to /sys, or where the kernel has no compaction, nothing happens and
    the errno says so.
    """
    try:
        kernel.write(kernel.sys / f"devices/system/node/node{numa_node}/compact", "1")
    except OSError as error:
        return Compaction(numa_node=numa_node, errno=error.errno or errno.EIO)
    return Compaction(numa_node=numa_node)


def read_blocks(numa_node: int, kernel: Kernel, huge_page_size: int) -> Blocks:
    """Return what is free now for huge pages. Raises OSError."""
    return free_blocks(
        kernel.read(kernel.proc / "buddyinfo"),
        kernel.read(kernel.proc / "zoneinfo"),
        numa_node=numa_node,
        page_size=kernel.page_size,
        huge_page_size=huge_page_size,
    )


def make_contiguous(need: int, *, numa_node: int, kernel: Kernel, huge_page_size: int, others: int = 0) -> Contiguity:
    """Look whether `need` bytes of huge pages fit whole on a NUMA node, compact it if that may help, and look again.

    `others` as in plan_contiguity(). Raises OSError where /proc cannot be read. Not to be cancelled, see compact().
    """
    found = plan_contiguity(need, read_blocks(numa_node, kernel, huge_page_size), huge_page_size, others=others)
    if not found.compact:
        return found
    done = compact(numa_node, kernel)
    blocks = read_blocks(numa_node, kernel, huge_page_size)
    return plan_contiguity(need, blocks, huge_page_size, others=others, compaction=done)
