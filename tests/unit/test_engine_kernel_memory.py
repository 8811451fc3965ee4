# SPDX-License-Identifier: Apache-2.0
"""Notes of memory that the kernel keeps for a VM, from recorded texts of memory.numa_stat."""

from __future__ import annotations

from pathlib import Path

import pytest

from numaplacement.engine.cgroups import Container
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.kernel_memory import kernel_notes, read_kernel_notes
from numaplacement.engine.memory_stat import MAPPED, parse_numa_stat, sums_of
from numaplacement.engine.reasons import Reason

MIB = 1 << 20
RECORDED = f"""\
anon N0=1073741824 N1=0 N2={8 * MIB} N3=0
file N0=4096 N1=0 N2={MIB} N3=0
kernel_stack N0=16384 N1=0 N2=294912 N3=0
pagetables N0=36864 N1=0 N2={2 * MIB} N3=4096
sec_pagetables N0=0 N1=0 N2={3 * MIB} N3=0
shmem N0=0 N1=0 N2=0 N3=0
file_mapped N0=0 N1=4096 N2={MIB} N3=0
slab_reclaimable N0=0 N1=0 N2=8192 N3={MIB}
slab_unreclaimable N0=0 N1=0 N2=8192 N3={MIB}
workingset_refault_anon N0=0 N1=0 N2=0 N3=0
"""
OLDER = "\n".join(line for line in RECORDED.splitlines() if not line.startswith("sec_"))


def test_a_note_for_each_numa_node_off_the_targets() -> None:
    notes = kernel_notes(RECORDED, targets=(0, 1))
    assert [(note.reason, note.numa_node, note.bytes) for note in notes] == [
        (Reason.KERNEL_MEMORY, 2, 5 * MIB + 294912 + 2 * 8192),
        (Reason.KERNEL_MEMORY, 3, 2 * MIB + 4096),
    ]
    assert notes[0].evidence == (
        "memory.numa_stat of the VM's cgroup: pagetables 2.0 MiB, sec_pagetables 3.0 MiB, kernel_stack 288 KiB,"
        " slab_reclaimable 8 KiB, slab_unreclaimable 8 KiB"
    )
    assert all(note.remedy for note in notes)


@pytest.mark.parametrize(
    ("text", "targets", "numa_nodes"),
    [(RECORDED, (2,), [3]), (RECORDED, (2, 3), []), (OLDER, (0,), [2, 3]), ("", (0,), []), ("pagetables\n", (0,), [])],
)
def test_small_amounts_targets_and_kinds_that_are_not_counted_give_none(
    text: str, targets: tuple[int, ...], numa_nodes: list[int]
) -> None:
    assert [note.numa_node for note in kernel_notes(text, targets=targets)] == numa_nodes


def test_reading(tmp_path: Path) -> None:
    kernel, container = Kernel(proc=tmp_path, sys=tmp_path), Container(directory=tmp_path)
    assert read_kernel_notes(None, kernel, targets=(0,)) == ()
    assert read_kernel_notes(container, kernel, targets=(0,)) == ()
    (tmp_path / "memory.numa_stat").write_text(RECORDED)
    assert len(read_kernel_notes(container, kernel, targets=(0,))) == 2


def test_sums() -> None:
    assert parse_numa_stat(RECORDED)["kernel_stack"] == {0: 16384, 1: 0, 2: 294912, 3: 0}
    assert sums_of(RECORDED, MAPPED) == {0: 1 << 30, 1: 4096, 2: 9 * MIB, 3: 0}
