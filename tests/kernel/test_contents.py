# SPDX-License-Identifier: Apache-2.0
"""What a VM keeps in its memory is what it finds there, whatever is moved below it while it writes.

Real VMs write to and check every cache line of all the memory they can reach, without a rest, while the engine moves
them to and fro between two NUMA nodes: three times in `make test-kernel`, forty in `make test-contents`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path

import pytest

from numaplacement.engine.verdict import Outcome, PageClass
from tests.kernel.memory_process import MIB, PAGE, wait_for
from tests.kernel.test_engine_move import asked_residue, move
from tests.rig.vm import Backing, RunningVm, VmSpec, numa_pages
from tests.rig.vm_spec import HUGE_PAGE

pytestmark = pytest.mark.usefixtures("autonuma_off")

RAM = {Backing.ANON_4K: 16 * MIB, Backing.THP: 64 * MIB, Backing.MEMFD: 16 * MIB, Backing.HUGETLB: 64 * MIB}
CACHE_LINE = 64
NUMA_NODES = (0, 1)  # the VM starts on the last one
LONGEST_REST = 2.0  # seconds after each move: a pause is the longer, the longer one looks
SPARE = 2  # huge pages of a pool more than the VM has
PAGE_CLASS = {
    Backing.ANON_4K: PageClass.ANON,
    Backing.THP: PageClass.ANON_HUGE,
    Backing.MEMFD: PageClass.SHMEM,
    Backing.HUGETLB: PageClass.HUGETLB,
}

Start = Callable[[VmSpec], RunningVm]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What came of moving one VM to and fro. Seconds and milliseconds are the emulated host's: only ratios of figures
    of one row mean anything. `rest` is what the VM goes through when nothing is moved; where it was looked at for less
    long than the moves took, its longest pause is a lower bound.
    """

    backing: str
    accel: str
    kernel: str
    bytes: int
    moves: int
    passes: int
    errors: int
    move_seconds: float
    rest_seconds: float
    longest_pause_moving_ms: float
    longest_pause_at_rest_ms: float
    calls: int
    call_p99_ms: float
    huge_pages_split: int


@dataclass(kw_only=True)
class GuestClock:
    """Turns what a VM's clock says into seconds, by two readings of it and of the host's clock."""

    vm: RunningVm
    began: tuple[float, int] = field(init=False)

    def __post_init__(self) -> None:
        self.began = (time.monotonic(), self.vm.time())

    def milliseconds(self, ticks: int) -> float:
        now, guest_now = time.monotonic(), self.vm.time()
        rate = (guest_now - self.began[1]) % (1 << 32) / (now - self.began[0])
        return ticks / rate * 1000


@dataclass(kw_only=True)
class Span:
    """How long something took in all, and the VM's longest pause while it did, by its own clock."""

    vm: RunningVm
    seconds: float = 0.0
    pause: int = 0
    began: float = 0.0

    def __enter__(self) -> None:
        self.vm.forget_pauses()
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.monotonic() - self.began
        self.pause = max(self.pause, self.vm.longest_pause())


