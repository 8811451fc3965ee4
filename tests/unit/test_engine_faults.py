# SPDX-License-Identifier: Apache-2.0
"""Every call of the kernel fails, one at a time, with all its man page names: it ends in a verdict or a sentence."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from numaplacement.engine.errors import EngineError
from numaplacement.engine.ledger import Ledger, Place, Reservation
from numaplacement.engine.run import run
from numaplacement.engine.staying import with_stay
from numaplacement.engine.verdict import Allow, Outcome, Request, Verdict
from tests.unit.engine_world import MIB, PAGE, PID, Recorder, Region, SimulatedKernel, World, see_that_sums_close
from tests.unit.engine_world_faults import ERRORS, Fault, Faults, method_of, put_faults, put_faults_in_files
from tests.unit.engine_world_host import with_blocks, with_cgroup, with_more_evidence, with_page_cache, with_pools
from tests.unit.engine_world_region import HUGE, PER_HUGE

HEAP = 0x7F0000000000
RAM = HEAP + 64 * MIB
Scene = tuple[Callable[[], World], dict[str, Any]]


def plain() -> World:
    ram = Region(
        RAM, [1] * 24 + [2] * 8 + [-1] * 4, shared={3, 4}, refused={5}, busy={6}, hidden={7, 8}, swapped={33, 34}
    )
    world = World([Region(HEAP, [1] * 4 + [-1, 0]), ram])
    with_more_evidence(world)
    with_blocks(world)
    with_cgroup(world, mems="0-3")
    return world


def huge() -> World:
    ram = Region(RAM, [1] * 2 * PER_HUGE, whole={0, PER_HUGE}, fragile={PER_HUGE})
    world = World([ram])
    with_more_evidence(world)
    with_blocks(world)
    return world


def fragmented() -> World:
    world = huge()
    with_blocks(world, fragmented=True)
    return world


def pools() -> World:
    world = World([Region(HEAP, [1] * 4), Region(RAM, [1] * 4, page_size=HUGE)])
    with_pools(world, node0=(1, 1), node1=(6, 2))
    return world


def bound() -> World:
    world = plain()
    world.mems, world.regions[0].nodes[-1] = "1-3", -1
    return world


def full() -> World:
    world = World([Region(HEAP, [1] * 64)], safe={0: 32 * 4096, 1: 1 << 30, 2: 1 << 30, 3: 1 << 30})
    with_page_cache(world, 0, 64 * MIB)
    return world


def cells() -> World:
    world = World([Region(HEAP, [0] * 4, path="[heap]"), Region(RAM, [1] * 512, flags="rd wr mr mw me ac dc")])
    memory = "-m\x002\0-object\0memory-backend-ram,id=m0,size=2M\0"
    world.command_line = f"/usr/bin/qemu-system-x86_64\0{memory}-numa\0node,nodeid=0,memdev=m0\0"
    with_more_evidence(world)
    return world


SCENES: dict[str, Scene] = {
    "plain": (plain, {}),
    "dry run": (plain, {"dry_run": True}),
    "threads left": (plain, {"follow_threads": False, "allow": frozenset({Allow.REALTIME, Allow.PINNED_PART})}),
    "huge pages": (huge, {}),
    "compaction": (fragmented, {}),
    "pools": (pools, {"allow": frozenset({Allow.GROW_HUGE_PAGES})}),
    "pools as they are": (pools, {}),
    "cpuset": (bound, {"allow": frozenset({Allow.REBIND_CPUSET})}),
    "bindings": (plain, {"allow": frozenset({Allow.REBIND_CPUSET, Allow.STRICT_BINDING})}),
    "page cache": (full, {"allow": frozenset({Allow.RECLAIM})}),
    "cells": (cells, {"target": None, "cells": {0: 0}}),
}


@dataclass
class Trial:
    """One run with one fault, and what there was before and after."""

    world: World
    faults: Faults
    verdict: Verdict | None = None
    refused: str = ""

    @property
    def pages_of_pools(self) -> int:
        return sum(total for total, _ in self.world.pools.values())


def attempt(scene: Scene, root: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None) -> Trial:
    """Run the engine, and look afterwards whether memory stayed; let nothing escape but EngineError."""
    make, wish = scene
    trial = Trial(world=make(), faults=Faults(fault))
    world = trial.world
    root.mkdir()
    kernel = SimulatedKernel(world, root)
    put_faults(kernel, trial.faults)
    request = Request(**{"target": 0, "movers": 1, **wish})
    pages, mems, threads = trial.pages_of_pools, world.mems, {**world.affinity}
    with closing(Ledger(root / "ledger")) as others, monkeypatch.context() as patched:
        elsewhere = others.reserve({Place(3, 0): PAGE}, lambda _: PAGE)
        assert isinstance(elsewhere, Reservation)
        put_faults_in_files(patched, trial.faults)
        try:
            more: dict[str, Any] = {"kernel": kernel, "watcher": Recorder(), "clock": lambda: world.now}
            with closing(Ledger(root / "ledger")) as ledger:
                trial.verdict = run(pid=PID, request=request, ledger=ledger, **more)
            trial.verdict = with_stay(trial.verdict, pid=PID, request=request, **more)
        except EngineError as error:
            trial.refused = str(error)
        elsewhere.release()
    assert not [name for name in open_files() if name.startswith(str(root))], "a file is left open"
    assert trial.verdict is not None or trial.refused
    verdict = trial.verdict
    if fault is not None and fault.site == "open_pidfd" and fault.number == errno.ESRCH:
        return trial  # nothing else tells of a process that ended before it was held
    assert verdict is None or verdict.outcome is not Outcome.PROCESS_GONE, "it lives"
    if verdict is not None:
        if request.target is not None:
            see_that_sums_close(verdict, request)
        assert verdict.message
        assert all(row.evidence and row.remedy for row in (*verdict.residue, *verdict.notes, *verdict.refusals))
    see_the_truth(world, verdict)
    with closing(Ledger(root / "ledger")) as ledger:
        assert sum(ledger.held_by_others().values()) == 0, "a reservation is left"
    assert world.opened == 0, "a pidfd is left"
    told = {note.reason.value for note in verdict.notes} if verdict else set()
    broken = fault is not None and fault.lasting
    assert trial.pages_of_pools == pages or broken or "hugepage-pool" in told or "was raised by" in trial.refused, (
        "a pool is left raised"
    )
    if not (any(world.calls) if verdict is None else verdict.moved):
        kept = "vm-cpuset" in told or "stays widened" in trial.refused  # something was read back from swap already
        assert world.mems == mems or broken or kept, "a cpuset is left widened"
        assert world.affinity == threads or broken, "threads are left elsewhere"
    return trial


def open_files() -> list[str]:
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one of this very listing
            names.append(str(descriptor.readlink()))
    return names


def see_the_truth(world: World, verdict: Verdict | None) -> None:
    """See that the last word on where memory is agrees with where it is."""
    if verdict is None:
        return
    said = Counter[int]()
    for row in verdict.after:
        said[row.numa_node] += row.bytes
    said.pop(-1, None)
    assert dict(said) == world.bytes_on()


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_without_a_fault_goes_all_its_way(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = attempt(SCENES[name], tmp_path / "run", monkeypatch, None)
    assert trial.verdict is not None
    assert trial.verdict.outcome in {Outcome.PLACED, Outcome.RESIDUE, Outcome.PLANNED, Outcome.REFUSED}


def failures(scene: Scene, root: Path, monkeypatch: pytest.MonkeyPatch, faults: Iterable[Fault]) -> str:
    """Return what is wrong with each of many runs."""
    found = []
    threads = threading.active_count()
    for number, fault in enumerate(faults):
        try:
            attempt(scene, root / str(number), monkeypatch, fault)
        except Exception as error:  # noqa: BLE001 - all of them are told at once
            found.append(f"{fault}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
    assert threading.active_count() == threads
    return "\n".join(found)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The calls each scene makes that no earlier scene does."""
    found: dict[str, set[str]] = {}
    known: set[str] = set()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, scene in SCENES.items():
            calls = set(attempt(scene, tmp_path_factory.mktemp("sites") / "run", monkeypatch, None).faults.counts)
            found[name] = calls - known
            known |= calls
    return found


def test_no_call_is_left_out(sites: dict[str, set[str]]) -> None:
    seen = set[str]().union(*sites.values())
    assert {method_of(site) for site in seen} == set(ERRORS)
    writes = {site.rpartition("/")[2] for site in seen if site.startswith("write ")}
    assert writes >= {"compact", "nr_hugepages", "cpuset.mems", "reclaim", "stat_refresh"}


@pytest.mark.parametrize("name", SCENES)
def test_every_call_fails_with_every_errno(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sites: dict[str, set[str]]
) -> None:
    """All the man page names at calls that no earlier scene makes, and one at each of the others."""
    faults = attempt(SCENES[name], tmp_path / "clean", monkeypatch, None).faults
    every = [fault for fault in faults.each_errno() if fault.site in sites[name]]
    assert failures(SCENES[name], tmp_path, monkeypatch, every) == ""


@pytest.mark.parametrize("name", SCENES)
def test_every_call_of_a_scene_fails_with_an_errno(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = attempt(SCENES[name], tmp_path / "clean", monkeypatch, None).faults
    assert failures(SCENES[name], tmp_path, monkeypatch, faults.some()) == ""
