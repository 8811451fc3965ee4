# SPDX-License-Identifier: Apache-2.0
"""Why memory is not where it was asked to be: one constant a reason, and the remedy in words."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Reason(enum.StrEnum):
    """Why a byte is not on target. Names and order follow what the kernel can refuse, from call down to page."""

    SYSCALL_BLOCKED = "syscall-blocked"
    NO_ACCESS = "no-access-to-process"
    AGENT_CPUSET = "agent-cpuset"
    VM_CPUSET = "vm-cpuset"
    NODE_HAS_NO_MEMORY = "node-has-no-memory"
    DESTINATION_FULL = "destination-full"
    PINNED_BY_DEVICE = "pinned-by-device"
    PINNED_BY_IO = "pinned-by-io"
    ENCRYPTED_GUEST = "encrypted-guest"
    STRICT_BINDING = "strict-binding"
    REALTIME = "realtime"
    HUGETLB_NOT_YET = "hugetlb-not-supported"
    EXTRA_REFERENCE = "extra-reference"
    SHARED_WITHOUT_PRIVILEGE = "shared-without-privilege"
    KSM_SHARED = "ksm-shared"
    SHARED_FILE = "shared-file"
    HIDDEN_BY_NUMA_HINT = "hidden-by-numa-hint"
    MOVED_BACK = "moved-back"
    NEW_ON_SOURCE = "new-on-source"
    UNMIGRATABLE_MAPPING = "unmigratable-mapping"
    SECRET_MEMORY = "secret-memory"  # noqa: S105 - the field's word for memfd_secret(2), no password
    BUSY = "busy"
    NOT_ATTEMPTED = "not-attempted"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    PLANNED = "planned"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Advice:
    """Whether trying again is useless as long as the cause stands, and what a person can do about it."""

    permanent: bool
    remedy: str


ADVICE: dict[Reason, Advice] = {
    Reason.SYSCALL_BLOCKED: Advice(
        permanent=True,
        remedy="Give the agent's container a seccomp profile that allows move_pages (Localhost or Unconfined).",
    ),
    Reason.NO_ACCESS: Advice(
        permanent=True,
        remedy="Give the agent CAP_SYS_PTRACE in the host's own user namespace and, with SELinux, the type spc_t.",
    ),
    Reason.AGENT_CPUSET: Advice(
        permanent=True, remedy="Run the agent without cpuset.mems: its own cpuset must contain the target NUMA node."
    ),
    Reason.VM_CPUSET: Advice(
        permanent=True,
        remedy="Widen cpuset.mems of the VM's container to the target NUMA node, or choose one that is in it.",
    ),
    Reason.NODE_HAS_NO_MEMORY: Advice(permanent=True, remedy="Choose a NUMA node of this host that has memory."),
    Reason.DESTINATION_FULL: Advice(
        permanent=False, remedy="Free memory on the target NUMA node, or choose another one, and try again."
    ),
    Reason.PINNED_BY_DEVICE: Advice(
        permanent=True,
        remedy=(
            "Hot-unplug the device, delete this order so that another is made, and plug the device in again once the VM"
            " is placed; or start the VM on that NUMA node."
        ),
    ),
    Reason.PINNED_BY_IO: Advice(
        permanent=False, remedy="Try again later, or stop the disk job whose I/O buffers are registered."
    ),
    Reason.ENCRYPTED_GUEST: Advice(
        permanent=True, remedy="Memory of an encrypted guest never moves: start the VM on that NUMA node."
    ),
    Reason.STRICT_BINDING: Advice(
        permanent=True,
        remedy="The VM's memory is bound to other NUMA nodes: start it without guestMappingPassthrough or on that one.",
    ),
    Reason.REALTIME: Advice(
        permanent=True, remedy="Moving would stall a realtime VM: start it on that NUMA node instead."
    ),
    Reason.HUGETLB_NOT_YET: Advice(
        permanent=True,
        remedy="This version does not move pages of huge-page pools: start the VM on that NUMA node instead.",
    ),
    Reason.EXTRA_REFERENCE: Advice(
        permanent=False,
        remedy="Try again: I/O in flight holds the pages for a moment. If it stays, look who holds them.",
    ),
    Reason.SHARED_WITHOUT_PRIVILEGE: Advice(
        permanent=True, remedy="Give the agent CAP_SYS_NICE: without it pages that other processes map stay."
    ),
    Reason.KSM_SHARED: Advice(
        permanent=True,
        remedy="Merged pages (KSM) are other VMs' as well and are left: switch KSM off for the VM or set a tolerance.",
    ),
    Reason.SHARED_FILE: Advice(
        permanent=True,
        remedy="None needed: program files in the page cache, which other processes of the host use too.",
    ),
    Reason.HIDDEN_BY_NUMA_HINT: Advice(
        permanent=False, remedy="Try again, or switch kernel.numa_balancing off: it hides these pages on this kernel."
    ),
    Reason.MOVED_BACK: Advice(
        permanent=False,
        remedy="Let the VM's threads follow, or switch kernel.numa_balancing off: it moves memory after the threads.",
    ),
    Reason.NEW_ON_SOURCE: Advice(permanent=False, remedy="Try again: the VM touched this memory while it was moved."),
    Reason.UNMIGRATABLE_MAPPING: Advice(
        permanent=True, remedy="None needed: memory of the kernel or of a device that the VM maps; it cannot move."
    ),
    Reason.SECRET_MEMORY: Advice(permanent=True, remedy="None: the kernel never moves memory of memfd_secret."),
    Reason.BUSY: Advice(permanent=False, remedy="Try again: the kernel was using these pages each time."),
    Reason.NOT_ATTEMPTED: Advice(permanent=False, remedy="Remove what stands in the way (the other rows say what)."),
    Reason.CANCELLED: Advice(
        permanent=False, remedy="None: the move was ended on purpose; what had moved stays moved."
    ),
    Reason.DEADLINE: Advice(
        permanent=False,
        remedy="Raise limits.deadline, or limits.bandwidth and limits.callLatency; the next attempt moves the rest.",
    ),
    Reason.PLANNED: Advice(permanent=False, remedy="None: this is what would have been moved."),
    Reason.UNEXPLAINED: Advice(permanent=False, remedy="Try again; if it stays, report it with the kernel's release."),
}
"""Advice for each reason."""

NOT_ASKED = frozenset({Reason.SHARED_FILE, Reason.UNMIGRATABLE_MAPPING})
"""Memory that stands in the residue but was not asked to move: it is not the VM's own."""