@pytest.fixture(scope="session")
def book() -> Iterator[list[Contents]]:
    """Rows that are in the folder shared with the machine when the tests have ended."""
    rows: list[Contents] = []
    yield rows
    words = Path("/proc/cmdline").read_text().split()
    shared = next(word.removeprefix("rig.shared=") for word in words if word.startswith("rig.shared="))
    (Path(shared) / "contents.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))


@pytest.fixture
def huge_page_pools() -> Iterator[None]:
    """Room for the VM's RAM in the pools of both NUMA nodes."""
    pools = [
        Path(f"/sys/devices/system/node/node{numa_node}/hugepages/hugepages-2048kB/nr_hugepages")
        for numa_node in NUMA_NODES
    ]
    pages = RAM[Backing.HUGETLB] // HUGE_PAGE + SPARE
    for pool in pools:
        pool.write_text(str(pages))
        assert int(pool.read_text()) == pages
    yield
    for pool in pools:
        pool.write_text("0")


def spec(backing: Backing, accel: str, memory: int) -> VmSpec:
    return VmSpec(
        namespace="prod",
        name=f"{backing}-{accel}",
        memory=memory,
        numa_nodes=NUMA_NODES[-1:],
        backing=backing,
        accel=accel,
        one_tick_in=1,
        stride=CACHE_LINE,
    )


def await_whole_pass(vm: RunningVm) -> None:
    """Wait until the VM has been through all its memory once more; the pass under way does not count."""
    passes = vm.passes()
    wait_for(lambda: vm.passes() >= passes + 2)


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
@pytest.mark.parametrize("backing", list(Backing))
def test_not_one_cache_line_goes_wrong_while_it_is_written_and_moved(
    backing: Backing, accel: str, start: Start, request: pytest.FixtureRequest, book: list[Contents]
) -> None:
    if backing is Backing.HUGETLB:
        request.getfixturevalue("huge_page_pools")
    moves, ram = request.config.getoption("--contents-moves"), RAM[backing]
    vm = start(spec(backing, accel, ram))
    assert vm.accel == accel
    await_whole_pass(vm)
    clock, moving, rest = GuestClock(vm=vm), Span(vm=vm), Span(vm=vm)
    first_pass, verdicts = vm.passes(), []
    for target in islice(cycle(NUMA_NODES), moves):
        with moving:
            verdict = move(vm.pid, target=target)
        assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {}), verdict
        assert numa_pages(vm.pid, vm.ram_address) == {target: ram // PAGE}
        assert verdict.moved >= ram
        verdicts.append(verdict)
        with rest:
            rested = time.monotonic() + min(verdict.seconds, LONGEST_REST)
            await_whole_pass(vm)
            wait_for(lambda until=rested: time.monotonic() >= until)
        assert vm.errors() == 0
    of_class = sum(row.bytes for row in verdicts[0].before if row.page_class is PAGE_CLASS[backing])
    assert of_class >= ram, verdicts[0].before
    book.append(
        Contents(
            backing=backing,
            accel=accel,
            kernel=os.uname().release,
            bytes=ram,
            moves=len(verdicts),
            passes=vm.passes() - first_pass,
            errors=vm.errors(),
            move_seconds=round(moving.seconds, 2),
            rest_seconds=round(rest.seconds, 2),
            longest_pause_moving_ms=round(clock.milliseconds(moving.pause), 1),
            longest_pause_at_rest_ms=round(clock.milliseconds(rest.pause), 1),
            calls=sum(verdict.calls.count for verdict in verdicts),
            call_p99_ms=round(max(verdict.calls.p99 for verdict in verdicts) * 1000, 1),
            huge_pages_split=sum(verdict.split for verdict in verdicts) // HUGE_PAGE,
        )
    )


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_a_vm_finds_what_was_changed_behind_its_back(accel: str, start: Start) -> None:
    vm = start(spec(Backing.THP, accel, 16 * MIB))
    await_whole_pass(vm)
    for wrong, address in enumerate((10 * MIB + 2 * CACHE_LINE, vm.ram_size - CACHE_LINE), start=1):
        assert vm.errors() == wrong - 1
        assert vm.read_u32(address + 4) == address
        vm.write_u32(address + 4, address ^ 1)
        await_whole_pass(vm)
        assert vm.errors() == wrong


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_a_vm_knows_how_long_it_did_not_run(accel: str, start: Start) -> None:
    vm = start(spec(Backing.THP, accel, 16 * MIB))
    await_whole_pass(vm)
    clock = GuestClock(vm=vm)
    os.kill(vm.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    vm.forget_pauses()
    wait_for(lambda: time.monotonic() > stopped + 1.0)
    os.kill(vm.pid, signal.SIGCONT)
    await_whole_pass(vm)
    noticed = clock.milliseconds(vm.longest_pause())
    assert noticed == pytest.approx(1000 * (time.monotonic() - stopped), rel=0.5)
    assert noticed >= 900
    vm.forget_pauses()
    await_whole_pass(vm)
    assert clock.milliseconds(vm.longest_pause()) < noticed / 2
