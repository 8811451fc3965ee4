# SPDX-License-Identifier: Apache-2.0
"""What keeps memory from being moved on a host, whatever the process."""

from __future__ import annotations

from numaplacement.engine.errors import EngineError
from numaplacement.engine.host import HostFacts, read_host
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.listformat import format_list
from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Refusal

from .exits import Fault, Refused


def words(found: Refusal) -> str:
    """Return a refusal as one sentence: what was seen, and what to do."""
    remedy = found.remedy.rstrip(".")
    return f"{found.evidence}; {remedy[:1].lower()}{remedy[1:]}"


def without_numa(kernel: Kernel) -> Refusal | None:
    """Return what is wrong where the kernel knows no NUMA nodes; None where it does."""
    try:
        kernel.read(kernel.sys / "devices/system/node/online")
    except OSError:
        return Refusal(
            reason=Reason.NODE_HAS_NO_MEMORY,
            evidence="this kernel shows no NUMA nodes",
            remedy="Run one that is built with CONFIG_NUMA, and with the host's /sys mounted.",
        )
    return None


def one_node(host: HostFacts) -> Refusal | None:
    """Return what is wrong where there is nowhere to move memory to; None where there is."""
    with_memory = [node.numa_node for node in host.numa_nodes if node.has_memory]
    if len(with_memory) > 1:
        return None
    return Refusal(
        reason=Reason.NODE_HAS_NO_MEMORY,
        evidence=(
            f"this host has memory on one NUMA node only ({format_list(with_memory)}): there is nowhere to move it to"
        ),
        remedy="Run this on a host that lscpu shows several NUMA nodes of (a VM as host needs several guest cells).",
    )


def forbidden(host: HostFacts) -> Refusal | None:
    """Return what is wrong where this program may not call move_pages at all; None where it may."""
    if host.move_pages_allowed:
        return None
    if host.seccomp_mode:
        return Refusal(
            reason=Reason.SYSCALL_BLOCKED,
            evidence="a seccomp filter forbids move_pages here, as container runtimes' default profiles do",
            remedy=(
                "Run this on the host itself, or the container with a profile that allows move_pages (--security-opt"
                " seccomp=unconfined)."
            ),
        )
    return Refusal(
        reason=Reason.SYSCALL_BLOCKED,
        evidence="this kernel refuses move_pages even on this program's own memory",
        remedy=(
            "Run a kernel built with CONFIG_NUMA and CONFIG_MIGRATION, and without a security module that denies it."
        ),
    )


def see_numa_nodes(kernel: Kernel) -> None:
    """Raise Fault where there are none to show."""
    found = without_numa(kernel)
    if found is not None:
        raise Fault(words(found))


def check_host(kernel: Kernel) -> HostFacts:
    """Return the host's facts. Raises Refused when no memory can be moved on it."""
    found = without_numa(kernel)
    if found is None:
        try:
            host = read_host(kernel)
        except EngineError as error:
            raise Refused(str(error)) from error
        found = one_node(host) or forbidden(host)
    if found is not None:
        raise Refused(words(found), found)
    return host
