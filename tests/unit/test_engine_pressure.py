# SPDX-License-Identifier: Apache-2.0
"""A move gives way when the VM or the target's neighbours feel it, and never for ever."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaplacement.engine.backoff import FULL, KSWAPD, LEAST_SHARE, SOME, WAIT, BackOff, Pace, Sample, shares
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.pressure import Sources, Throttle, find_sources, sample
from numaplacement.engine.verdict import Outcome
from tests.unit.engine_world import PID, Recorder, World, run_in
from tests.unit.engine_world_host import CGROUP, with_cgroup, with_more_evidence
from tests.unit.engine_world_region import Region

SECONDS = 0.25


def counted(
    some: float = 0.0, full: float = 0.0, kswapd: float = 0.0, waits: float = 0.0, *, of_vm: bool = True
) -> Sample:
    return Sample(of_vm=of_vm, some=some, full=full, kswapd={2: kswapd}, waits={77: waits})


def decide(back_off: BackOff, *, seconds: float = SECONDS, **share: float) -> Pace:
    """What is decided after so many seconds in which each signal was there for a share of the time."""
    now = counted(**{name: value * seconds for name, value in share.items()})
    return back_off.decide(counted(), now, seconds)


@pytest.mark.parametrize(
    ("share", "pause", "half", "reason"),
    [
        ({}, 0.0, False, ""),
        ({"some": 0.04, "full": 0.009, "kswapd": 0.009, "waits": 0.09}, 0.0, False, ""),
        ({"some": 0.06}, 0.0, True, "goes slower: memory pressure of the VM 6% of the last 0.2 s"),
        ({"some": 0.12}, 0.25, True, "waits: memory pressure of the VM 12% of the last 0.2 s"),
        ({"full": 0.06}, 0.25, True, "waits: memory pressure on all tasks of the VM 6% of the last 0.2 s"),
        (
            {"kswapd": 0.02},
            0.0,
            True,
            "goes slower: the kernel took memory back on NUMA node 2 for 2% of the last 0.2 s",
        ),
        ({"kswapd": 0.06}, 0.25, True, "waits: the kernel took memory back on NUMA node 2 for 6% of the last 0.2 s"),
        ({"waits": 0.2}, 0.0, True, "goes slower: vCPU thread 77 was without a CPU 20% of the last 0.2 s"),
        ({"waits": 0.4}, 0.25, True, "waits: vCPU thread 77 was without a CPU 40% of the last 0.2 s"),
        ({"some": 0.11, "waits": 0.9}, 0.25, True, "waits: vCPU thread 77 was without a CPU 90% of the last 0.2 s"),
    ],
)
def test_each_signal_slows_then_stops(share: dict[str, float], pause: float, half: bool, reason: str) -> None:
    assert decide(BackOff(), **share) == Pace(pause=pause, share=0.5 if half else 1.0, reason=reason)


@pytest.mark.parametrize(("name", "signal"), [("some", "some"), ("kswapd", "kswapd"), ("waits", "wait")])
def test_only_what_came_with_the_move_counts(name: str, signal: str) -> None:
    number = {"some": 0, "kswapd": 2, "wait": 77}[signal]
    assert decide(BackOff(baseline={(signal, number): 0.5}), **{name: 0.5}) == Pace()
    pace = decide(BackOff(baseline={(signal, number): 0.5}), **{name: 0.9})
    assert pace.pause > 0
    assert "(50% without the move)" in pace.reason


def test_signals_that_are_not_in_both_samples_say_nothing() -> None:
    before, now = Sample(waits={1: 0.0}), Sample(some=9.0, kswapd={0: 9.0}, waits={2: 9.0})
    assert shares(before, now, 1.0) == {}
    assert not {"some", "host some"} & {name for name, _ in shares(counted(), counted(some=9.0, of_vm=False), 1.0)}
    assert BackOff().decide(before, now, 1.0) == Pace()
    assert shares(before, before, 0.0) == {}


def pauses_of(*, idle: dict[str, float], rounds: int = 12, **share: float) -> list[float]:
    """The length of each stop, all its pauses together, when every stretch of moving brings pressure."""
    back_off, stops = BackOff(), []
    for _ in range(rounds):
        pace = decide(back_off, **share)
        stops.append(0.0)
        while pace.pause:
            stops[-1] += pace.pause
            pace = decide(back_off, seconds=pace.pause, **idle)
    return stops


def test_pauses_grow_to_the_longest_when_waiting_helps_but_the_move_brings_it_back() -> None:
    assert pauses_of(idle={}, some=0.5)[:6] == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0]
    assert max(pauses_of(idle={}, kswapd=0.5)) == KSWAPD.longest == 5.0
    assert max(pauses_of(idle={}, waits=0.9)) == WAIT.longest == 1.0


def test_pressure_that_stays_is_waited_for_and_then_some_is_moved_all_the_same() -> None:
    assert pauses_of(idle={"some": 0.5}, some=0.5) == [5.0] * 12


def test_a_cpu_that_others_use_too_is_no_reason_to_wait_for_long() -> None:
    stops = pauses_of(idle={"waits": 0.6}, waits=0.6)
    assert max(stops) <= 1.0
    assert stops[-6:] == [0.0] * 6


def test_memory_pressure_somewhere_on_the_host_is_taken_for_what_there_is() -> None:
    back_off, stops = BackOff(), []
    for _ in range(10):
        before, now = counted(of_vm=False), counted(some=0.5 * SECONDS, of_vm=False)
        stops.append(back_off.decide(before, now, SECONDS).pause)
    assert stops[0] == 0.25
    assert stops[-1] == 0.0


def test_while_it_waits_a_vcpu_does_not_hide_memory_pressure() -> None:
    back_off = BackOff()
    decide(back_off, some=0.11, waits=0.9)
    assert decide(back_off, some=0.11, waits=0.9).reason.startswith("waits: memory pressure of the VM 11%")


def test_a_move_that_takes_the_cpu_itself_goes_on_being_held_back() -> None:
    assert pauses_of(idle={"waits": 0.0}, waits=0.6)[-1] == 1.0


def test_it_takes_calm_in_a_row_to_go_faster_again() -> None:
    back_off = BackOff()
    for _ in range(3):
        decide(back_off, some=0.06)
    assert decide(back_off).share == LEAST_SHARE
    assert decide(back_off).share == 0.25
    assert decide(back_off).share == 0.25
    assert decide(back_off, some=0.06).share == 0.125
    assert [decide(back_off).share for _ in range(7)] == [0.125, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]


def test_after_long_calm_the_first_pause_is_short_again() -> None:
    back_off = BackOff()
    for _ in range(3):
        pace = decide(back_off, some=0.5)
        decide(back_off, seconds=pace.pause)
    for _ in range(20):
        decide(back_off)
    assert decide(back_off, some=0.5).pause == SOME.first == FULL.first


@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=60),
    st.dictionaries(st.sampled_from([("some", 0), ("wait", 77), ("kswapd", 2)]), st.floats(0, 1)),
)
def test_no_stop_is_longer_than_the_longest(
    all_shares: list[tuple[float, ...]], baseline: dict[tuple[str, int], float]
) -> None:
    back_off, stopped, seconds = BackOff(baseline=baseline), 0.0, SECONDS
    for share in all_shares:
        pace = decide(back_off, seconds=seconds, **dict(zip(("some", "full", "kswapd", "waits"), share, strict=True)))
        assert LEAST_SHARE <= pace.share <= 1.0
        assert bool(pace.pause) <= bool(pace.reason)
        stopped = stopped + pace.pause if pace.pause else 0.0
        assert stopped <= 5.0
        seconds = pace.pause or SECONDS


PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={}\n"


class Files:
    """A /proc and /sys with one VM of three vCPUs in a container's cgroup, and its emulator threads below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kernel = Kernel(proc=root / "proc", sys=root / "sys")
        self.put("proc/pressure/memory", PRESSURE.format(5_000_000, 1_000_000))
        self.put("proc/2/stat", "2 (kthreadd) S 0 0")
        self.put("proc/40/stat", "40 (kswapd0) S 2 0")
        self.put("proc/40/schedstat", "7000000000 1 1")
        self.put("proc/41/stat", "41 (kswapd1) S 2 0")
        self.put("proc/41/schedstat", "9000000000 1 1")
        self.put("proc/30/stat", "30 (kswapd1) S 1 0")
        self.put("proc/30/schedstat", "1 1 1")
        for thread in (101, 102, 103):
            self.put(f"proc/100/task/{thread}/schedstat", f"1 {thread}000000000 1")
        self.put("sys/fs/cgroup/pod/memory.pressure", PRESSURE.format(3_000_000, 2_000_000))
        self.put("sys/fs/cgroup/pod/cgroup.type", "domain threaded\n")
        self.put("sys/fs/cgroup/pod/housekeeping/memory.pressure", PRESSURE.format(0, 0))
        self.put("sys/fs/cgroup/pod/housekeeping/cgroup.type", "threaded\n")

    def put(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def sources(self, *, cgroup: str = "/pod", vcpus: tuple[int, ...] = (101, 102, 103)) -> Sources:
        return find_sources(self.kernel, pid=100, targets={0, 1}, cgroup=cgroup, vcpus=vcpus)

    def sample(self, **where: str) -> Sample:
        return sample(self.kernel, self.sources(**where))  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize("cgroup", ["/pod", "/pod/housekeeping"])
def test_a_sample_of_the_vm(files: Files, cgroup: str) -> None:
    assert files.sample(cgroup=cgroup) == Sample(
        of_vm=True,
        some=3.0,
        full=2.0,
        kswapd={0: pytest.approx(7.0), 1: pytest.approx(9.0)},
        waits={101: pytest.approx(101.0), 102: pytest.approx(102.0), 103: pytest.approx(103.0)},
    )


@pytest.mark.parametrize("cgroup", ["", "/", "/../../pod", "/gone"])
def test_the_hosts_pressure_where_the_vms_cannot_be_read(files: Files, cgroup: str) -> None:
    found = files.sample(cgroup=cgroup)
    assert (found.of_vm, found.some, found.full) == (False, 5.0, 1.0)


def test_signals_a_kernel_does_not_have_are_not_there(files: Files) -> None:
    files.put("proc/pressure/memory", "")
    for thread in (101, 102, 103):
        files.put(f"proc/100/task/{thread}/schedstat", "0 0 0\n")
    for pid in (40, 41):
        (files.root / f"proc/{pid}/schedstat").unlink()
    assert files.sample(cgroup="") == Sample(of_vm=False)


def test_a_vcpu_that_goes_leaves_the_others(files: Files) -> None:
    sources = files.sources()
    (files.root / "proc/100/task/102/schedstat").unlink()
    assert sample(files.kernel, sources).waits.keys() == {101, 103}


def test_threads_that_may_be_vcpus_are_not_called_so(files: Files) -> None:
    sources = find_sources(files.kernel, pid=100, targets=set(), cgroup="", vcpus=(101, 102, 103), of_vcpus=False)
    before = sample(files.kernel, sources)
    assert before.waits.keys() == {101, 102, 103}
    files.put("proc/100/task/102/schedstat", "1 102250000000 1")
    reason = BackOff().decide(before, sample(files.kernel, sources), 0.5).reason
    assert reason == "waits: thread 102 of the VM was without a CPU 50% of the last 0.5 s"


def test_of_very_many_vcpus_some_are_watched(files: Files) -> None:
    for thread in range(200, 300):
        files.put(f"proc/100/task/{thread}/schedstat", "1 1 1")
    watched = sorted(files.sources(vcpus=tuple(range(200, 300))).vcpus)
    assert 13 <= len(watched) <= 24
    assert (watched[0], watched[-1] >= 295) == (200, True)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(files: Files, clock: Clock) -> Throttle:
    return Throttle(kernel=files.kernel, sources=files.sources(), clock=clock)


def pressed(files: Files, seconds: float) -> None:
    files.put("sys/fs/cgroup/pod/memory.pressure", PRESSURE.format(3_000_000 + int(seconds * 1e6), 2_000_000))


def test_samples_are_taken_at_most_every_quarter_of_a_second(files: Files, clock: Clock, throttle: Throttle) -> None:
    pressed(files, 0.2)
    clock.now += 0.24
    assert throttle.pace() == Pace()
    clock.now += 0.01
    assert throttle.pace().pause == 0.25


def test_a_pause_is_told_to_every_thread_until_it_is_over(files: Files, clock: Clock, throttle: Throttle) -> None:
    pressed(files, 0.2)
    clock.now += 0.25
    assert throttle.pace().pause == 0.25
    clock.now += 0.1
    late = throttle.pace()
    assert late.pause == pytest.approx(0.15)
    assert late.reason.startswith("waits: memory pressure of the VM 80%")
    clock.now += 0.2
    assert throttle.pace() == Pace(share=0.5)


def test_what_there_was_before_the_move_is_the_baseline(files: Files, clock: Clock, throttle: Throttle) -> None:
    pressed(files, 0.8)
    clock.now += 2.0
    throttle.settle()
    pressed(files, 0.8 + 0.1)
    clock.now += 0.25
    assert throttle.pace() == Pace()


def waiting(files: Files, clock: Clock, *, seconds: float = 1e9) -> list[float]:
    """Have the kernel's sleep pass the clock's time, and pressure of 40 % with it; return what is slept."""
    slept: list[float] = []

    def sleep(wanted: float) -> None:
        slept.append(wanted)
        clock.now += min(wanted, seconds)
        pressed(files, 0.4 * (clock.now - 100.0))

    files.kernel.sleep = sleep  # type: ignore[method-assign]
    return slept


def test_a_moment_is_no_baseline_and_the_rest_is_waited_for(files: Files, clock: Clock, throttle: Throttle) -> None:
    pressed(files, 0.08)
    clock.now += 0.2
    slept = waiting(files, clock)
    throttle.settle()
    assert slept == [pytest.approx(0.05, abs=0.002)]
    pressed(files, 0.4 * (clock.now - 100.0) + 0.1)
    clock.now += 0.25
    assert throttle.pace() == Pace()


def test_a_moment_stays_one_where_time_stands_still(files: Files, clock: Clock, throttle: Throttle) -> None:
    waiting(files, clock, seconds=0.0)
    throttle.settle()
    pressed(files, 0.1)
    clock.now += 0.25
    assert throttle.pace().pause > 0


def test_nothing_is_waited_for_where_there_is_nothing_to_see(tmp_path: Path, clock: Clock) -> None:
    kernel = Kernel(proc=tmp_path, sys=tmp_path)
    slept: list[float] = []
    kernel.sleep = slept.append  # type: ignore[method-assign]
    Throttle(kernel=kernel, sources=Sources(), clock=clock).settle()
    assert slept == []


def test_what_preparing_did_is_not_taken_for_the_moves(files: Files, clock: Clock, throttle: Throttle) -> None:
    clock.now += 0.3
    throttle.settle()
    pressed(files, 2.0)
    clock.now += 3.0
    throttle.begin()
    clock.now += 0.25
    assert throttle.pace() == Pace()
    pressed(files, 2.0 + 0.1)
    clock.now += 0.25
    assert throttle.pace().pause > 0


class Pressed(World):
    """A VM that is under memory pressure of its own 30 % of the time, whatever else happens."""

    def __init__(self, *regions: Region, **more: Any) -> None:
        super().__init__(list(regions), **more)
        with_cgroup(self, mems="0-3")
        total = f"{CGROUP}/memory.pressure"
        self.texts[total] = lambda: PRESSURE.format(int(self.now * 0.3e6), 0)


def test_a_vm_that_is_pressed_anyway_is_moved_as_fast_as_another(tmp_path: Path) -> None:
    world = Pressed(Region(0x7F0000000000, [1] * 4096), speed=2 << 20)  # 8 seconds of moving
    watcher = Recorder()
    assert run_in(world, tmp_path, watcher, call_latency=0.5).outcome is Outcome.PLACED
    assert [progress.waiting for progress in watcher.heard if progress.waiting] == []
    assert world.slept < 0.3


@pytest.mark.parametrize(("nodes", "wish"), [([1] * 64, {"dry_run": True}), ([0] * 64, {})])
def test_where_nothing_is_to_be_moved_nobody_waits(tmp_path: Path, nodes: list[int], wish: dict[str, Any]) -> None:
    world = Pressed(Region(0x7F0000000000, nodes))
    run_in(world, tmp_path, **wish)
    assert world.slept == 0


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("qemu", "CPU 0/KVM"), f"vCPU thread {PID + 1} was without a CPU"),
        (("qemu-kvm", "qemu-kvm"), f"thread {PID + 1} of the VM was without a CPU"),
    ],
)
def test_a_thread_without_a_cpu_slows_the_move_whatever_it_is_called(
    tmp_path: Path, names: tuple[str, ...], words: str
) -> None:
    world = World([Region(0x7F0000000000, [1] * 4096)], thread_names=names, speed=2 << 20)
    with_more_evidence(world)
    waits = f"proc/{PID}/task/{PID + 1}/schedstat"
    world.texts[waits] = lambda: f"1000 {1000 + (int(world.now * 0.8e9) if world.calls else 0)} 1\n"
    watcher = Recorder()
    assert run_in(world, tmp_path, watcher, call_latency=0.5).outcome is Outcome.PLACED
    assert any(words in progress.waiting for progress in watcher.heard)


def test_threads_at_once_make_one_decision(files: Files, clock: Clock, throttle: Throttle) -> None:
    pressed(files, 0.2)
    clock.now += 0.25
    paces: list[Pace] = []
    threads = [threading.Thread(target=lambda: paces.append(throttle.pace())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [pace.pause for pace in paces] == [0.25] * 4
