# SPDX-License-Identifier: Apache-2.0
"""Pushes page cache out of one NUMA node where that is allowed, and says what may be taken there meanwhile.

From Linux 6.17 on a write to /sys/devices/system/node/nodeN/reclaim makes the kernel reclaim there, from files only
when told so with swappiness=0 (mm/vmscan.c, user_proactive_reclaim): what moves still stays above the high watermark.
Older kernels have no such means for one NUMA node. There memory is taken down to between the low watermark, below which
the kernel's own background reclaim (kswapd) wakes and fills up to the high one, and the minimum, below which whoever
asks for memory has to reclaim himself. kswapd chooses what it takes: so that is done only where it can take nothing but
page cache, on a host without swap and without a slower NUMA node for pages to be demoted to.
"""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .admission import safe_bytes, zones
from .kernel import Kernel
from .wording import size_text

_KIB = 1024
_DISCOUNT = 2
"""Of what looks reclaimable half may not be: mapped, in use, or back at once."""
_SLICE = 64 << 20
"""Bytes asked for in one write: between two there is a look whether the run was cancelled."""
_NAP = 0.2
"""Seconds to wait where another is asking."""
_IN_VAIN = 3
"""Writes in a row that gain less than half of what they asked for, after which no more is to be had."""


class Means(enum.StrEnum):
    """How page cache of one NUMA node can be pushed out."""

    NONE = "none"
    ON_REQUEST = "on request"
    BY_KSWAPD = "by kswapd"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a NUMA node would give back: `reclaimable` bytes, discounted, and by which means.

    `evidence` is one clause that says why there are none; empty where there are.
    """

    means: Means
    reclaimable: int = 0
    evidence: str = ""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Whether bytes may be moved to a NUMA node, and how many of them to push out there first.

    `evidence` is one clause of what was seen.
    """

    admitted: bool
    push_out: int = 0
    evidence: str


@dataclass(frozen=True, kw_only=True)
class PushedOut:
    """What pushing out came to: bytes asked for, bytes that can be taken more since, an errno or 0."""

    asked: int = 0
    gained: int = 0
    errno: int = 0


def reclaimable(meminfo: str, *, min_unmapped_ratio: int) -> int:
    """Return R, the bytes of one NUMA node that could be given back without swap, undiscounted; from its meminfo.

    That is clean page cache and slab caches, less what vm.min_unmapped_ratio (percent of the NUMA node's memory) keeps
    of page cache. Anonymous memory is never counted.
    """
    cache = sum(_meminfo(meminfo, name) for name in ("Inactive(file)", "Active(file)"))
    unclean = _meminfo(meminfo, "Dirty") + _meminfo(meminfo, "Writeback")
    kept = _meminfo(meminfo, "MemTotal") * min_unmapped_ratio // 100
    return max(0, cache - unclean - kept) + _meminfo(meminfo, "SReclaimable")


