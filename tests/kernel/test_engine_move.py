# SPDX-License-Identifier: Apache-2.0
"""The engine moves memory of real processes on a kernel with four NUMA nodes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.reasons import NOT_ASKED, Reason
from numaplacement.engine.run import run
from numaplacement.engine.survey import HIDDEN
from numaplacement.engine.surveyor import located_bytes, survey
from numaplacement.engine.verdict import Outcome, PageClass, Progress, Request, Stage, Verdict
from tests.kernel.causes.record import Judge
from tests.kernel.memory_process import (
    MIB,
    PAGE,
    memory_process,
    vmstat,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("autonuma_off")
SLOW = 5.0  # a call latency no emulated call reaches: chunks grow, tests stay short


@dataclass
class Watch:
    """Takes note of progress, and does something when a move has been reported so many times."""

    then: Callable[[], None] = lambda: None
    after: int = 0
    cancel: bool = False
    seen: list[Progress] = field(default_factory=list)

    def progressed(self, progress: Progress, /) -> None:
        self.seen.append(progress)
        if sum(each.stage is Stage.MOVE for each in self.seen) == self.after and progress.stage is Stage.MOVE:
            self.then()

    def cancelled(self) -> bool:
        return self.cancel


def move(pid: int, watch: Watch | None = None, **wish: object) -> Verdict:
    request = Request(**{"target": 0, "call_latency": SLOW, **wish})  # type: ignore[arg-type]
    verdict = run(pid=pid, request=request, kernel=Kernel(), watcher=watch or Watch())
    assert_sums_close(verdict, request.target)
    return verdict


def assert_sums_close(verdict: Verdict, target: int) -> None:
    before, after = (sum(row.bytes for row in rows) for rows in (verdict.before, verdict.after))
    assert before - verdict.freed + verdict.grown == after
    away = sum(row.bytes for row in verdict.after if row.numa_node != target)
    assert sum(row.bytes for row in verdict.residue) == away
    for numa_node in {row.numa_node for row in verdict.after} - {target}:
        there = sum(row.bytes for row in verdict.after if row.numa_node == numa_node)
        assert sum(row.bytes for row in verdict.residue if row.numa_node == numa_node) == there


def by_numa_node(rows: tuple[object, ...]) -> dict[int, int]:
    pages: dict[int, int] = {}
    for row in rows:
        pages[row.numa_node] = pages.get(row.numa_node, 0) + row.bytes // PAGE  # type: ignore[attr-defined]
    return pages


def residue(verdict: Verdict) -> dict[Reason, int]:
    sums: dict[Reason, int] = {}
    for row in verdict.residue:
        sums[row.reason] = sums.get(row.reason, 0) + row.bytes
    return sums


def asked_residue(verdict: Verdict) -> dict[Reason, int]:
    return {reason: count for reason, count in residue(verdict).items() if reason not in NOT_ASKED}


def test_base_pages_of_three_numa_nodes_come_together_on_one() -> None:
    with memory_process(("base", 48 * MIB, [1, 2, 3])) as child:
        child.stop()
        before = child.pages()
        assert min(before[numa_node] for numa_node in (1, 2, 3)) >= 4096, before
        verdict = move(child.pid)
        after = child.pages()
        assert by_numa_node(verdict.before) == before
        assert by_numa_node(verdict.after) == after
        assert child.pages(region=0) == {0: 48 * MIB // PAGE}
        assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {})
        assert verdict.moved >= 48 * MIB
        assert verdict.threads.followed == 1
        assert child.affinity() == {0}
        assert verdict.calls.count > 0
        assert verdict.calls.p99 >= verdict.calls.p50 > 0
        os.kill(child.pid, signal.SIGCONT)
        assert child.ask("intact") == "True"


def test_survey_and_numa_maps_agree_to_the_page_whatever_the_memory_is() -> None:
    with memory_process(("base", 6 * MIB, [1, 2]), ("thp", 8 * MIB, [2, 3]), ("memfd", 3 * MIB, [3, 0])) as child:
        child.stop()
        seen = survey(child.pid, Kernel())
        assert by_numa_node(seen.rows) == child.pages()
        assert located_bytes(child.pid, Kernel()) == {node: count * PAGE for node, count in child.pages().items()}
        sums = {(row.numa_node, row.page_class): row.bytes for row in seen.rows}
        assert {node: sums.get((node, PageClass.ANON_HUGE), 0) for node in range(4)} == {
            0: 0,
            1: 0,
            2: 4 * MIB,
            3: 4 * MIB,
        }
        assert sum(count for (_, kind), count in sums.items() if kind is PageClass.SHMEM) == 3 * MIB


def test_huge_pages_move_whole() -> None:
    with memory_process(("thp", 32 * MIB, [1, 2, 3])) as child:
        child.stop()
        splits = vmstat("thp_split_page"), vmstat("thp_migration_split")
        verdict = move(child.pid)
        assert verdict.outcome is Outcome.PLACED
        assert child.pages(region=0) == {0: 32 * MIB // PAGE}
        assert {(row.numa_node, row.bytes) for row in verdict.after if row.page_class is PageClass.ANON_HUGE} == {
            (0, 32 * MIB)
        }
        assert (vmstat("thp_split_page"), vmstat("thp_migration_split")) == splits
        assert verdict.split == 0
        assert verdict.passes == 1
        smaps = Path(f"/proc/{child.pid}/smaps").read_text()
        assert sum(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("AnonHugePages")) == 32 * 1024


def test_contents_survive_being_written_while_they_move() -> None:
    with memory_process(("base", 16 * MIB, [1, 2, 3])) as child:
        assert child.ask("rewrite 40") == "started"
        verdict = move(child.pid, call_latency=0.02)
        assert child.ask("written") == "True"
        assert child.ask("intact") == "True"
        assert verdict.outcome in {Outcome.PLACED, Outcome.RESIDUE}
        assert child.pages(region=0).get(0, 0) >= 0.99 * 16 * MIB / PAGE


def test_memory_shared_with_another_process_moves_too() -> None:
    with memory_process(("base", 6 * MIB, [1]), ("memfd", 6 * MIB, [2]), share=True) as child:
        verdict = move(child.pid)
        assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {})
        assert child.pages(region=0) == {0: 6 * MIB // PAGE}
        assert child.pages(region=1) == {0: 6 * MIB // PAGE}
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.SHARED_FILE)
def test_program_text_of_everybody_is_left_alone(judge: Judge) -> None:
    """program text that other processes map too"""
    with memory_process(("base", 2 * MIB, [1])) as child:
        child.stop()
        before = cached_files(os.getpid())
        on = {number: sum(files.get(number, 0) for files in before.values()) for number in range(4)}
        target = min(on, key=lambda number: on[number])
        verdict = move(child.pid, target=target)
        assert cached_files(os.getpid()) == before  # what this process maps too has not moved
        row = max((row for row in verdict.residue if row.reason is Reason.SHARED_FILE), key=lambda row: row.bytes)
        assert row.permanent
        assert verdict.outcome is Outcome.PLACED
        judge(verdict)
        assert verdict.asked == sum(row.bytes for row in verdict.after) - residue(verdict)[Reason.SHARED_FILE]


def cached_files(pid: int) -> dict[str, dict[int, int]]:
    """Pages by NUMA node of each mapping that holds nothing but page cache."""
    lines = Path(f"/proc/{pid}/numa_maps").read_text().splitlines()
    return {
        line.split()[0]: {int(node): int(count) for node, count in re.findall(r" N(\d+)=(\d+)", line)}
        for line in lines
        if "file=/" in line and "anon=" not in line
    }


@pytest.mark.cause(Reason.EXTRA_REFERENCE)
def test_pages_something_refers_to_stay_alone_and_are_named(judge: Judge) -> None:
    """5 pages in a pipe, by vmsplice(2)"""
    with memory_process(("base", 8 * MIB, [1, 2]), hold=5) as child:
        verdict = move(child.pid)
        assert verdict.outcome is Outcome.RESIDUE
        assert asked_residue(verdict) == {Reason.EXTRA_REFERENCE: 5 * PAGE}
        judge(verdict, least=5 * PAGE, most=5 * PAGE)
        assert child.pages(region=0) == {0: 8 * MIB // PAGE - 5, 1: 5}
        row = next(row for row in verdict.residue if row.reason is Reason.EXTRA_REFERENCE)
        assert (row.numa_node, row.permanent) == (1, False)
        assert move(child.pid, tolerance_bytes=5 * PAGE).outcome is Outcome.PLACED


def test_where_half_a_mapping_is_held_the_other_half_moves_and_the_held_is_given_up_soon() -> None:
    with memory_process(("base", 16 * MIB, [1]), hold=2048) as child:
        verdict = move(child.pid)
        found = asked_residue(verdict)
        assert set(found) == {Reason.EXTRA_REFERENCE, Reason.NOT_ATTEMPTED}
        assert sum(found.values()) == 2048 * PAGE
        assert 64 <= found[Reason.EXTRA_REFERENCE] // PAGE <= 500
        assert verdict.calls.count < 1200


def test_a_process_that_lives_in_a_huge_page_pool_is_left_whole() -> None:
    pool = Path("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages")
    pool.write_text("4")
    try:
        with memory_process(("hugetlb", 8 * MIB, [1]), ("base", 4 * MIB, [2])) as child:
            child.stop()
            assert by_numa_node(survey(child.pid, Kernel()).rows) == child.pages()
            verdict = move(child.pid)
            assert verdict.outcome is Outcome.REFUSED
            assert residue(verdict)[Reason.HUGEPAGE_POOL] == 8 * MIB
            assert residue(verdict)[Reason.NOT_ATTEMPTED] >= 4 * MIB
            assert child.pages(region=1) == {2: 4 * MIB // PAGE}
    finally:
        pool.write_text("0")


def test_cancelled_between_two_calls() -> None:
    with memory_process(("base", 48 * MIB, [1, 2, 3])) as child:
        watch = Watch(after=2)
        watch.then = lambda: setattr(watch, "cancel", True)
        verdict = move(child.pid, watch, call_latency=0.001)
        assert verdict.outcome is Outcome.CANCELLED
        assert sum(each.stage is Stage.MOVE for each in watch.seen) in {2, 3}  # the other mover's call was under way
        assert 0 < verdict.moved < 48 * MIB
        assert residue(verdict)[Reason.CANCELLED] + verdict.moved >= 48 * MIB


def test_deadline_passes() -> None:
    with memory_process(("base", 16 * MIB, [1, 2, 3])) as child:
        verdict = move(child.pid, deadline=0.0)
        assert verdict.outcome is Outcome.DEADLINE
        assert verdict.moved == 0
        assert residue(verdict)[Reason.DEADLINE] >= 16 * MIB


def test_the_process_ends_while_it_moves() -> None:
    with memory_process(("base", 48 * MIB, [1, 2, 3])) as child:

        def end() -> None:
            child.process.kill()
            child.process.wait()

        watch = Watch(after=2, then=end)
        verdict = move(child.pid, watch, call_latency=0.001)
        assert verdict.outcome is Outcome.PROCESS_GONE
        assert verdict.freed == sum(row.bytes for row in verdict.before)
        assert move(child.pid).outcome is Outcome.PROCESS_GONE


def test_dry_run_touches_nothing() -> None:
    with memory_process(("base", 4 * MIB, [1, 2])) as child:
        child.stop()
        before, affinity = child.pages(), child.affinity()
        verdict = move(child.pid, dry_run=True)
        assert verdict.outcome is Outcome.PLANNED
        assert asked_residue(verdict)[Reason.PLANNED] >= 4 * MIB
        assert (child.pages(), child.affinity()) == (before, affinity)
        assert verdict.before == verdict.after


def test_bandwidth_is_kept() -> None:
    with memory_process(("base", 8 * MIB, [1])) as child:
        verdict = move(child.pid, bandwidth=8 * MIB)
        assert verdict.moved >= 8 * MIB
        assert 0.7 < verdict.move_seconds < 2.5


def test_threads_stay_when_they_are_to() -> None:
    with memory_process(("base", 2 * MIB, [1])) as child:
        affinity = child.affinity()
        verdict = move(child.pid, follow_threads=False)
        assert verdict.outcome is Outcome.PLACED
        assert verdict.threads.followed == 0
        assert child.affinity() == affinity


def test_memory_that_autonuma_hides_is_found_and_moved(numa_balancing: Callable[[bool], None]) -> None:
    with memory_process(("base", 8 * MIB, [1, 2]), ("thp", 8 * MIB, [2, 3])) as child:
        numa_balancing(True)
        os.sched_setaffinity(child.pid, {3})
        assert child.ask("rewrite 100000") == "started"
        kernel = Kernel()
        wait_for(lambda: any((part.flags & HIDDEN).any() for part in survey(child.pid, kernel).pages))
        child.stop()
        numa_balancing(False)
        seen = survey(child.pid, kernel)
        assert any((part.flags & HIDDEN).any() for part in seen.pages)
        assert by_numa_node(seen.rows) == child.pages()
        verdict = move(child.pid)
        assert child.pages(region=0) == {0: 8 * MIB // PAGE}
        assert child.pages(region=1)[0] >= 8 * MIB // PAGE
        assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {})
