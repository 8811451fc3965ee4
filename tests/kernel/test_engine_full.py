# SPDX-License-Identifier: Apache-2.0
"""A target that is nearly full: nobody there is made to give memory back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Outcome
from tests.kernel.causes.record import Judge
from tests.kernel.memory_process import (
    MIB,
    MemoryProcess,
    fill,
    free_above_watermarks,
    memory_process,
    nearly_full,
    reclaim,
)
from tests.kernel.test_engine_move import Watch, move, residue
from tests.kernel.test_engine_refusals import refused, untouched

LEFT = 80 * MIB
pytestmark = pytest.mark.usefixtures("autonuma_off")


@pytest.fixture(scope="module")
def hog() -> Iterator[MemoryProcess]:
    """Leaves 80 MiB of NUMA node 0."""
    with nearly_full(0, leave=LEFT) as process:
        yield process


@pytest.mark.cause(Reason.DESTINATION_FULL)
def test_a_target_too_full_is_left_alone(judge: Judge, hog: MemoryProcess) -> None:
    """a target that others have filled but for 80 MiB"""
    with memory_process(("thp", 96 * MIB, [1, 2])) as child, untouched(child):
        fill(hog, 0, leave=LEFT)
        verdict = move(child.pid)
        refused(verdict, Reason.DESTINATION_FULL)
        judge(verdict, least=96 * MIB)
        assert residue(verdict)[Reason.DESTINATION_FULL] >= 96 * MIB
    assert hog.process.poll() is None


def test_the_target_fills_up_while_memory_moves(hog: MemoryProcess) -> None:
    with memory_process(("base", 48 * MIB, [1, 2])) as child:
        fill(hog, 0, leave=LEFT)
        watch = Watch(after=3, then=lambda: hog.ask(f"more {64 * MIB} 0") and None)
        scanned = reclaim()
        verdict = move(child.pid, watch, call_latency=0.02)
        assert residue(verdict).get(Reason.DESTINATION_FULL, 0) > 0
        assert verdict.outcome is Outcome.RESIDUE
        assert verdict.moved > 0
        assert reclaim() == scanned
        assert free_above_watermarks(0)
        assert child.ask("intact") == "True"
