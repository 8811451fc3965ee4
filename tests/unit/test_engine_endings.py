# SPDX-License-Identifier: Apache-2.0
"""How a run goes on, or not, where something is full, refused, busy or stopped half way."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from numaplacement.engine.guard import Guard
from numaplacement.engine.ledger import Ledger
from numaplacement.engine.mover import Memory
from numaplacement.engine.process import hold
from numaplacement.engine.reasons import Reason
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Allow, Outcome, Progress, Request, Stage
from numaplacement.engine.watchdog import Watchdog
from tests.unit.engine_world import MIB, PAGE, PID, Recorder, Region, SimulatedKernel, World, run_in
from tests.unit.engine_world_host import with_page_cache, with_pools
from tests.unit.engine_world_region import HUGE
from tests.unit.test_engine_run import HEAP, heap, residue

RAM = HEAP + 64 * MIB
LIMIT = 20.0


class CancelsInPass(Recorder):
    """Cancels when the given pass has come to its first call."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def cancelled(self) -> bool:
        return any(progress.pass_number >= self.number for progress in self.heard)


def test_what_a_pass_has_learned_is_still_known_where_the_next_is_cancelled(tmp_path: Path) -> None:
    world = World([heap(refused={0, 700, 701})])
    verdict = run_in(world, tmp_path, CancelsInPass(1))
    assert verdict.outcome is Outcome.CANCELLED
    learned = World([heap(refused={0, 700, 701})])
    watcher = Recorder()
    watcher.cancelled = lambda: any(each.stage is Stage.VERIFY for each in watcher.heard)  # type: ignore[method-assign]
    verdict = run_in(learned, tmp_path / "learned", watcher)
    assert residue(verdict) == {Reason.EXTRA_REFERENCE: 3 * PAGE}


def test_a_mapping_given_up_is_not_called_cancelled(tmp_path: Path) -> None:
    watcher = Recorder()
    watcher.cancelled = lambda: any(each.stage is Stage.VERIFY for each in watcher.heard)  # type: ignore[method-assign]
    world = World([heap(refused=set(range(3072))), Region(RAM, [2] * 600, busy={5})])
    rows = residue(run_in(world, tmp_path, watcher))
    assert set(rows) == {Reason.EXTRA_REFERENCE, Reason.NOT_ATTEMPTED, Reason.CANCELLED}
    assert rows[Reason.CANCELLED] == PAGE


def test_a_full_numa_node_keeps_nothing_from_going_to_a_pool(tmp_path: Path) -> None:
    world = World([heap(), Region(RAM, [1] * 8, page_size=HUGE)])
    with_pools(world, node0=(20, 20), node1=(8, 0))
    world.hooks[1] = lambda: world.safe.update({0: MIB})
    verdict = run_in(world, tmp_path)
    assert world.regions[1].nodes == [0] * 8
    assert set(residue(verdict)) == {Reason.DESTINATION_FULL}
    assert residue(verdict)[Reason.DESTINATION_FULL] == 11 * MIB


def test_a_full_pool_is_told_apart_from_a_full_numa_node(tmp_path: Path) -> None:
    world = World([heap(), Region(RAM, [1] * 8, page_size=HUGE)])
    with_pools(world, node0=(20, 20), node1=(8, 0))

    def fill() -> None:
        world.pools[0][1] = 3
        world.safe[0] = 4 * MIB

    world.hooks[1] = fill
    verdict = run_in(world, tmp_path)
    assert residue(verdict) == {Reason.DESTINATION_FULL: 8 * MIB, Reason.HUGEPAGE_POOL: 5 * HUGE}
    evidence = {row.reason: row.evidence for row in verdict.residue}
    assert "in the pool of NUMA node 0" in evidence[Reason.HUGEPAGE_POOL]
    assert "on NUMA node 0 without making others" in evidence[Reason.DESTINATION_FULL]


