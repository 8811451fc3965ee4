# SPDX-License-Identifier: Apache-2.0
"""Processes whose memory does not move, settings of the kernel that a test changes, and moments to act at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from numaplacement.engine.contiguity import read_blocks
from numaplacement.engine.host import safe_on
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.verdict import Progress, Stage
from tests.kernel.memory_process import MIB, MemoryProcess, memory_process, wait_for
from tests.kernel.test_engine_move import Watch

CHILD = Path(__file__).with_name("cause_child.py")
NUMA_NODES = Path("/sys/devices/system/node")
VM = Path("/proc/sys/vm")
THP = 2 * MIB
ROOM = 128 * MIB


def cause_process(
    *regions: tuple[str, int, list[int]], prepare: Callable[[], None] | None = None, **spec: object
) -> contextlib.AbstractContextManager[MemoryProcess]:
    """Start cause_child.py with regions as memory_process() has them."""
    return memory_process(*regions, prepare=prepare, child=CHILD, **spec)


@contextlib.contextmanager
def setting(path: str | Path, value: str) -> Iterator[None]:
    """A file below /proc or /sys that reads otherwise for a while."""
    file = Path(path)
    before = file.read_text()
    file.write_text(value)
    try:
        yield
    finally:
        file.write_text(before.partition("[")[2].partition("]")[0] or before)


def take_blocks(hog: MemoryProcess) -> None:
    """Let a process take the free blocks of NUMA node 0.

    The kernel's background reclaim, once woken, goes on for a while and makes more: what is free has to settle.
    """
    looks = 0

    def settled() -> bool:
        nonlocal looks
        looks = looks + 1 if read_blocks(0, Kernel(), THP).usable <= 3 * THP else 0
        if not looks:
            hog.ask("take")
        return looks == 5

    hog.ask("take")
    wait_for(settled)


@contextlib.contextmanager
def fragments(*, compactable: bool) -> Iterator[MemoryProcess]:
    """NUMA node 0 with about 64 MiB free, and hardly a block of a huge page among it.

    Between what is free lies locked memory, which the kernel may move or not to make blocks. It makes none of its own
    accord, neither for who takes them (defrag) nor in the background (compaction_proactiveness); and CPUs keep no pages
    they freed in lists of their own (percpu_pagelist_high_fraction).
    """
    with (
        setting(VM / "compact_unevictable_allowed", "0"),  # or what takes the blocks has some made
        setting(VM / "compaction_proactiveness", "0"),
        setting("/sys/kernel/mm/transparent_hugepage/defrag", "never"),
        setting(VM / "min_free_kbytes", "8192"),
        setting(VM / "percpu_pagelist_high_fraction", "100000"),
    ):
        (VM / "drop_caches").write_text("3")
        with cause_process(preferred=0) as hog:
            assert hog.ask(f"lay {ROOM - 16 * MIB}") == "done"  # first, from blocks in which memory may be moved
            assert hog.ask(f"lock {(safe_on(0, Kernel()) - 16 * MIB) // THP * THP}") == "done"
            assert hog.ask(f"pierce {ROOM - 16 * MIB}") == "done"
            take_blocks(hog)
            assert safe_on(0, Kernel()) >= 32 * MIB
            (VM / "compact_unevictable_allowed").write_text(str(int(compactable)))
            yield hog


@dataclass
class AtVerify(Watch):
    """Does something each time the engine has moved and is about to look again."""

    def progressed(self, progress: Progress, /) -> None:
        self.seen.append(progress)
        if progress.stage is Stage.VERIFY:
            self.then()


def counted(numa_node: int, name: str) -> int:
    """A counter of one NUMA node, with what its CPUs have not handed in yet."""
    Path("/proc/sys/vm/stat_refresh").write_text("1")
    lines = (NUMA_NODES / f"node{numa_node}/vmstat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[0] == name)


def status_kib(pid: int, name: str) -> int:
    """A number of /proc/PID/status, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
