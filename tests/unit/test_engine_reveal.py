# SPDX-License-Identifier: Apache-2.0
"""Memory that is swapped out is read back at the pace of a move, and not where the VM would pay for it with other."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from numaplacement.engine.ledger import Ledger, Place
from numaplacement.engine.reasons import ADVICE, Reason
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Outcome, Progress, Request, Stage, Verdict
from tests.unit.engine_world import MIB, PAGE, PID, Recorder, Region, SimulatedKernel, World, run_in
from tests.unit.engine_world_host import with_cgroup

HEAP = 0x7F0000000000
SLICE, POD = "sys/fs/cgroup/pods.slice", "sys/fs/cgroup/pods.slice/pod"


def out(pages: int, there: int = 64, **more: Any) -> Region:
    """A mapping with pages that are swapped out behind those on NUMA node 1."""
    return Region(HEAP, [1] * there + [-1] * pages, swapped=set(range(there, there + pages)), **more)


def with_memory_cgroup(world: World, **files: int | str) -> None:
    """Have the process in a cgroup below another; `files` are those of memory, of the upper one where `upper_…`."""
    with_cgroup(world, mems="0-3")
    inside = {f"{POD}/{name.rpartition('/')[2]}": read for name, read in world.texts.items() if "cgroup/pod/" in name}
    world.texts |= inside | {f"proc/{PID}/task/{PID + each}/cgroup": lambda: "0::/pods.slice/pod\n" for each in (0, 1)}
    out_at_first = swapped(world)
    for name, value in files.items():
        path = f"{SLICE if name.startswith('upper_') else POD}/memory.{name.removeprefix('upper_')}"
        if name.endswith("current"):
            world.texts[path] = lambda start=value: f"{int(start) + out_at_first - swapped(world)}\n"
        else:
            world.texts[path] = lambda value=value: f"{value}\n"


def swapped(world: World) -> int:
    return sum(len(region.swapped) * region.page_size for region in world.regions)


def left(verdict: Verdict) -> dict[Reason, int]:
    sums: Counter[Reason] = Counter()
    for row in verdict.residue:
        sums[row.reason] += row.bytes
    return dict(sums)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"current": 10 * MIB, "max": 11 * MIB}, "memory.max of cgroup pod leaves room for 1.0 MiB"),
        ({"current": 10 * MIB, "max": "max", "high": 9 * MIB}, "memory.high of cgroup pod leaves room for 0 KiB"),
        (
            {"current": 10 * MIB, "max": 12 * MIB, "upper_current": 90 * MIB, "upper_max": 91 * MIB},
            "memory.max of cgroup pods.slice leaves room for 1.0 MiB",
        ),
        (
            {"current": 10 * MIB, "max": 11 * MIB, "upper_current": 90 * MIB, "upper_high": 190 * MIB},
            "memory.max of cgroup pod leaves room for 1.0 MiB",
        ),
    ],
)
def test_what_the_cgroup_has_no_room_for_stays_in_swap_and_all_else_moves(
    tmp_path: Path, files: dict[str, int | str], words: str
) -> None:
    world = World([out(300, hidden={3})])
    world.regions.append(Region(HEAP + 64 * MIB, [0]))
    with_memory_cgroup(world, **files)
    verdict = run_in(world, tmp_path)
    assert world.regions[0].swapped == set(range(64, 364))
    assert (verdict.outcome, left(verdict)) == (Outcome.RESIDUE, {Reason.SWAPPED: 300 * PAGE})
    assert world.bytes_on() == {0: 65 * PAGE}
    [row] = verdict.residue
    assert words in row.evidence
    assert "to read back takes 1.2 MiB" in row.evidence
    assert "swapoff" not in row.remedy
    assert "memory limit" in row.remedy


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"max": 11 * MIB},
        {"current": 10 * MIB, "max": "max", "high": "max"},
        {"current": 10 * MIB, "max": 12 * MIB, "upper_current": 90 * MIB, "upper_max": 92 * MIB},
    ],
)
def test_with_room_in_the_cgroup_or_nothing_known_of_it_all_is_read_back(
    tmp_path: Path, files: dict[str, int | str]
) -> None:
    world = World([out(300), Region(HEAP + 64 * MIB, [0])])
    with_memory_cgroup(world, **files)
    verdict = run_in(world, tmp_path)
    assert (verdict.outcome, verdict.residue) == (Outcome.PLACED, ())
    assert world.bytes_on() == {0: 365 * PAGE}


def test_when_others_take_the_cgroups_room_meanwhile_the_rest_stays_in_swap(tmp_path: Path) -> None:
    world = World([out(1024), Region(HEAP + 64 * MIB, [0])])
    with_memory_cgroup(world, current=10 * MIB, max=15 * MIB)
    own = world.texts[f"{POD}/memory.current"]
    world.texts[f"{POD}/memory.current"] = lambda: f"{int(own()) + (world.touches > 1) * 4 * MIB}\n"
    verdict = run_in(world, tmp_path)
    assert 0 < left(verdict)[Reason.SWAPPED] < 4 * MIB
    assert world.touches == 2
    assert left(verdict)[Reason.SWAPPED] == swapped(world)


def test_without_a_limit_a_row_says_what_it_always_says(tmp_path: Path) -> None:
    verdict = run_in(World([out(300)], touch_error=1), tmp_path)
    [row] = verdict.residue
    assert (row.reason, row.remedy) == (Reason.SWAPPED, ADVICE[Reason.SWAPPED].remedy)
    assert row.evidence == "300 pages swapped out (pagemap bit 62)"


def test_reading_back_is_paid_for_like_moving(tmp_path: Path) -> None:
    world = World([out(1024, there=0)])
    assert run_in(world, tmp_path, bandwidth=MIB).outcome is Outcome.PLACED
    assert 3.7 < world.slept < 4.3
    assert world.touches >= 40


def test_reading_back_begins_with_small_calls(tmp_path: Path) -> None:
    world = World([out(4096, there=0)])
    run_in(world, tmp_path)
    assert world.touches >= 5


def test_reading_back_gives_way_to_pressure(tmp_path: Path) -> None:
    world, watcher = World([out(1024, there=0)]), Recorder()
    with_cgroup(world, mems="0-3")
    pressure = "some avg10=0.00 total={}\nfull avg10=0.00 total=0\n"
    world.texts["sys/fs/cgroup/pod/memory.pressure"] = lambda: pressure.format(
        int(world.now * 0.9e6) if world.touches else 0
    )
    assert run_in(world, tmp_path, watcher, bandwidth=2 * MIB).outcome is Outcome.PLACED
    stages = [progress.stage for progress in watcher.heard]
    early = watcher.heard[: stages.index(Stage.MOVE)] if Stage.MOVE in stages else watcher.heard
    assert any(progress.waiting.startswith("waits: memory pressure of the VM") for progress in early)
    assert world.slept > 5


class Passing(SimulatedKernel):
    """A kernel under which the target has no room from the moment threads follow until some time has passed."""

    def __init__(self, world: World, root: Path, *, until: float) -> None:
        super().__init__(world, root)
        self.until, self.kept = until, 0

    def take_room(self) -> None:
        self.kept, self.world.safe[0] = self.world.safe[0], 0

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.kept and self.world.now >= self.until:
            self.world.safe[0], self.kept = self.kept, 0


@pytest.mark.parametrize(("until", "outcome"), [(0.5, Outcome.PLACED), (99.0, Outcome.RESIDUE)])
def test_room_that_is_short_for_a_moment_is_waited_for(tmp_path: Path, until: float, outcome: Outcome) -> None:
    world = World([out(300, there=0)])
    kernel = Passing(world, tmp_path, until=until)

    class Watcher(Recorder):
        def progressed(self, progress: Progress, /) -> None:
            super().progressed(progress)
            if progress.stage is Stage.THREADS:
                kernel.take_room()

    with closing(Ledger(tmp_path / "ledger")) as ledger:
        verdict = run(
            pid=PID, request=Request(target=0), kernel=kernel, watcher=Watcher(), clock=lambda: world.now, ledger=ledger
        )
    assert verdict.outcome is outcome
    if outcome is Outcome.RESIDUE:
        assert world.now < 3
        assert "0 KiB could still be taken on NUMA node 0" in verdict.message
        assert left(verdict) == {Reason.SWAPPED: 300 * PAGE}


def test_what_was_read_back_is_not_reserved_any_more(tmp_path: Path) -> None:
    world = World([out(300, there=100)])
    held: list[int] = []
    with closing(Ledger(tmp_path / "ledger")) as ledger, closing(Ledger(tmp_path / "ledger")) as other:
        world.hooks[1] = lambda: held.append(other.held_by_others()[Place(0)])
        verdict = run(
            pid=PID,
            request=Request(target=0, movers=1),
            kernel=SimulatedKernel(world, tmp_path),
            watcher=Recorder(),
            clock=lambda: world.now,
            ledger=ledger,
        )
    assert verdict.outcome is Outcome.PLACED
    assert held == [100 * PAGE]


def test_a_place_that_is_full_keeps_nothing_from_another(tmp_path: Path) -> None:
    """Two guest cells, one of them swapped out, and its target full."""
    flags = "rd wr mr mw me ac dc"
    first = Region(HEAP, [-1] * 1024, swapped=set(range(1024)), flags=flags)
    second = Region(HEAP + 64 * MIB, [1] * 512, flags=flags)
    memory = "-object\0memory-backend-ram,id=m0,size=4M\0-object\0memory-backend-ram,id=m1,size=2M\0"
    cells = "-numa\0node,nodeid=0,memdev=m0\0-numa\0node,nodeid=1,memdev=m1\0"
    world = World([first, second], command_line=f"/usr/bin/qemu-system-x86_64\0-m\x006\0{memory}{cells}")
    watcher = Recorder()

    def heard(progress: Progress, /) -> None:
        if progress.stage is Stage.THREADS:
            world.safe[2] = 0

    watcher.progressed = heard  # type: ignore[method-assign]
    verdict = run_in(world, tmp_path, watcher, target=None, cells={0: 2, 1: 3})
    assert world.bytes_on() == {3: 2 * MIB}
    assert left(verdict) == {Reason.SWAPPED: 4 * MIB}


def test_where_reading_back_is_cancelled_the_verdict_says_where_memory_is(tmp_path: Path) -> None:
    world, watcher = World([out(1024, there=16)]), Recorder()
    watcher.cancelled = lambda: world.touches > 3  # type: ignore[method-assign]
    verdict = run_in(world, tmp_path, watcher, bandwidth=MIB)
    assert verdict.outcome is Outcome.CANCELLED
    said: Counter[int] = Counter()
    for row in verdict.after:
        said[row.numa_node] += row.bytes
    assert said.pop(-1) == swapped(world) > 0
    assert dict(said) == world.bytes_on()
    assert world.bytes_on()[0] > 0