def test_a_chunk_greater_than_the_room_is_cut_to_it(tmp_path: Path) -> None:
    world = World([Region(HEAP, [1] * 16384)], speed=1e12)
    for call in range(1, 2000):
        world.hooks[call] = lambda: world.safe.update({0: max(world.safe[0], 300 * PAGE)})
    world.safe[0] = 16384 * PAGE
    world.hooks[1] = lambda: world.safe.update({0: 300 * PAGE})
    verdict = run_in(world, tmp_path, call_latency=60.0)
    assert verdict.outcome is Outcome.PLACED
    assert not world.overdrawn


def test_page_cache_that_comes_back_meanwhile_is_pushed_out_again(tmp_path: Path) -> None:
    """As whoever reads files on the target does; what the move needs is had from what that left."""
    world = World([heap()], safe=dict.fromkeys(range(4), 1 << 30) | {0: 4 * MIB})
    with_page_cache(world, 0, 256 * MIB)
    world.hooks[3] = lambda: world.safe.update({0: 0})
    verdict = run_in(world, tmp_path, allow=frozenset({Allow.RECLAIM}))
    assert verdict.outcome is Outcome.PLACED


def test_page_cache_that_is_not_to_be_had_again_leaves_the_rest_where_it_is(tmp_path: Path) -> None:
    world = World([heap()], safe=dict.fromkeys(range(4), 1 << 30) | {0: 4 * MIB})
    with_page_cache(world, 0, 64 * MIB)

    def taken() -> None:
        with_page_cache(world, 0, 0)
        world.safe[0] = 0

    world.hooks[3] = taken
    verdict = run_in(world, tmp_path, allow=frozenset({Allow.RECLAIM}))
    assert verdict.outcome is Outcome.RESIDUE
    assert set(residue(verdict)) == {Reason.DESTINATION_FULL}


def test_busy_pages_are_tried_again_after_a_while(tmp_path: Path) -> None:
    region = Region(HEAP, [1] * 4, busy={0, 1, 2, 3})
    world = World([region])
    world.hooks[2] = region.busy.clear
    verdict = run_in(world, tmp_path)
    assert verdict.outcome is Outcome.PLACED
    assert 0.1 < world.slept < 2


def test_what_stays_busy_is_not_tried_for_ever(tmp_path: Path) -> None:
    world = World([Region(HEAP, [1] * 4, busy={0, 1, 2, 3})])
    verdict = run_in(world, tmp_path)
    assert residue(verdict) == {Reason.BUSY: 4 * PAGE}
    assert verdict.passes <= 4


def test_threads_stay_where_most_of_the_memory_is_though_nothing_moved(tmp_path: Path) -> None:
    world = World([Region(HEAP, [0] * 1000 + [1], refused={1000})])
    verdict = run_in(world, tmp_path)
    assert (verdict.moved, verdict.outcome) == (0, Outcome.RESIDUE)
    assert world.affinity[PID] == {0, 1}
    away = World([Region(HEAP, [1] * 3 + [0], refused={0, 1, 2})])
    assert run_in(away, tmp_path / "away").moved == 0
    assert away.affinity[PID] == set(range(8))


def test_threads_are_put_back_whatever_breaks_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    world = World([heap()])
    monkeypatch.setattr("numaplacement.engine.mover.Mover.run", broken)
    with pytest.raises(KeyboardInterrupt):
        run_in(world, tmp_path)
    assert world.affinity[PID] == set(range(8))


def test_progress_never_runs_backwards(tmp_path: Path) -> None:
    watcher = Recorder()
    world = World([heap()])
    world.hooks[5] = lambda: world.regions.append(Region(RAM, [2] * 900))
    verdict = run_in(world, tmp_path, watcher)
    assert verdict.passes > 1
    done = [progress.bytes_done for progress in watcher.heard if progress.stage is Stage.MOVE]
    assert done == sorted(done)
    assert all(progress.bytes_done <= progress.bytes_total for progress in watcher.heard if progress.bytes_total)


