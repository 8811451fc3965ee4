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
    HUGEPAGE_POOL = "hugepage-pool"
    DESTINATION_FULL = "destination-full"
    HUGE_PAGES_SPLIT = "huge-pages-split"
    PINNED_BY_DEVICE = "pinned-by-device"
    ENCRYPTED_GUEST = "encrypted-guest"
    PINNED_BY_IO = "pinned-by-io"
    STRICT_BINDING = "strict-binding"
    REALTIME = "realtime"
    CELLS_UNKNOWN = "cells-unknown"
    EXTRA_REFERENCE = "extra-reference"
    SHARED_WITHOUT_PRIVILEGE = "shared-without-privilege"
    KSM_SHARED = "ksm-shared"
    SHARED_FILE = "shared-file"
    NO_CELL = "no-cell"
    SWAPPED = "swapped"
    HIDDEN_BY_NUMA_HINT = "hidden-by-numa-hint"
    MOVED_BACK = "moved-back"
    NEW_ON_SOURCE = "new-on-source"
    UNMIGRATABLE_MAPPING = "unmigratable-mapping"
    SECRET_MEMORY = "secret-memory"  # noqa: S105 - the field's word for memfd_secret(2), no password
    FILE_NOT_MIGRATABLE = "file-not-migratable"
    BUSY = "busy"
    VANISHED = "vanished"
    SHARED_WITH_HELPER = "shared-with-helper"
    AUTO_NUMA = "auto-numa"
    KERNEL_MEMORY = "kernel-memory"
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
        remedy=(
            "Run numaplace on the host itself; give the agent's container seccompProfile Unconfined, or Localhost"
            " with a profile that allows move_pages."
        ),
    ),
    Reason.NO_ACCESS: Advice(
        permanent=True,
        remedy=(
            "Run it as root; the agent's container needs CAP_SYS_PTRACE in the host's own user namespace"
            " (hostUsers: true) and, with SELinux, the type spc_t."
        ),
    ),
    Reason.AGENT_CPUSET: Advice(
        permanent=True,
        remedy=(
            "Run numaplace from a shell whose cpuset.mems has the target; run the agent's pod so that kubelet's"
            " memory manager does not bind it (no QoS class Guaranteed)."
        ),
    ),
    Reason.VM_CPUSET: Advice(
        permanent=True,
        remedy=(
            "Allow RebindCpuset, widen cpuset.mems of the VM's cgroup to the target yourself, or choose a NUMA node"
            " that is in it."
        ),
    ),
    Reason.NODE_HAS_NO_MEMORY: Advice(
        permanent=True,
        remedy=(
            "Choose a NUMA node that has memory: numactl --hardware on the host or kubectl get numahosts -o yaml"
            " shows them."
        ),
    ),
    Reason.DESTINATION_FULL: Advice(
        permanent=False,
        remedy=(
            "Free memory on the target (numastat -m shows what is used), choose another NUMA node, or allow Reclaim"
            " to push page cache out; then try again."
        ),
    ),
    Reason.HUGEPAGE_POOL: Advice(
        permanent=False,
        remedy=(
            "Allow GrowHugePages, or raise nr_hugepages of this page size below"
            " /sys/devices/system/node/nodeN/hugepages of the target, and try again."
        ),
    ),
    Reason.HUGE_PAGES_SPLIT: Advice(
        permanent=False,
        remedy=(
            "None needed: khugepaged rebuilds huge pages with time. Before the next move free memory on the target"
            " and compact it (echo 1 > /sys/devices/system/node/nodeN/compact)."
        ),
    ),
    Reason.PINNED_BY_DEVICE: Advice(
        permanent=True,
        remedy=(
            "Hot-unplug the device (virsh detach-device), move, and plug it in again; or start the VM on that NUMA"
            " node. To allow PinnedPart moves what is not pinned."
        ),
    ),
    Reason.PINNED_BY_IO: Advice(
        permanent=False,
        remedy="Try again later, or end the disk job whose I/O buffers are registered.",
    ),
    Reason.ENCRYPTED_GUEST: Advice(
        permanent=True,
        remedy="Memory of an encrypted guest never moves: stop the VM and start it on that NUMA node.",
    ),
    Reason.STRICT_BINDING: Advice(
        permanent=True,
        remedy=(
            "Start the VM without strict binding (KubeVirt: guestMappingPassthrough, libvirt: numatune) or on that"
            " NUMA node; or allow StrictBinding, and RebindCpuset for pages made later."
        ),
    ),
    Reason.REALTIME: Advice(
        permanent=True,
        remedy=(
            "Moving would stall a realtime VM: start it on that NUMA node instead, or allow Realtime if it may wait"
            " as long as a kernel call lasts."
        ),
    ),
    Reason.CELLS_UNKNOWN: Advice(
        permanent=True,
        remedy="Give one NUMA node for the whole VM instead of cells, or start the VM with one memory backend a cell.",
    ),
    Reason.EXTRA_REFERENCE: Advice(
        permanent=False,
        remedy=(
            "Try again when the VM does less I/O, which holds pages for a moment. If they stay, restart the VM's"
            " zero-copy back ends of disks and network."
        ),
    ),
    Reason.SHARED_WITHOUT_PRIVILEGE: Advice(
        permanent=True,
        remedy=(
            "Run it as root, or give the agent's container CAP_SYS_NICE: without it pages that other processes map"
            " stay."
        ),
    ),
    Reason.KSM_SHARED: Advice(
        permanent=True,
        remedy=(
            "Merged pages are other VMs' too and are left: set a tolerance, start the VM without KSM (libvirt:"
            " nosharepages), or unmerge all (echo 2 > /sys/kernel/mm/ksm/run)."
        ),
    ),
    Reason.SHARED_FILE: Advice(
        permanent=True,
        remedy="None needed: program files in the page cache, which other processes of the host use too.",
    ),
    Reason.NO_CELL: Advice(
        permanent=True,
        remedy="None needed: memory of QEMU itself, or of a guest cell that was given no NUMA node.",
    ),
    Reason.SWAPPED: Advice(
        permanent=False,
        remedy=(
            "Free memory on the target, which needs a CPU too, and try again: swapped-out memory is read back there."
        ),
    ),
    Reason.HIDDEN_BY_NUMA_HINT: Advice(
        permanent=False,
        remedy=(
            "Try again, or switch AutoNUMA off for the move (sysctl kernel.numa_balancing=0): it hides these pages"
            " on this kernel."
        ),
    ),
    Reason.MOVED_BACK: Advice(
        permanent=False,
        remedy=(
            "Let all threads of the VM follow, or switch AutoNUMA off (sysctl kernel.numa_balancing=0): it moves"
            " memory to the threads that use it. Then try again."
        ),
    ),
    Reason.NEW_ON_SOURCE: Advice(
        permanent=False,
        remedy=(
            "Try again: the VM touched this memory while it was moved. Where threads were left, let them follow:"
            " pages are made where threads run."
        ),
    ),
    Reason.UNMIGRATABLE_MAPPING: Advice(
        permanent=True,
        remedy="None needed: memory of the kernel or of a device that the VM maps; it cannot move.",
    ),
    Reason.SECRET_MEMORY: Advice(
        permanent=True,
        remedy="None: the kernel never moves memory of memfd_secret.",
    ),
    Reason.FILE_NOT_MIGRATABLE: Advice(
        permanent=False,
        remedy=(
            "Write the file's changes to disk (sync) and try again. If it stays, the file's own file system cannot"
            " move its pages."
        ),
    ),
    Reason.VANISHED: Advice(
        permanent=False,
        remedy="None: the VM gave this memory back while it was moved.",
    ),
    Reason.SHARED_WITH_HELPER: Advice(
        permanent=True,
        remedy="None needed: pages that a helper such as virtiofsd maps too moved for both.",
    ),
    Reason.AUTO_NUMA: Advice(
        permanent=True,
        remedy=(
            "Let all threads of the VM follow, or switch AutoNUMA off (sysctl kernel.numa_balancing=0): it moves"
            " memory to the threads that use it."
        ),
    ),
    Reason.KERNEL_MEMORY: Advice(
        permanent=True,
        remedy=(
            "None: page tables and other memory of the kernel for this VM never move; a VM that is started on the"
            " target has them there."
        ),
    ),
    Reason.BUSY: Advice(
        permanent=False,
        remedy="Try again: the kernel was using these pages each time.",
    ),
    Reason.NOT_ATTEMPTED: Advice(
        permanent=False,
        remedy="Remove what stands in the way (the other rows say what), and try again.",
    ),
    Reason.CANCELLED: Advice(
        permanent=False,
        remedy="None: the move was ended on purpose; what had moved stays moved.",
    ),
    Reason.DEADLINE: Advice(
        permanent=False,
        remedy="Raise the deadline, or the limits of bandwidth and call latency; the next attempt moves the rest.",
    ),
    Reason.PLANNED: Advice(
        permanent=False,
        remedy="None: this is what would have been moved.",
    ),
    Reason.UNEXPLAINED: Advice(
        permanent=False,
        remedy="Try again; if it stays, report it with the whole verdict and the kernel's release (uname -r).",
    ),
}
"""Advice for each reason."""

NOT_ASKED = frozenset({Reason.SHARED_FILE, Reason.UNMIGRATABLE_MAPPING, Reason.NO_CELL})
"""Memory that stands in the residue but was not asked to move: it is not the VM's own."""
