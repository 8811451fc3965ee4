# SPDX-License-Identifier: Apache-2.0
"""Pools that are raised while other moves go on: never from memory those count on, nor given back from under them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from numaplacement.engine import ledger as ledger_module
from numaplacement.engine.errors import EngineError
from numaplacement.engine.ledger import Ledger, Place, Reservation
from numaplacement.engine.poolgrowth import GrownPools
from numaplacement.engine.reasons import Reason
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Allow, Outcome, Progress, Request, Stage, Verdict
from tests.unit.engine_world import MIB, PID, Recorder, Region, SimulatedKernel, World, see_that_sums_close
from tests.unit.engine_world_host import HUGE, NODE, PAGE, POOL, with_page_cache, with_pools
from tests.unit.test_engine_pools import Host

HEAP, RAM = 0x7F0000000000, 0x7F1000000000
GROW = frozenset({Allow.GROW_HUGE_PAGES})
POOL_0, POOL_1 = Place(0, HUGE), Place(1, HUGE)
LIMIT = 20
SIZE = f"{NODE}/node0/{POOL}/nr_hugepages"


class Holding(Recorder):
    """A watcher that waits once its run has reserved what it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.reserved, self.going = threading.Event(), threading.Event()

    def progressed(self, progress: Progress, /) -> None:
        super().progressed(progress)
        if progress.stage is Stage.THREADS:
            self.reserved.set()
            assert self.going.wait(LIMIT)