def test_a_first_call_that_hangs_is_told(tmp_path: Path) -> None:
    watcher = Recorder()
    with hold(PID, SimulatedKernel(World([heap()]), tmp_path), None) as process:
        guard = Guard(process=process, watcher=watcher, clock=lambda: 0.0, deadline_at=1.0)
        guard.begin(Progress(stage=Stage.MOVE, bytes_total=5))
        told = threading.Event()
        watcher.progressed = lambda progress: (watcher.heard.append(progress), told.set())  # type: ignore[assignment]
        guard.watchdog = Watchdog(tell=guard._tell_long, clock=_ticking(), limit=0.01)
        with guard.watchdog, guard.watchdog.call("a kernel call over 7 pages"):
            assert told.wait(LIMIT)
    assert watcher.heard[-1].stage is Stage.MOVE
    assert watcher.heard[-1].bytes_total == 5
    assert "a kernel call over 7 pages has lasted" in watcher.heard[-1].waiting


def _ticking():
    now = [0.0]

    def clock() -> float:
        now[0] += 20.0
        return now[0]

    return clock


def test_refusals_are_noted_while_others_look() -> None:
    memory = Memory()
    wrong: list[Exception] = []
    over = threading.Event()

    def look() -> None:
        try:
            while not over.is_set():
                memory.refused_folios(1)
        except RuntimeError as error:
            wrong.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(300):
        memory.note_refused(np.arange(number * 100, number * 100 + 100, dtype=np.uint64))
    over.set()
    reader.join()
    assert not wrong
    assert memory.refused_folios(1).size == 30_000


def test_a_pool_that_could_not_be_given_back_is_told_of_a_process_that_ended(tmp_path: Path) -> None:
    world = World([Region(HEAP, [1] * 4), Region(RAM, [1] * 4, page_size=HUGE)])
    with_pools(world, node0=(0, 0), node1=(6, 2))
    write = world.writes["sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"]
    raised: list[str] = []

    def once(text: str) -> None:
        if raised:
            raise OSError(5, "Input/output error")
        raised.append(text)
        write(text)

    world.writes["sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"] = once
    world.hooks[1] = lambda: setattr(world, "ended", True)
    ledger = Ledger(None)
    verdict = run(
        pid=PID,
        request=Request(target=0, movers=1, allow=frozenset({Allow.GROW_HUGE_PAGES})),
        kernel=SimulatedKernel(world, tmp_path),
        watcher=Recorder(),
        clock=lambda: world.now,
        ledger=ledger,
    )
    assert verdict.outcome is Outcome.PROCESS_GONE
    assert any(note.reason is Reason.HUGEPAGE_POOL for note in verdict.notes), verdict.notes


def test_a_page_that_is_let_go_of_within_the_rest_is_moved(tmp_path: Path) -> None:
    """As what KVM holds while it maps a page for a vCPU; all else of the process moves at the first try."""
    region = Region(HEAP, [1] * 64, refused={5})
    world = World([region])
    kernel = SimulatedKernel(world, tmp_path)
    rested: list[float] = []

    def sleep(seconds: float) -> None:
        rested.append(seconds)
        world.now += seconds
        region.refused.clear()

    kernel.sleep = sleep  # type: ignore[method-assign]
    request = Request(target=0, movers=1)
    verdict = run(pid=PID, request=request, kernel=kernel, watcher=Recorder(), clock=lambda: world.now)
    assert rested
    assert (verdict.outcome, verdict.on_target) == (Outcome.PLACED, 64 * PAGE)


def test_a_page_that_takes_seconds_of_the_bandwidth_moves_once_they_are_over(tmp_path: Path) -> None:
    world = World([Region(RAM, [1] * 3, page_size=HUGE)])
    with_pools(world, node0=(3, 3), node1=(3, 0))
    verdict = run_in(world, tmp_path, bandwidth=MIB // 2, deadline=60.0)
    assert (verdict.outcome, len(world.calls)) == (Outcome.PLACED, 3)
