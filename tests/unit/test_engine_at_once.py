# SPDX-License-Identifier: Apache-2.0
"""Several runs at once on one host, and a host that has no thread left."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from numaplacement.engine import surveyor
from numaplacement.engine.errors import EngineError
from numaplacement.engine.ledger import Ledger
from numaplacement.engine.reasons import Reason
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Outcome, Progress, Request, Stage, Verdict
from tests.unit.engine_world import MIB, PID, Recorder, Region, SimulatedKernel, World, run_in, see_that_sums_close
from tests.unit.engine_world_region import PAGE

HEAP = 0x7F0000000000
PAGES = 1024
LIMIT = 60


class Holding(Recorder):
    """A watcher that waits once its run has reserved what it needs."""

    def __init__(self, reserved: threading.Barrier, going: threading.Event) -> None:
        super().__init__()
        self.reserved, self.going = reserved, going

    def progressed(self, progress: Progress, /) -> None:
        super().progressed(progress)
        if progress.stage is Stage.THREADS:
            self.reserved.wait(LIMIT)
            assert self.going.wait(LIMIT)


def process(host: World) -> World:
    """One more process on a host."""
    return World([Region(HEAP, [1] * PAGES)], safe=host.safe, lock=host.lock)


def move(world: World, root: Path, ledger: Ledger, watcher: Recorder, *, dry_run: bool = False) -> Verdict:
    root.mkdir()
    request = Request(target=0, movers=3, dry_run=dry_run)
    verdict = run(
        pid=PID,
        request=request,
        kernel=SimulatedKernel(world, root),
        watcher=watcher,
        clock=lambda: world.now,
        ledger=ledger,
    )
    see_that_sums_close(verdict, request)
    return verdict


@pytest.mark.parametrize("shared", ["one process", "two processes"])
def test_two_runs_for_one_target_place_and_a_third_waits_for_room(tmp_path: Path, shared: str) -> None:
    host = World([], safe={0: 5 * PAGES // 2 * PAGE, 1: 1 << 30})
    directory = tmp_path / "ledger" if shared == "two processes" else None
    ledgers = [Ledger(directory) for _ in range(3)] if directory else [Ledger(None)] * 3
    first, second, third = (process(host) for _ in range(3))
    reserved, going = threading.Barrier(3), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(move, world, tmp_path / name, ledger, Holding(reserved, going))
            for world, name, ledger in ((first, "first", ledgers[0]), (second, "second", ledgers[1]))
        ]
        reserved.wait(LIMIT)
        planned = move(third, tmp_path / "planned", ledgers[2], Recorder(), dry_run=True)
        refused = move(third, tmp_path / "third", ledgers[2], Recorder())
        going.set()
        placed = [each.result(LIMIT) for each in runs]
    assert [(verdict.outcome, verdict.on_target) for verdict in placed] == [(Outcome.PLACED, PAGES * PAGE)] * 2
    assert refused.outcome is Outcome.REFUSED
    assert [refusal.reason for refusal in refused.refusals] == [Reason.DESTINATION_FULL]
    assert f"{2 * PAGES * PAGE / MIB:.1f} MiB of that is reserved by other moves" in refused.message
    assert (planned.outcome, planned.message) == (refused.outcome, refused.message)
    assert third.calls == []
    assert host.safe[0] == PAGES // 2 * PAGE
    host.safe[0] += PAGES * PAGE  # the first process ends
    assert move(third, tmp_path / "again", ledgers[2], Recorder()).outcome is Outcome.PLACED
    assert host.safe[0] == PAGES // 2 * PAGE


def test_a_dry_run_reserves_nothing(tmp_path: Path) -> None:
    world = World([Region(HEAP, [1] * PAGES)], safe={0: 2 * PAGES * PAGE, 1: 1 << 30})
    ledger = Ledger(tmp_path / "ledger", make=False)
    assert move(world, tmp_path / "planned", ledger, Recorder(), dry_run=True).outcome is Outcome.PLANNED
    assert (ledger.note, dict(ledger.held_by_others())) == ("", {})
    assert not (tmp_path / "ledger").exists()
    assert world.calls == []


def test_movers_do_not_race(tmp_path: Path) -> None:
    world = World([Region(HEAP + number * 64 * MIB, [1, 2, 3] * 700, refused={5, 99}) for number in range(3)])
    verdict = run_in(world, tmp_path, movers=3)
    assert verdict.on_target == world.bytes_on()[0] == 3 * (2100 - 2) * PAGE
    assert world.safe[0] == (1 << 30) - world.bytes_on()[0]


def test_without_a_thread_to_be_had_it_goes_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    world = World([Region(HEAP, [1] * PAGES, hidden={3, 4})])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        verdict = run_in(world, tmp_path, movers=3)
    assert {row.reason: row.bytes for row in verdict.residue} == {Reason.HIDDEN_BY_NUMA_HINT: 2 * PAGE}
    assert verdict.moved == (PAGES - 2) * PAGE


def test_without_memory_for_itself_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(surveyor, "parse_smaps", none)
    with pytest.raises(EngineError, match="allow it more"):
        run_in(World([Region(HEAP, [1] * 4)]), tmp_path)