@pytest.fixture(params=["in files", "in one process"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(tmp_path / "ledger" if request.param == "in files" else None)) as made:
        yield made


def hugetlb(
    pages: int, *, room: int = 1 << 30, heap: int = 0, node0: tuple[int, int] = (0, 0), host: World | None = None
) -> World:
    """A process whose guest RAM is so many pages of a pool on NUMA node 1; `room` is what NUMA node 0 has."""
    world = World([*([Region(HEAP, [1] * heap)] if heap else []), Region(RAM, [1] * pages, page_size=HUGE)])
    if host is not None:
        world.safe, world.lock, world.pools, world.texts = host.safe, host.lock, host.pools, host.texts
        world.writes = host.writes
        world.pools[1][0] += pages
    else:
        world.safe[0] = room
        with_pools(world, node0=node0, node1=(pages, 0))
    return world


def move(world: World, root: Path, ledger: Ledger, watcher: Recorder | None = None, **wish: object) -> Verdict:
    root.mkdir()
    request = Request(**{"target": 0, "movers": 1, "allow": GROW, **wish})  # type: ignore[arg-type]
    verdict = run(
        pid=PID,
        request=request,
        kernel=SimulatedKernel(world, root),
        watcher=watcher or Recorder(),
        clock=lambda: world.now,
        ledger=ledger,
    )
    see_that_sums_close(verdict, request)
    return verdict


def held(ledger: Ledger, wanted: dict[Place, int]) -> Reservation:
    reservation = ledger.reserve(wanted, lambda _: 1 << 40)
    assert isinstance(reservation, Reservation)
    return reservation


def test_a_pool_is_not_raised_from_what_another_move_has_reserved(tmp_path: Path, ledger: Ledger) -> None:
    first = World([Region(HEAP, [1] * (32 * MIB // PAGE))], safe={0: 40 * MIB, 1: 1 << 30})
    with_pools(first, node0=(0, 0), node1=(0, 0))
    second, watcher = hugetlb(16, host=first), Holding()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(move, first, tmp_path / "first", ledger, watcher)
        assert watcher.reserved.wait(LIMIT)
        refused = move(second, tmp_path / "second", ledger)
        watcher.going.set()
        placed = running.result(LIMIT)
    assert (placed.outcome, placed.on_target) == (Outcome.PLACED, 32 * MIB)
    assert refused.outcome is Outcome.REFUSED
    assert [refusal.reason for refusal in refused.refusals] == [Reason.DESTINATION_FULL]
    assert "32.0 MiB of that is reserved by other moves; 32.0 MiB are needed" in refused.message
    assert (second.calls, second.pools[0]) == ([], [0, 0])
    assert first.safe[0] == 8 * MIB


def test_page_cache_that_may_be_pushed_out_does_not_make_room_for_a_pool(tmp_path: Path, ledger: Ledger) -> None:
    """Ordinary memory can wait for it; a pool is raised at once, and only from what is free and nobody's."""
    with held(ledger, {Place(0): 32 * MIB}):
        world = hugetlb(16, room=40 * MIB)
        with_page_cache(world, 0, 200 * MIB)
        least = []
        world.writes[SIZE] = watched(world.writes[SIZE], lambda: least.append(world.safe[0]))
        verdict = move(world, tmp_path / "run", ledger, allow=GROW | {Allow.RECLAIM})
    assert verdict.outcome is Outcome.REFUSED
    assert "raised by 4 of 16 pages" in verdict.message
    assert min(least) == 32 * MIB
    assert world.pools[0] == [0, 0]


def watched(write: Callable[[str], None], after: Callable[[], None]) -> Callable[[str], None]:
    return lambda text: (write(text), after())[1]


def test_what_a_pool_is_raised_by_is_held_once_and_by_whom_it_is_for(tmp_path: Path, ledger: Ledger) -> None:
    """As ordinary memory until the pool is raised, as its pages from then on; of both while that is done."""
    world, seen = hugetlb(4, heap=4, node0=(1, 1)), []
    world.writes[SIZE] = watched(world.writes[SIZE], lambda: seen.append(dict(ledger.held_by_others())))
    world.hooks[1] = lambda: seen.append(dict(ledger.held_by_others()))
    verdict = move(world, tmp_path / "run", ledger)
    assert verdict.outcome is Outcome.PLACED
    raising, moving = seen[:2]
    assert raising == {Place(0): 4 * PAGE + 3 * HUGE, POOL_0: 4 * HUGE}
    assert moving == {Place(0): 4 * PAGE, POOL_0: 4 * HUGE}
    assert not any(ledger.held_by_others().values())


def test_a_pool_is_raised_by_what_others_count_on_too(tmp_path: Path, ledger: Ledger) -> None:
    with held(ledger, {POOL_0: 2 * HUGE}):
        world = hugetlb(4, node0=(4, 4))
        verdict = move(world, tmp_path / "run", ledger)
    assert verdict.outcome is Outcome.PLACED
    assert world.pools == {0: [6, 2], 1: [2, 2]}


def test_pages_that_others_count_on_are_missing_where_the_pool_may_not_be_raised(
    tmp_path: Path, ledger: Ledger
) -> None:
    with held(ledger, {POOL_0: 2 * HUGE}):
        world = hugetlb(4, node0=(4, 4))
        verdict = move(world, tmp_path / "run", ledger, allow=frozenset())
    assert verdict.outcome is Outcome.REFUSED
    assert "4 free in the pool of NUMA node 0, 4.0 MiB of that is reserved by other moves" in verdict.message
    assert (world.calls, world.pools[0]) == ([], [4, 4])


def test_two_that_raise_one_pool_at_once_both_fit_and_give_back_what_is_theirs(tmp_path: Path, ledger: Ledger) -> None:
    first = hugetlb(16, room=80 * MIB)
    second, watcher = hugetlb(16, host=first), Holding()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(move, first, tmp_path / "first", ledger, watcher)
        assert watcher.reserved.wait(LIMIT)
        later = move(second, tmp_path / "second", ledger)
        watcher.going.set()
        earlier = running.result(LIMIT)
    assert [verdict.outcome for verdict in (earlier, later)] == [Outcome.PLACED] * 2
    assert first.pools == {0: [32, 0], 1: [0, 0]}
    assert first.safe[0] == 16 * MIB


def test_little_of_a_vm_that_finds_no_room_stays_and_is_told(tmp_path: Path, ledger: Ledger) -> None:
    with held(ledger, {Place(0): 40 * MIB}):
        world = hugetlb(1, room=73 * MIB, heap=32 * MIB // PAGE)
        verdict = move(world, tmp_path / "run", ledger)
    assert verdict.moved == 32 * MIB
    assert world.pools[0] == [0, 0]
    told = [note.evidence for note in verdict.notes if note.reason is Reason.HUGEPAGE_POOL]
    assert len(told) == 1
    assert "40.0 MiB of that is reserved by other moves" in told[0]


def ledger_locked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether another process would find the ledger locked."""
    with monkeypatch.context() as patched:
        patched.setattr(ledger_module, "_PATIENCE", 0.0)
        with closing(Ledger(directory)) as other:
            try:
                held(other, {POOL_0: HUGE}).release()
            except EngineError:
                return lambda: True
            return lambda: False


def test_pools_are_resized_under_the_ledgers_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size is read and then written: another that did so in between would own pages that are not there."""
    host = Host(tmp_path, used=[0, 8], free=[0, 0])
    directory, found = tmp_path / "ledger", []
    host.before_write = lambda: found.append(ledger_locked(directory, monkeypatch)())
    with closing(Ledger(directory)) as ledger:
        reservation = held(ledger, {POOL_0: 0, Place(0): 8 * HUGE})
        with GrownPools(host, reservation=reservation) as grown:
            assert grown.grow(host.plan(8)).pages == 8
        reservation.release()
    assert host.totals == [0, 8]
    assert found == [True, True]


def test_pages_that_another_move_has_reserved_are_not_given_back(tmp_path: Path, ledger: Ledger) -> None:
    """Pages that left are free where they were: whoever comes that way may count on them."""
    host = Host(tmp_path, used=[0, 8], free=[0, 0])
    reservation = held(ledger, {POOL_0: 0, Place(0): 8 * HUGE})
    with GrownPools(host, reservation=reservation) as grown:
        grown.grow(host.plan(8))
        host.move(8, 1, 0)
        grown.left(numa_node=0, page_size=HUGE, by_source={1: 8})
        coming = held(ledger, {POOL_1: 6 * HUGE})
    (back,) = grown.given_back
    assert (back.at_sources, back.kept) == ({1: 2}, 6)
    assert host.free == [0, 6]
    assert "could not be given back without taking them from others" in back.evidence
    coming.release()
    reservation.release()


def test_where_the_ledger_stays_locked_a_pool_is_neither_raised_nor_lowered_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 0])
    directory = tmp_path / "ledger"
    with closing(Ledger(directory)) as ledger, closing(Ledger(directory)) as other:
        reservation = held(ledger, {POOL_0: 0, Place(0): 8 * HUGE})
        monkeypatch.setattr(ledger_module, "_PATIENCE", 0.0)
        with GrownPools(host, reservation=reservation) as grown:
            with other.locked():
                growth = grown.grow(host.plan(8))
            assert (growth.pages, host.resized) == (0, [])
            assert "another process has kept the ledger of moves locked" in growth.evidence
            assert grown.grow(host.plan(8)).pages == 8
            with other.locked():
                (back,) = grown.give_back()
        reservation.release()
    assert (back.kept, host.totals) == (8, [8, 8])
    assert "ETIMEDOUT" in back.evidence


def test_what_cannot_be_told_to_others_is_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 0])
    with closing(Ledger(tmp_path / "ledger")) as ledger:
        reservation = held(ledger, {POOL_0: 0, Place(0): 8 * HUGE})

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with GrownPools(host, reservation=reservation) as grown, monkeypatch.context() as patched:
            patched.setattr("numaplacement.engine.lockfiles.HeldFile.write", full)
            growth = grown.grow(host.plan(8))
        assert (growth.pages, host.resized, grown.given_back) == (0, [], ())
        assert "ENOSPC" in growth.evidence
        assert reservation.held() == {POOL_0: 0, Place(0): 8 * HUGE}
        reservation.release()
