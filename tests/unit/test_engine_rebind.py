# SPDX-License-Identifier: Apache-2.0
"""Binding the container after a move: what nobody asked about is not dragged along; the verdict is of afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Allow, Note, Outcome, Request, Verdict
from tests.unit.engine_world import MIB, PID, Recorder, Region, SimulatedKernel, World
from tests.unit.engine_world_host import HUGE, PAGE, with_cgroup, with_more_evidence, with_pools

LOW, HIGH, OWN = 0x7F0000000000, 0x7F1000000000, 0x7F2000000000
ALLOW = frozenset({Allow.REBIND_CPUSET, Allow.STRICT_BINDING})
BEYOND = 64 * MIB // PAGE + 1
"""Pages that are one too many to be moved by a write to cpuset.mems."""


def guest(*, mems: str = "0-3", own: list[int] | None = None) -> World:
    """A guest of two cells in pages of pools, bound to NUMA nodes 1 and 2, and memory of QEMU itself."""
    cells = [
        Region(
            start, [node] * pages, path="/memfd:memory-backend-memfd (deleted)", permissions="rw-s", file=True,
            page_size=HUGE, policy=f"bind:{node}", flags="rd wr sh mr mw me ms dc de",
        )
        for start, node, pages in ((LOW, 1, 2), (HIGH, 2, 3))
    ]  # fmt: skip
    world = World([*cells, *([Region(OWN, own, path="[heap]")] if own else [])])
    backends = "".join(
        f"-object\0memory-backend-memfd,id=m{cell},hugetlb=on,hugetlbsize=2M,size={size}M,host-nodes={node},policy=bind"
        f"\0-numa\0node,nodeid={cell},cpus={cell},memdev=m{cell}\0"
        for cell, node, size in ((0, 1, 4), (1, 2, 6))
    )
    world.command_line = f"/usr/bin/qemu-system-x86_64\0-smp\x002\0{backends}"
    with_more_evidence(world)
    with_pools(world, node0=(8, 8), node1=(2, 0), node2=(3, 0))
    with_cgroup(world, mems=mems)
    return world


def move(world: World, root: Path, cells: dict[int, int] | None = None, *, dry_run: bool = False) -> Verdict:
    """Move with the cpuset allowed to be written, and see that the verdict closes and is of how things are now."""
    verdict = run(
        pid=PID,
        request=Request(target=None if cells else 0, cells=cells or {}, movers=1, allow=ALLOW, dry_run=dry_run),
        kernel=SimulatedKernel(world, root),
        watcher=Recorder(),
        clock=lambda: world.now,
    )
    said: dict[int, int] = {}
    for row in verdict.after:
        said[row.numa_node] = said.get(row.numa_node, 0) + row.bytes
    assert said == world.bytes_on()
    assert verdict.on_target + sum(row.bytes for row in verdict.residue) == sum(said.values())
    return verdict


def of_cpuset(verdict: Verdict) -> list[Note]:
    return [note for note in verdict.notes if note.reason is Reason.VM_CPUSET]


def test_a_cell_nothing_was_asked_of_stays_and_the_cpuset_is_left_alone(tmp_path: Path) -> None:
    world = guest()
    verdict = move(world, tmp_path, cells={0: 0})
    assert verdict.outcome is Outcome.PLACED
    assert world.mems == "0-3"
    assert world.bytes_on() == {0: 2 * HUGE, 2: 3 * HUGE}
    (note,) = of_cpuset(verdict)
    assert note.evidence.startswith("nothing is asked of guest cell 1: the kernel would move that memory")
    assert note.remedy


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_move_that_needs_the_cpuset_is_refused_where_cells_are_left_out(tmp_path: Path, dry_run: bool) -> None:
    world = guest(mems="1-2")
    verdict = move(world, tmp_path, cells={1: 0}, dry_run=dry_run)
    assert verdict.outcome is Outcome.REFUSED
    assert "nothing is asked of guest cell 0" in verdict.message
    assert (world.mems, world.calls) == ("1-2", [])
    assert world.bytes_on() == {1: 2 * HUGE, 2: 3 * HUGE}


def test_a_dry_run_writes_no_cpuset(tmp_path: Path) -> None:
    world = guest(mems="1-2")
    assert move(world, tmp_path, cells={0: 0, 1: 0}, dry_run=True).outcome is Outcome.PLANNED
    assert world.mems == "1-2"


@pytest.mark.parametrize("mems", ["0-3", "1-2"])
def test_all_cells_asked_what_is_left_of_the_vm_goes_along_and_is_told_where_it_is(tmp_path: Path, mems: str) -> None:
    world = guest(mems=mems, own=[2] * 40)
    verdict = move(world, tmp_path, cells={0: 0, 1: 0})
    assert verdict.outcome is Outcome.PLACED
    assert world.mems == "0"
    assert world.bytes_on() == {0: 5 * HUGE + 40 * PAGE}
    assert [(row.reason, row.numa_node) for row in verdict.residue] == [(Reason.NO_CELL, 0)]
    assert of_cpuset(verdict) == []


def test_much_memory_that_nothing_was_asked_of_is_not_moved_in_one_call(tmp_path: Path) -> None:
    world = guest(own=[2] * BEYOND)
    verdict = move(world, tmp_path, cells={0: 0, 1: 0})
    assert verdict.outcome is Outcome.PLACED
    assert (world.mems, world.bytes_on()[2]) == ("0-3", BEYOND * PAGE)
    (note,) = of_cpuset(verdict)
    assert "64.0 MiB of the container are still off NUMA nodes 0" in note.evidence


def test_pages_that_found_no_place_in_the_pool_are_not_moved_behind_its_back(tmp_path: Path) -> None:
    heap = Region(LOW, [1] * (64 * MIB // PAGE))
    world = World([heap, Region(HIGH, [1] * 2, page_size=HUGE)])
    with_more_evidence(world)
    with_pools(world, node0=(3, 1), node1=(2, 0))
    with_cgroup(world, mems="0-3")
    verdict = move(world, tmp_path)
    assert (world.mems, world.pools) == ("0-3", {0: [3, 0], 1: [2, 1]})
    assert verdict.outcome is Outcome.RESIDUE
    (note,) = of_cpuset(verdict)
    assert note.evidence.startswith("2.0 MiB in pages of huge-page pools are still off NUMA nodes 0")
