# SPDX-License-Identifier: Apache-2.0
"""Whether memory stayed: decisions, and the wait on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from numaplacement.engine.errors import ProcessEnded, Stopped
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.mappings import NumaMapsRow
from numaplacement.engine.process import HeldProcess
from numaplacement.engine.reasons import Reason
from numaplacement.engine.stay import Placement, Stay, allowance, came_back, placement_of, scan_period_max, watch

MIB, GIB, PID = 1 << 20, 1 << 30, 4242
SCHED = "qemu (4242, #threads: 2)\n-----\nnr_switches      :    9\nmm->numa_scan_seq    :          {}\n"


def row(start: int, **nodes: int) -> NumaMapsRow:
    return NumaMapsRow(start=start, policy="default", bytes_by_numa_node={int(k[1:]): v for k, v in nodes.items()})


def test_placement_by_what_was_asked_of_each_mapping() -> None:
    rows = [row(1, n0=10, n2=3), row(2, n0=5, n1=7), row(3, n0=1, n3=9)]
    targets = {1: 0, 2: 1}
    assert placement_of(rows, target_of=targets.get) == Placement(on_target=17, off_target={2: 3, 0: 5})


@pytest.mark.parametrize(
    ("then", "now", "back"),
    [
        ({}, {}, {}),
        ({2: 5}, {2: 5}, {}),
        ({2: 5}, {2: 3}, {}),
        ({2: 5}, {2: 9, 1: 1}, {1: 1, 2: 4}),
        ({2: 5, 1: 9}, {2: 9}, {2: 4}),
    ],
)
def test_what_came_back(then: dict[int, int], now: dict[int, int], back: dict[int, int]) -> None:
    assert came_back(Placement(on_target=9, off_target=then), Placement(on_target=9, off_target=now)) == back


@pytest.mark.parametrize(
    ("on_target", "tolerance", "bytes_"),
    [(0, 0, MIB), (GIB // 2, 0, MIB), (64 * GIB, 0, 64 * GIB // 1000), (64 * GIB, GIB, GIB), (0, 3 * MIB, 3 * MIB)],
)
def test_what_may_come_back(on_target: int, tolerance: int, bytes_: int) -> None:
    assert allowance(Placement(on_target=on_target, off_target={}), tolerance=tolerance) == bytes_


@dataclass
class Scene:
    """A process of 4 GiB on NUMA node 0, scanned every `scan_every` seconds; some of it comes back at a time."""

    balancing: str = "1"
    scan_every: float | None = 5.0
    back: int = 0
    back_at: float = 0.0
    period_ms: str = "60000"
    now: float = 100.0
    looks: list[float] = field(default_factory=list)
    look_costs: float = 0.0
    ends_at: float = float("inf")
    check: Callable[[], None] = lambda: None

    def watch(self, tmp_path: Path, *, limit: float = 300.0, tolerance: int = 0) -> Stay:
        scene = self

        class Simulated(Kernel):
            def read(self, path: Path) -> str:
                return scene.read(path.name, path.parent.name)

            def sleep(self, seconds: float) -> None:
                scene.now += max(seconds, 0.001)

            def has_ended(self, pidfd: int) -> bool:  # noqa: ARG002
                return scene.now >= scene.ends_at

        for thread in (PID, PID + 1):
            (tmp_path / str(PID) / "task" / str(thread)).mkdir(parents=True)
        kernel = Simulated(proc=tmp_path, sys=tmp_path / "sys")
        return watch(
            HeldProcess(pid=PID, pidfd=3, kernel=kernel),
            then=Placement(on_target=4 * GIB, off_target={2: 9}),
            target_of=lambda start: 0 if start == 0x1000 else None,
            target_cpus=frozenset({0, 1}),
            tolerance=tolerance,
            limit=limit,
            check=self.check,
            clock=lambda: self.now,
        )

    def read(self, name: str, parent: str) -> str:
        passed = self.now - 100.0
        if name == "numa_maps":
            self.looks.append(passed)
            self.now += self.look_costs
            back = self.back if passed >= self.back_at else 0
            return (
                f"1000 default N0={(4 * GIB - back) // 4096} N2={back // 4096} kernelpagesize_kB=4\n2000 default N3=7\n"
            )
        texts = {
            "stat": f"1 (q (x) R) S {'0 ' * 18}77 {'0 ' * 16}{1 if parent == str(PID) else 6} 0",
            "numa_balancing": self.balancing,
            "vmstat": f"nr_x 1\nnuma_hint_faults {int(passed)}\nnuma_pages_migrated {3 * int(passed)}\n",
            "scan_period_max_ms": self.period_ms,
        }
        if name == "sched" and self.scan_every:
            return SCHED.format(int(passed // self.scan_every))
        if texts.get(name):
            return texts[name]
        raise FileNotFoundError(name)


def test_stayed_after_two_scans(tmp_path: Path) -> None:
    stay = Scene(look_costs=0.01).watch(tmp_path)
    assert stay.stayed
    assert (stay.came_back, stay.scans) == ({}, 2)
    assert 10.0 <= stay.seconds <= 10.6
    assert stay.evidence == (
        "nothing came back; watched for 10 s with AutoNUMA on, which came to the end of its memory 2 times; on the"
        " whole host numa_hint_faults +10, numa_pages_migrated +30"
    )


def test_came_back_ends_the_wait_and_says_who_calls(tmp_path: Path) -> None:
    stay = Scene(back=64 * MIB, back_at=3.0).watch(tmp_path)
    assert not stay.stayed
    assert stay.came_back == {2: 64 * MIB - 9}
    assert 3.0 <= stay.seconds <= 4.5
    assert "64.0 MiB more on NUMA node 2" in stay.evidence
    assert "1 of 2 threads ran last on CPUs 6, off the target" in stay.evidence


@pytest.mark.parametrize(
    ("back", "tolerance", "stayed"), [(4 * MIB, 0, True), (6 * MIB, 0, False), (6 * MIB, GIB, True)]
)
def test_a_little_is_no_return(tmp_path: Path, back: int, tolerance: int, *, stayed: bool) -> None:
    stay = Scene(back=back).watch(tmp_path, tolerance=tolerance)
    assert stay.stayed is stayed
    assert stay.came_back == {2: back - 9}


@pytest.mark.parametrize(
    ("scan_every", "period_ms", "limit", "seconds"),
    [
        (None, "60000", 300.0, 120.0),
        (None, "3000", 300.0, 6.0),
        (None, "", 300.0, 120.0),
        (1000.0, "3000", 300.0, 6.0),
        (1000.0, "60000", 20.0, 20.0),
        (2.0, "60000", 1.0, 1.0),
    ],
)
def test_how_long_the_wait_is(
    tmp_path: Path, scan_every: float | None, period_ms: str, limit: float, seconds: float
) -> None:
    stay = Scene(scan_every=scan_every, period_ms=period_ms).watch(tmp_path, limit=limit)
    assert stay.seconds == pytest.approx(seconds, abs=0.3)
    assert stay.scans == (None if scan_every is None else int(stay.seconds // scan_every))


@pytest.mark.parametrize("balancing", ["0\n", ""])
def test_a_short_look_while_autonuma_is_off(tmp_path: Path, balancing: str) -> None:
    stay = Scene(balancing=balancing).watch(tmp_path)
    assert stay.stayed
    assert stay.seconds <= 0.6
    assert stay.evidence == "nothing came back; AutoNUMA is off"


def test_looks_cost_a_twentieth_of_the_time_at_most(tmp_path: Path) -> None:
    scene = Scene(scan_every=None, look_costs=1.0)
    stay = scene.watch(tmp_path)
    assert len(scene.looks) <= 2 + stay.seconds / 20


def test_a_cancel_and_the_end_of_the_process_pass_through(tmp_path: Path) -> None:
    def cancel() -> None:
        if scene.now > 104:
            raise Stopped(Reason.CANCELLED, "cancelled")

    scene = Scene()
    scene.check = cancel
    with pytest.raises(Stopped):
        scene.watch(tmp_path)
    assert scene.now < 104.5


def test_the_process_ends(tmp_path: Path) -> None:
    with pytest.raises(ProcessEnded):
        Scene(ends_at=103.0).watch(tmp_path)


def test_scan_period(tmp_path: Path) -> None:
    assert scan_period_max(Kernel(proc=tmp_path, sys=tmp_path)) == 60.0
    path = tmp_path / "kernel/debug/sched/numa_balancing"
    path.mkdir(parents=True)
    (path / "scan_period_max_ms").write_text("1500\n")
    assert scan_period_max(Kernel(proc=tmp_path, sys=tmp_path)) == 1.5
