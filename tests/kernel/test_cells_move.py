# SPDX-License-Identifier: Apache-2.0
"""A guest of two cells is moved while it writes to both: each cell to a NUMA node of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.process import read_process
from numaplacement.engine.reasons import NOT_ASKED, Reason
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Outcome, Request
from tests.kernel.memory_process import MIB, PAGE, wait_for
from tests.kernel.test_cells import SIZE, Guest, affinities, backend, guest
from tests.kernel.test_engine_move import SLOW, Watch, asked_residue, residue
from tests.rig import vm_rom
from tests.rig.vm_memory import numa_pages
from tests.rig.vm_monitor import qmp
from tests.rig.vm_placement import let_run_anywhere, spread

__all__ = ["guest"]
pytestmark = pytest.mark.usefixtures("autonuma_off")
BEGIN = {0: (1, 2), 1: (2, 3, 0)}
CELLS = {0: 3, 1: 0}


def test_each_cell_goes_to_its_numa_node_while_the_guest_writes(guest: Callable[..., Guest], tmp_path: Path) -> None:
    rom = tmp_path / "rom.bin"
    rom.write_bytes(vm_rom.build(ram_size=2 * SIZE, one_tick_in=4, stride=PAGE))
    vm = guest(*(backend("ram", cell, prealloc=True) for cell in CELLS), more=["-bios", rom])
    addresses = {cell: address for address, cell in vm.memory_of_cells().items()}
    let_run_anywhere(vm.pid)
    for cell, numa_nodes in BEGIN.items():
        spread(vm.pid, addresses[cell], SIZE, numa_nodes=numa_nodes, page_size=PAGE)
        assert set(numa_pages(vm.pid, addresses[cell])) == set(numa_nodes)

    def number(at: int) -> int:
        with Path(f"/proc/{vm.pid}/mem").open("rb", buffering=0) as memory:
            return int.from_bytes(os.pread(memory.fileno(), 4, addresses[0] + at), "little")

    qmp(vm.monitor, "cont", {})
    wait_for(lambda: number(vm_rom.PASSES_ADDRESS) > 0)

    request = Request(cells=CELLS, call_latency=SLOW)
    verdict = run(pid=vm.pid, request=request, kernel=Kernel(), watcher=Watch())

    assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {}), verdict
    assert {cell: numa_pages(vm.pid, addresses[cell]) for cell in CELLS} == {
        cell: {numa_node: SIZE // PAGE} for cell, numa_node in CELLS.items()
    }
    before, after = (sum(row.bytes for row in rows) for rows in (verdict.before, verdict.after))
    assert before - verdict.freed + verdict.grown == after
    assert verdict.on_target + sum(residue(verdict).values()) == after
    assert verdict.on_target == verdict.asked == 2 * SIZE
    assert residue(verdict)[Reason.NO_CELL] >= MIB
    assert set(residue(verdict)) <= NOT_ASKED

    now = affinities(vm.pid)
    vcpus = {thread.thread_id: thread.vcpu for thread in read_process(vm.pid, Kernel()).threads if thread.is_vcpu}
    assert sorted(vcpus.values()) == [0, 1]
    for thread, cpus in now.items():
        assert cpus == ({CELLS[vcpus[thread]]} if thread in vcpus else set(CELLS.values()))

    passes = number(vm_rom.PASSES_ADDRESS)
    wait_for(lambda: number(vm_rom.PASSES_ADDRESS) > passes + 1)
    assert number(vm_rom.ERRORS_ADDRESS) == 0
    assert numa_pages(vm.pid, addresses[0]) == {3: SIZE // PAGE}
