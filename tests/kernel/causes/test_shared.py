# SPDX-License-Identifier: Apache-2.0
"""Memory that others map too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Outcome
from tests.kernel.causes.cause_process import cause_process
from tests.kernel.causes.record import Judge
from tests.kernel.memory_process import MIB, PAGE, in_a_fork, memory_process, wait_for
from tests.kernel.test_engine_move import move
from tests.kernel.test_engine_refusals import CAP_SYS_NICE, drop

KSM = Path("/sys/kernel/mm/ksm")
pytestmark = pytest.mark.usefixtures("autonuma_off")


@pytest.mark.cause(Reason.SHARED_WITHOUT_PRIVILEGE)
def test_a_memfd_that_a_second_process_maps(judge: Judge) -> None:
    """a memfd that a second process maps, without CAP_SYS_NICE"""
    with memory_process(("memfd", 4 * MIB, [1]), share=True) as child:
        verdict = in_a_fork(lambda: drop(CAP_SYS_NICE), lambda: move(child.pid))
        judge(verdict, least=4 * MIB)
        assert child.pages(region=0) == {1: 4 * MIB // PAGE}
        assert move(child.pid).outcome is Outcome.PLACED
        assert child.pages(region=0) == {0: 4 * MIB // PAGE}
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.SHARED_WITH_HELPER)
def test_a_second_process_whose_memory_moves_along(judge: Judge) -> None:
    """a memfd that a second process maps, as a VM's with virtiofsd"""
    with memory_process(("memfd", 4 * MIB, [1]), share=True) as child:
        verdict = move(child.pid)
        judge(verdict, least=4 * MIB, most=4 * MIB + 2 * PAGE)  # and the region's guards
        assert verdict.outcome is Outcome.PLACED
        assert child.pages(region=0) == {0: 4 * MIB // PAGE}
        assert child.ask("intact") == "True"


@pytest.fixture
def ksm() -> Iterator[None]:
    """KSM at work; afterwards nothing is merged any more."""
    (KSM / "sleep_millisecs").write_text("10")
    (KSM / "pages_to_scan").write_text("2000")
    (KSM / "run").write_text("1")
    yield
    (KSM / "run").write_text("2")
    (KSM / "run").write_text("0")


@pytest.mark.cause(Reason.KSM_SHARED)
@pytest.mark.usefixtures("ksm")
def test_pages_ksm_has_merged_with_another_process(judge: Judge) -> None:
    """256 pages of four contents, merged by KSM with those of another process"""
    mergeable = ("mergeable", 256 * PAGE, [1])
    with cause_process(mergeable) as neighbour, cause_process(mergeable, ("base", 2 * MIB, [2])) as child:
        wait_for(lambda: merged() == 2 * 256 - 4)
        before = child.pages(region=0)
        verdict = move(child.pid)
        judge(verdict, least=256 * PAGE, most=256 * PAGE)
        assert verdict.outcome is Outcome.RESIDUE
        assert child.pages(region=0) == neighbour.pages(region=0) == before
        assert child.pages(region=1) == {0: 2 * MIB // PAGE}
        assert (child.ask("intact"), neighbour.ask("intact")) == ("True", "True")


@pytest.mark.cause(Reason.KSM_SHARED)
@pytest.mark.usefixtures("ksm")
def test_pages_ksm_has_merged_within_the_process(judge: Judge) -> None:
    """256 pages of four contents, merged by KSM within one process alone"""
    with cause_process(("mergeable", 256 * PAGE, [1])) as child:
        wait_for(lambda: merged() == 256 - 4)
        verdict = move(child.pid)
        judge(verdict, overcome=256 * PAGE)
        assert verdict.outcome is Outcome.PLACED
        assert child.pages(region=0) == {0: 256}
        assert child.ask("intact") == "True"


def merged() -> int:
    return int((KSM / "pages_sharing").read_text())
