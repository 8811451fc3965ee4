# SPDX-License-Identifier: Apache-2.0
"""What the host has, and what this process may do on it."""

from __future__ import annotations

import errno
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .admission import safe_bytes
from .errors import EngineError, remedy_of
from .kernel import Kernel
from .listformat import parse_list

_KIB = 1024
_POOL = re.compile(r"^hugepages-(\d+)kB$", re.ASCII)
_CAPABILITIES = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_SYS_NICE": 23}
"""Numbers of linux/capability.h."""


@dataclass(frozen=True, kw_only=True)
class HugePagePool:
    """The pool of huge pages of one size on one NUMA node, in bytes."""

    page_size: int
    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class NumaNodeFacts:
    """One NUMA node: its CPUs, its distances (in the order of all NUMA nodes) and its memory in bytes.

    `safe` is what can be moved there without anybody having to give memory back.
    """

    numa_node: int
    has_memory: bool
    cpus: frozenset[int] = frozenset()
    distances: tuple[int, ...] = ()
    total: int = 0
    free: int = 0
    safe: int = 0
    huge_pages: tuple[HugePagePool, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """The host, and what this process may do on it.

    `move_pages_allowed` is false where the call is refused even on this process's own page, as a seccomp filter does;
    `seccomp_mode` is 0 for none, 2 for a filter. `capabilities` are those in effect, by name, of CAP_SYS_NICE,
    CAP_SYS_PTRACE and CAP_SYS_ADMIN.
    """

    kernel_release: str
    numa_nodes: tuple[NumaNodeFacts, ...]
    numa_balancing: bool = False
    swap_total: int = 0
    mems_allowed: frozenset[int]
    move_pages_allowed: bool = True
    seccomp_mode: int = 0
    capabilities: frozenset[str] = frozenset(_CAPABILITIES)

    def numa_node(self, number: int) -> NumaNodeFacts | None:
        """Return one NUMA node, or None when the host has no such one."""
        return next((node for node in self.numa_nodes if node.numa_node == number), None)


def read_host(kernel: Kernel) -> HostFacts:
    """Look at the host and try what this process may do. Raises EngineError where /proc or /sys cannot be read."""
    with reading_host():
        status = _fields(kernel.read(kernel.proc / "self/status"))
        return HostFacts(
            kernel_release=_text(kernel, kernel.proc / "sys/kernel/osrelease") or platform.release(),
            numa_nodes=_numa_nodes(kernel),
            numa_balancing=_text(kernel, kernel.proc / "sys/kernel/numa_balancing") not in {"", "0"},
            swap_total=_meminfo(kernel.read(kernel.proc / "meminfo"), "SwapTotal"),
            mems_allowed=parse_list(status.get("Mems_allowed_list", "")),
            move_pages_allowed=_may_call(kernel),
            seccomp_mode=int(status.get("Seccomp", "0")),
            capabilities=capabilities(status.get("CapEff", "0")),
        )


@contextmanager
def reading_host() -> Iterator[None]:
    """Turn an error of reading what the host has into EngineError."""
    try:
        yield
    except OSError as error:
        remedy = remedy_of(error, "mount the host's /proc and /sys")
        raise EngineError(f"cannot read the host's facts: {error}; {remedy}") from error


def safe_on(numa_node: int, kernel: Kernel) -> int:
    """Return the bytes that can be moved to a NUMA node now without waking reclaim there. Raises OSError."""
    zoneinfo = kernel.read(kernel.proc / "zoneinfo")
    return safe_bytes(zoneinfo, numa_node=numa_node, page_size=os.sysconf("SC_PAGE_SIZE"))


def capabilities(mask: str) -> frozenset[str]:
    """Return the names of the capabilities that matter here in a mask as /proc/PID/status writes it."""
    bits = int(mask, 16)
    return frozenset(name for name, number in _CAPABILITIES.items() if bits >> number & 1)


def _may_call(kernel: Kernel) -> bool:
    """Ask where a page of this very process is, which needs no right at all (mm/migrate.c, find_mm_struct)."""
    return kernel.locate_pages(0, kernel.own_page()).errno not in {errno.EPERM, errno.ENOSYS}


def _numa_nodes(kernel: Kernel) -> tuple[NumaNodeFacts, ...]:
    root = kernel.sys / "devices/system/node"
    with_memory = parse_list(kernel.read(root / "has_memory"))
    zoneinfo = kernel.read(kernel.proc / "zoneinfo")
    return tuple(
        _numa_node(number, kernel, root / f"node{number}", has_memory=number in with_memory, zoneinfo=zoneinfo)
        for number in sorted(parse_list(kernel.read(root / "online")))
    )


def _numa_node(number: int, kernel: Kernel, path: Path, *, has_memory: bool, zoneinfo: str) -> NumaNodeFacts:
    meminfo = kernel.read(path / "meminfo")
    return NumaNodeFacts(
        numa_node=number,
        has_memory=has_memory,
        cpus=parse_list(kernel.read(path / "cpulist")),
        distances=tuple(int(word) for word in kernel.read(path / "distance").split()),
        total=_meminfo(meminfo, "MemTotal"),
        free=_meminfo(meminfo, "MemFree"),
        safe=safe_bytes(zoneinfo, numa_node=number, page_size=os.sysconf("SC_PAGE_SIZE")),
        huge_pages=tuple(_pools(kernel, path / "hugepages")),
    )


def _pools(kernel: Kernel, path: Path) -> list[HugePagePool]:
    try:
        names = kernel.names(path)
    except FileNotFoundError:
        return []
    pools = []
    for found in filter(None, map(_POOL.match, names)):
        page_size = int(found[1]) * _KIB
        total, free = (
            int(kernel.read(path / found[0] / name)) * page_size for name in ("nr_hugepages", "free_hugepages")
        )
        pools.append(HugePagePool(page_size=page_size, total=total, free=free))
    return pools


def _meminfo(text: str, name: str) -> int:
    """Return a value of /proc/meminfo or of a NUMA node's meminfo, in bytes; 0 when it is not there."""
    found = re.search(rf"\b{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * _KIB if found else 0


def _fields(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _text(kernel: Kernel, path: Path) -> str:
    """Return the text of a file, empty when it is not there."""
    try:
        return kernel.read(path).strip()
    except FileNotFoundError:
        return ""
