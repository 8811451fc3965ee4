# SPDX-License-Identifier: Apache-2.0
"""However a move ends: once its preparations have been left, what they did not give back is in their notes."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from numaplacement.engine.errors import EngineError, LocatingRefused, ProcessEnded, Stopped
from numaplacement.engine.facts import gather, look
from numaplacement.engine.guard import Guard
from numaplacement.engine.host import read_host
from numaplacement.engine.ledger import Ledger
from numaplacement.engine.poolgrowth import GrownPools
from numaplacement.engine.prepare import Preparation
from numaplacement.engine.process import hold
from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Allow, Request
from tests.unit.engine_world import PID, Recorder, Region, SimulatedKernel, World
from tests.unit.engine_world_host import HUGE, NODE, POOL, with_cgroup, with_more_evidence, with_pools
from tests.unit.test_engine_pools import Host

RAM = 0x7F0000000000
SIZE = f"{NODE}/node0/{POOL}/nr_hugepages"
ENDS = [ProcessEnded(), EngineError("no"), LocatingRefused(1), MemoryError(), Stopped(Reason.DEADLINE, "late")]
ENDS_OF_PYTHON = [KeyboardInterrupt(), SystemExit(1), RuntimeError("what")]


def guest() -> World:
    world = World([Region(RAM, [1] * 4, page_size=HUGE)])
    with_more_evidence(world)
    with_pools(world, node0=(0, 0), node1=(4, 0))
    with_cgroup(world, mems="1-3")
    return world


@contextmanager
def prepared(world: World, root: Path) -> Iterator[Preparation]:
    """Yield a preparation that has raised the target's pool by four pages, not yet entered as a context."""
    request = Request(target=0, allow=frozenset({Allow.GROW_HUGE_PAGES, Allow.REBIND_CPUSET}))
    kernel = SimulatedKernel(world, root)
    with ExitStack() as stack:
        process = stack.enter_context(hold(PID, kernel, None))
        ledger = stack.enter_context(closing(Ledger(root / "ledger")))
        before, locating = look(process)
        host = read_host(kernel)
        gathered = gather(process, request=request, host=host, before=before, locating=locating)
        guard = Guard(process=process, watcher=Recorder(), clock=lambda: world.now, deadline_at=1e9)
        preparation = Preparation(
            process=process, request=request, gathered=gathered, guard=guard, ledger=ledger, clock=lambda: world.now
        )
        preparation.prepare()
        assert world.pools[0] == [4, 4]
        yield preparation


def of_pools(preparation: Preparation) -> list[str]:
    return [note.evidence for note in preparation.notes if note.reason is Reason.HUGEPAGE_POOL]


def leave(preparation: Preparation, end: BaseException) -> None:
    with contextlib.suppress(BaseException), preparation:
        raise end


def at_call(original: Callable[[str], None], *numbers: int, error: BaseException) -> Callable[[str], None]:
    """A write that raises at some of its calls, before it does anything."""
    calls = []

    def write(text: str) -> None:
        calls.append(text)
        if len(calls) in numbers:
            raise error
        original(text)

    return write


@pytest.mark.parametrize("end", [*ENDS, *ENDS_OF_PYTHON], ids=lambda end: type(end).__name__)
def test_a_pool_that_stays_raised_is_told_whatever_ended_the_move(tmp_path: Path, end: BaseException) -> None:
    world = guest()
    with prepared(world, tmp_path) as preparation:
        world.pools[0][1] = 1  # a helper of the VM has the others mapped still
        leave(preparation, end)
    assert world.pools[0] == [3, 0]
    (told,) = of_pools(preparation)
    assert told.startswith("3 pages of 2.0 MiB of the 4 that the pool of NUMA node 0 was raised by could not be given")


@pytest.mark.parametrize("end", ENDS_OF_PYTHON, ids=lambda end: type(end).__name__)
def test_giving_back_that_is_interrupted_is_gone_on_with(tmp_path: Path, end: BaseException) -> None:
    world = guest()
    with prepared(world, tmp_path) as preparation:
        world.writes[SIZE] = at_call(world.writes[SIZE], 1, error=end)
        leave(preparation, ProcessEnded())
    assert world.pools[0] == [0, 0]
    assert of_pools(preparation) == []


@pytest.mark.parametrize("end", ENDS_OF_PYTHON, ids=lambda end: type(end).__name__)
def test_giving_back_that_is_interrupted_for_good_is_told(tmp_path: Path, end: BaseException) -> None:
    world = guest()
    with prepared(world, tmp_path) as preparation:
        world.writes[SIZE] = at_call(world.writes[SIZE], 1, 2, error=end)
        leave(preparation, ProcessEnded())
    assert world.pools[0] == [4, 4]
    assert of_pools(preparation) == [
        "4 pages of 2.0 MiB of the 4 that the pool of NUMA node 0 was raised by were not given back"
    ]


def test_what_else_goes_wrong_at_the_end_keeps_nothing_from_being_told(tmp_path: Path) -> None:
    world = guest()
    with prepared(world, tmp_path) as preparation:
        world.pools[0][1] = 0
        path = "sys/fs/cgroup/pod/cpuset.mems"
        world.writes[path] = at_call(world.writes[path], 1, error=RuntimeError("what"))
        leave(preparation, ProcessEnded())
    (told,) = of_pools(preparation)
    assert told.startswith("4 pages")


def test_interrupted_after_the_pool_was_lowered_it_is_not_lowered_again(tmp_path: Path) -> None:
    """The pages beyond are the host's own."""
    host = Host(tmp_path, used=[0, 8], free=[8, 0])
    with GrownPools(host) as grown:
        assert grown.grow(host.plan(16)).pages == 8

        def interrupt() -> None:
            host.after_write = lambda: None
            raise KeyboardInterrupt

        host.after_write = interrupt
        with pytest.raises(KeyboardInterrupt):
            grown.give_back()
        assert host.totals == [8, 8]
    assert host.totals == [8, 8]
    assert [back.kept for back in grown.given_back] == [0]


def test_a_pool_of_which_nobody_can_say_whether_it_was_raised_is_told(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 0])
    with GrownPools(host) as grown:
        plan = host.plan(8)

        host.after_write = lambda: setattr(host, "refuses", errno.EROFS)
        host.read = failing(host, lambda: bool(host.refuses))  # type: ignore[method-assign]
        growth = grown.grow(plan)
    assert growth.pages == 0
    (back,) = grown.given_back
    assert back.kept == 8
    assert back.evidence.startswith("the pool of NUMA node 0 may have been raised by 8 pages: it can neither be read")


def failing(host: Host, when: Callable[[], bool]) -> Callable[[Path], str]:
    original = host.read

    def read(path: Path) -> str:
        if when():
            raise OSError(errno.EIO, "Input/output error", str(path))
        return original(path)

    return read