def offer(count: int, *, on_request: bool, swap_total: int, demotion: bool) -> Offer:
    """Decide by which means `count` bytes that are reclaimable could be pushed out, and what they are good for.

    `on_request` says whether the kernel reclaims one NUMA node when asked.
    """
    if on_request:
        return Offer(means=Means.ON_REQUEST, reclaimable=count // _DISCOUNT)
    beside = f"{size_text(swap_total)} of swap" if swap_total else "demotion to slower memory" if demotion else ""
    if beside:
        evidence = f"page cache cannot be pushed out alone: the host has {beside}, and a kernel before 6.17"
        return Offer(means=Means.NONE, evidence=evidence)
    return Offer(means=Means.BY_KSWAPD, reclaimable=count // _DISCOUNT)


def admissible(*, numa_node: int, safe: int, need: int, offered: Offer, allowed: bool) -> Admission:
    """Decide whether `need` bytes may be moved to a NUMA node where `safe` can be taken without waking reclaim."""
    seen = f"{size_text(need)} to move, {size_text(safe)} can be taken on NUMA node {numa_node}"
    if need <= safe:
        return Admission(admitted=True, evidence=seen)
    if not allowed:
        return Admission(admitted=False, evidence=f"{seen} without making others give memory back")
    if offered.means is Means.NONE:
        return Admission(admitted=False, evidence=f"{seen}; {offered.evidence}")
    seen += f" and {size_text(offered.reclaimable)} more by pushing page cache out"
    fits = need <= safe + offered.reclaimable
    return Admission(admitted=fits, push_out=need - safe if fits else 0, evidence=seen)


def room(zoneinfo: str, *, numa_node: int, page_size: int, offered: Offer | None = None) -> int:
    """Return the bytes one chunk may take on a NUMA node now, from the text of /proc/zoneinfo read for that chunk.

    That is what is free above the high watermarks. Only with an `offered` that kswapd can make good it is what is free
    above the middle of minimum and low watermark: so that kswapd wakes and nobody has to reclaim himself. It may be
    less than a chunk for a moment, until kswapd is through: then smaller chunks go on.
    """
    above_high = safe_bytes(zoneinfo, numa_node=numa_node, page_size=page_size)
    if offered is None or offered.means is not Means.BY_KSWAPD:
        return above_high
    lent, lower = 0, 0
    for zone in zones(zoneinfo, numa_node):
        floor = (zone.minimum + zone.low) // 2
        lent += zone.high - floor
        lower += max(0, zone.free - floor - zone.protection)
    return lower * page_size if offered.reclaimable >= lent * page_size else above_high


def read_offer(numa_node: int, kernel: Kernel) -> Offer:
    """Return what a NUMA node offers now. Raises OSError."""
    directory = kernel.sys / f"devices/system/node/node{numa_node}"
    ratio = _number(kernel, "sys/vm/min_unmapped_ratio")
    return offer(
        reclaimable(kernel.read(directory / "meminfo"), min_unmapped_ratio=ratio),
        on_request="reclaim" in kernel.names(directory),
        swap_total=_meminfo(kernel.read(kernel.proc / "meminfo"), "SwapTotal"),
        demotion=_demotion(kernel),
    )


def read_room(numa_node: int, kernel: Kernel, *, allowed: bool) -> int:
    """Return the bytes one chunk may take on a NUMA node now; `allowed` says whether Reclaim is. Raises OSError."""
    zoneinfo = kernel.read(kernel.proc / "zoneinfo")
    offered = read_offer(numa_node, kernel) if allowed else None
    return room(zoneinfo, numa_node=numa_node, page_size=kernel.page_size, offered=offered)


def push_out(count: int, *, numa_node: int, kernel: Kernel, check: Callable[[], None]) -> PushedOut:
    """Push page cache out of a NUMA node until `count` bytes more can be taken there, or no more is to be had.

    Only where the kernel does so on request. Never asks for more than is reclaimable, discounted, at that moment.
    `check` is called between two writes, and what it raises (a cancel, a deadline) ends it and passes through. The
    kernel says EAGAIN when it found less than it was asked for, EBUSY when another is asking. Raises OSError where
    /proc or /sys cannot be read; what comes of writing is in the result.
    """
    path = kernel.sys / f"devices/system/node/node{numa_node}/reclaim"
    before = read_room(numa_node, kernel, allowed=False)
    done, in_vain = PushedOut(), 0
    while done.gained < count and in_vain < _IN_VAIN:
        check()
        offered = read_offer(numa_node, kernel)
        size = min(_SLICE, count - done.gained, offered.reclaimable) // kernel.page_size * kernel.page_size
        if offered.means is not Means.ON_REQUEST or size <= 0:
            break
        number = _request(kernel, path, size)
        gained = read_room(numa_node, kernel, allowed=False) - before
        in_vain = in_vain + 1 if gained - done.gained < size // 2 else 0
        if number == errno.EBUSY:
            kernel.sleep(_NAP)
        done = PushedOut(asked=done.asked + size, gained=gained, errno=number)
        if number not in {0, errno.EAGAIN, errno.EBUSY}:
            break
    return done


def _request(kernel: Kernel, path: Path, size: int) -> int:
    """Ask the kernel to reclaim so many bytes of files; return the errno, 0 for none."""
    try:
        kernel.write(path, f"{size} swappiness=0")
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _demotion(kernel: Kernel) -> bool:
    """Say whether reclaim may move pages to slower memory (sysfs-kernel-mm-numa)."""
    try:
        return kernel.read(kernel.sys / "kernel/mm/numa/demotion_enabled").strip() not in {"0", "false"}
    except OSError:
        return False


def _number(kernel: Kernel, name: str) -> int:
    try:
        return int(kernel.read(kernel.proc / name))
    except OSError:
        return 0


def _meminfo(text: str, name: str) -> int:
    """Return a value of a meminfo, in bytes; 0 when it is not there."""
    found = re.search(rf"(?:^|\s){re.escape(name)}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * _KIB if found else 0
