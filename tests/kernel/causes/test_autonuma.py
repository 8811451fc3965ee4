# SPDX-License-Identifier: Apache-2.0
"""Memory that the kernel's own balancing hides or takes back, and memory that is new."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.reasons import Reason
from numaplacement.engine.survey import HIDDEN
from numaplacement.engine.surveyor import survey
from numaplacement.engine.verdict import Outcome
from tests.kernel.causes.cause_process import AtVerify, cause_process, setting
from tests.kernel.causes.record import Judge
from tests.kernel.memory_process import MIB, PAGE, memory_process, wait_for
from tests.kernel.test_engine_move import asked_residue, move

DEBUG = Path("/sys/kernel/debug/sched/numa_balancing")
HIDES = (6, 1)


def hides() -> bool:
    """Whether this kernel hides pages with a NUMA hint from move_pages(2)."""
    return tuple(int(number) for number in platform.release().split(".")[:2]) == HIDES


@pytest.fixture
def balancing(numa_balancing: Callable[[bool], None]) -> Iterator[None]:
    """AutoNUMA at work, and in a hurry."""
    with contextlib.ExitStack() as stack:
        for name, value in (("scan_delay_ms", "100"), ("scan_period_min_ms", "100"), ("scan_period_max_ms", "200")):
            stack.enter_context(setting(DEBUG / name, value))
        numa_balancing(True)
        yield


@pytest.mark.cause(Reason.HIDDEN_BY_NUMA_HINT)
@pytest.mark.usefixtures("balancing")
def test_pages_with_a_numa_hint(
    judge: Judge, absent: Callable[[str], None], numa_balancing: Callable[[bool], None]
) -> None:
    """AutoNUMA has marked pages to see who touches them next"""
    if not hides():
        absent("move_pages finds these pages")
    with memory_process(("base", 8 * MIB, [1, 2])) as child:
        os.sched_setaffinity(child.pid, {3})
        assert child.ask("rewrite 100000") == "started"
        wait_for(lambda: hidden(child.pid) > 0)
        child.stop()
        numa_balancing(False)
        count = hidden(child.pid)
        verdict = move(child.pid)
        judge(verdict, overcome=count * PAGE)
        assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {})
        assert child.pages(region=0) == {0: 8 * MIB // PAGE}


@pytest.mark.cause(Reason.HIDDEN_BY_NUMA_HINT)
@pytest.mark.usefixtures("autonuma_off")
def test_pages_that_look_as_with_a_numa_hint_and_cannot_be_touched(judge: Judge) -> None:
    """pages that nobody may touch (PROT_NONE), which the kernel marks in the same way"""
    with cause_process(("forbidden", 2 * MIB, [1]), ("base", 2 * MIB, [2])) as child:
        verdict = move(child.pid)
        if hides():
            judge(verdict, least=2 * MIB, most=2 * MIB)
        else:
            judge(verdict, overcome=2 * MIB)
            assert child.pages(region=0) == {0: 2 * MIB // PAGE}
        assert child.pages(region=1) == {0: 2 * MIB // PAGE}
        assert child.ask("intact") == "True"


def hidden(pid: int) -> int:
    return sum(int(((part.flags & HIDDEN) != 0).sum()) for part in survey(pid, Kernel()).pages)


@pytest.mark.cause(Reason.MOVED_BACK)
@pytest.mark.usefixtures("balancing")
def test_autonuma_takes_it_back(judge: Judge) -> None:
    """AutoNUMA, and a thread left on NUMA node 2 that touches all of it"""
    with memory_process(("base", 4 * MIB, [2])) as child:
        os.sched_setaffinity(child.pid, {2})
        assert child.ask("rewrite 1000000") == "started"
        watch = AtVerify(then=lambda: wait_for(lambda: child.pages(region=0).get(2, 0) >= 8))
        verdict = move(child.pid, watch, follow_threads=False)
        judge(verdict, least=PAGE)
        assert verdict.outcome is Outcome.RESIDUE
        assert verdict.calls.count > 0


@pytest.mark.cause(Reason.AUTO_NUMA)
@pytest.mark.usefixtures("balancing")
def test_autonuma_may_take_it_back(judge: Judge) -> None:
    """AutoNUMA, and a thread that was left where it is and does nothing"""
    with memory_process(("base", 4 * MIB, [2])) as child:
        child.stop()
        verdict = move(child.pid, follow_threads=False)
        judge(verdict, least=0, most=0)
        assert verdict.outcome is Outcome.PLACED
        assert child.pages(region=0) == {0: 4 * MIB // PAGE}


@pytest.mark.cause(Reason.NEW_ON_SOURCE)
@pytest.mark.usefixtures("autonuma_off")
def test_memory_touched_after_the_pass(judge: Judge) -> None:
    """the process takes 2 MiB more on NUMA node 1 after each pass"""
    with memory_process(("base", 4 * MIB, [1])) as child:
        watch = AtVerify(then=lambda: child.ask(f"more {2 * MIB} 1") and None)
        verdict = move(child.pid, watch)
        judge(verdict, least=2 * MIB, most=2 * MIB + 64 * PAGE)
        assert verdict.grown >= 2 * MIB
        assert child.ask("intact") == "True"
