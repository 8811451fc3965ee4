# SPDX-License-Identifier: Apache-2.0
"""Whether memory stayed since the verdict: what comes back before anybody looks counts as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.run import run
from numaplacement.engine.staying import with_stay
from numaplacement.engine.verdict import Outcome, Request, Verdict
from tests.unit.engine_world import MIB, PAGE, PID, Recorder, Region, SimulatedKernel, World

HEAP = 0x7F0000000000
TEXT = HEAP + 64 * MIB
VCPU = HEAP + 128 * MIB
ONE_CELL = "qemu\0-m\x0012\0-object\0memory-backend-ram,id=ram0,size=12M\0-numa\0node,nodeid=0,memdev=ram0\0"
RAM_FLAGS = "rd wr mr mw me ac dc"
TEXT_FACTS: dict[str, Any] = {"path": "/usr/lib/libc.so.6", "permissions": "r-xp", "file": True}
VCPU_FACTS: dict[str, Any] = {"path": "anon_inode:kvm-vcpu:0", "permissions": "rw-s", "file": True}


def looked_at(
    world: World, root: Path, *, meanwhile: Callable[[], None] = lambda: None, **wish: object
) -> tuple[Verdict, Verdict]:
    """Move, have something happen, and look: the verdict before the look and after it."""
    request = Request(**{"target": 0, "movers": 1, **wish})  # type: ignore[arg-type]
    more: dict[str, Any] = {
        "pid": PID,
        "request": request,
        "kernel": SimulatedKernel(world, root),
        "watcher": Recorder(),
        "clock": lambda: world.now,
    }
    verdict = run(**more)
    assert verdict.outcome is Outcome.PLACED
    meanwhile()
    return verdict, with_stay(verdict, **more)


def back(region: Region, pages: int, numa_node: int = 1) -> Callable[[], None]:
    return lambda: region.nodes.__setitem__(slice(pages), [numa_node] * pages)


@pytest.mark.parametrize("balancing", ["0\n", "1\n"])
def test_what_came_back_before_the_look_began_did_not_stay(tmp_path: Path, balancing: str) -> None:
    ram = Region(HEAP, [1] * 3072)
    world = World([ram], texts={"proc/sys/kernel/numa_balancing": lambda: balancing})
    verdict, seen = looked_at(world, tmp_path, meanwhile=back(ram, 3072))
    assert seen.stayed is False
    assert seen.outcome is Outcome.PLACED
    assert seen.message.startswith(f"{verdict.message}; it did not stay: 12.0 MiB more on NUMA node 1")
    [note] = [note for note in seen.notes if note.reason is Reason.MOVED_BACK]
    assert (note.numa_node, note.bytes) == (1, 12 * MIB)


def test_nothing_that_was_off_target_at_the_verdict_came_back(tmp_path: Path) -> None:
    regions = [
        Region(HEAP, [1] * 3072, refused=set(range(3000, 3030))),
        Region(TEXT, [2] * 600, shared=set(range(600)), **TEXT_FACTS),
        Region(VCPU, [3] * 300, **VCPU_FACTS),
    ]
    verdict, seen = looked_at(World(regions), tmp_path, tolerance_share=0.01)
    assert {row.reason for row in verdict.residue} == {
        Reason.EXTRA_REFERENCE, Reason.SHARED_FILE, Reason.UNMIGRATABLE_MAPPING,
    }  # fmt: skip
    assert seen.stayed is True
    assert seen.message == f"{verdict.message}; it stayed: nothing came back; AutoNUMA is off"


def test_what_was_not_asked_does_not_hide_what_came_back(tmp_path: Path) -> None:
    ram, vcpu = Region(HEAP, [1] * 3072), Region(VCPU, [3] * 2000, **VCPU_FACTS)

    def meanwhile() -> None:
        back(ram, 1000, numa_node=3)()
        vcpu.nodes[:] = [-1] * 2000

    _, seen = looked_at(World([ram, vcpu]), tmp_path, meanwhile=meanwhile)
    assert seen.stayed is False
    assert "3.9 MiB more on NUMA node 3" in seen.message


def test_only_the_memory_of_cells_is_looked_at(tmp_path: Path) -> None:
    ram, other = Region(HEAP, [1] * 3072, flags=RAM_FLAGS), Region(TEXT, [2] * 900)
    world = World([ram, other], command_line=ONE_CELL)
    _, seen = looked_at(world, tmp_path, target=None, cells={0: 3}, meanwhile=back(other, 900, numa_node=1))
    assert seen.stayed is True
    ram.nodes[:] = [1] * 3072
    _, seen = looked_at(world, tmp_path / "again", target=None, cells={0: 3}, meanwhile=back(ram, 1000, numa_node=2))
    assert seen.stayed is False


def test_a_mapping_that_is_split_while_it_is_looked_at_is_the_same_memory(tmp_path: Path) -> None:
    ram = Region(HEAP, [1] * 3072, flags=RAM_FLAGS)
    world, shown = World([ram], command_line=ONE_CELL), f"proc/{PID}/numa_maps"

    def split() -> str:
        parts = [Region(HEAP, ram.nodes[:1000]), Region(HEAP + 1000 * PAGE, ram.nodes[1000:])]
        return "".join(part.numa_maps() for part in parts)

    def meanwhile() -> None:
        shows = iter([ram.numa_maps])  # the first is for the policies, before smaps is read

        def show() -> str:
            return next(shows, split)()

        world.texts[shown] = show
        ram.nodes[2000:] = [2] * 1072

    _, seen = looked_at(world, tmp_path, target=None, cells={0: 3}, meanwhile=meanwhile)
    assert seen.stayed is False
    assert "4.2 MiB more on NUMA node 2" in seen.message


def test_where_cells_cannot_be_told_any_more_nobody_says_that_it_stayed(tmp_path: Path) -> None:
    ram = Region(HEAP, [1] * 3072, flags=RAM_FLAGS)
    world = World([ram], command_line=ONE_CELL)

    def meanwhile() -> None:
        ram.flags = "rd wr mr mw me ac"

    verdict, seen = looked_at(world, tmp_path, target=None, cells={0: 3}, meanwhile=meanwhile)
    assert (seen.stayed, seen.message) == (None, verdict.message)
    assert "could not be seen: which memory is which guest cell's" in seen.notes[-1].evidence
