# SPDX-License-Identifier: Apache-2.0
"""What the host has, and what this process may do on it."""

from __future__ import annotations

from dataclasses import dataclass


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

    `move_pages_allowed` is false where a seccomp filter refuses the call even on this process's own page.
    `capabilities` are those in effect, by name, of CAP_SYS_NICE, CAP_SYS_PTRACE and CAP_SYS_ADMIN.
    """

    kernel_release: str
    numa_nodes: tuple[NumaNodeFacts, ...]
    numa_balancing: bool
    swap_total: int
    mems_allowed: frozenset[int]
    move_pages_allowed: bool
    seccomp_mode: int
    capabilities: frozenset[str]

    def numa_node(self, number: int) -> NumaNodeFacts | None:
        """Return one NUMA node, or None when the host has no such one."""
        return next((node for node in self.numa_nodes if node.numa_node == number), None)
