# SPDX-License-Identifier: Apache-2.0
"""What the kernel itself keeps for a VM away from its memory: page tables, stacks, structures of KVM.

Such memory never moves (the kernel's migration takes pages of processes only, Documentation/mm/page_migration.rst). It
is no page of the process, in no survey and no residue: there are notes of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .cgroups import Container
from .kernel import Kernel
from .memory_stat import OF_THE_KERNEL, parse_numa_stat
from .reasons import ADVICE, Reason
from .verdict import Note
from .wording import size_text

_WORTH_TELLING = 1 << 20
"""Bytes on a NUMA node below which nobody needs to know."""


def kernel_notes(numa_stat: str, *, targets: Iterable[int]) -> tuple[Note, ...]:
    """Return a note for each NUMA node off the targets on which the kernel keeps memory for a cgroup.

    `numa_stat` is the text of its memory.numa_stat. Kinds this kernel does not count are left out.
    """
    table = parse_numa_stat(numa_stat)
    kinds = {kind: table[kind] for kind in OF_THE_KERNEL if kind in table}
    away = sorted({numa_node for counts in kinds.values() for numa_node in counts} - set(targets))
    notes = []
    for numa_node in away:
        parts = {kind: counts[numa_node] for kind, counts in kinds.items() if counts.get(numa_node)}
        total = sum(parts.values())
        if total >= _WORTH_TELLING:
            listed = ", ".join(f"{kind} {size_text(count)}" for kind, count in parts.items())
            notes.append(
                Note(
                    reason=Reason.KERNEL_MEMORY,
                    numa_node=numa_node,
                    bytes=total,
                    evidence=f"memory.numa_stat of the VM's cgroup: {listed}",
                    remedy=ADVICE[Reason.KERNEL_MEMORY].remedy,
                )
            )
    return tuple(notes)


def read_kernel_notes(container: Container | None, kernel: Kernel, *, targets: Iterable[int]) -> tuple[Note, ...]:
    """Return the notes on a container; none where there is no container or its memory.numa_stat cannot be read."""
    if container is None:
        return ()
    try:
        return kernel_notes(kernel.read(container.directory / "memory.numa_stat"), targets=targets)
    except OSError:
        return ()
