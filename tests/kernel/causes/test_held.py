# SPDX-License-Identifier: Apache-2.0
"""Memory that something holds: I/O buffers, a pipe, a migration that hangs."""

from __future__ import annotations

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Outcome
from tests.kernel.causes.cause_process import cause_process, counted
from tests.kernel.causes.record import Judge
from tests.kernel.causes.stuck_disk import Migration, stuck_disk
from tests.kernel.memory_process import MIB, PAGE, memory_process, wait_for
from tests.kernel.test_engine_move import asked_residue, move

THP = 2 * MIB
pytestmark = pytest.mark.usefixtures("autonuma_off")


@pytest.mark.cause(Reason.PINNED_BY_IO)
def test_registered_io_buffers(judge: Judge) -> None:
    """32 pages registered with io_uring as fixed buffers"""
    with cause_process(("base", 8 * MIB, [1, 2])) as child:
        pinned = counted(1, "nr_foll_pin_acquired") - counted(1, "nr_foll_pin_released")
        assert child.ask("register 32") == "done"
        assert counted(1, "nr_foll_pin_acquired") - counted(1, "nr_foll_pin_released") == pinned + 32
        verdict = move(child.pid)
        judge(verdict, least=32 * PAGE, most=32 * PAGE)
        assert asked_residue(verdict) == {Reason.PINNED_BY_IO: 32 * PAGE}
        assert child.pages(region=0) == {0: 8 * MIB // PAGE - 32, 1: 32}
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.EXTRA_REFERENCE)
def test_one_page_in_a_pipe_keeps_its_whole_huge_page(judge: Judge) -> None:
    """one page of a transparent huge page in a pipe, by vmsplice"""
    with memory_process(("thp", 4 * THP, [1]), hold=1) as child:
        verdict = move(child.pid)
        judge(verdict, least=THP, most=THP)
        assert verdict.outcome is Outcome.RESIDUE
        assert child.pages(region=0) == {0: 3 * THP // PAGE, 1: THP // PAGE}
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.BUSY)
def test_pages_another_migration_has_taken_off_their_list(judge: Judge) -> None:
    """another migration has isolated the pages and waits for a disk that does not answer"""
    size = 8 * MIB
    with (
        stuck_disk() as disk,
        cause_process(("base", size, [1]), ("file", 2 * size, [1]), of_regions={1: disk.one_page}) as child,
    ):
        assert child.addresses[1] < child.addresses[0], "what hangs must come first"
        with Migration(child.pid, origin=1, to=2) as other, disk.holding_a_write():
            other.start()
            wait_for(lambda: other.waits() and counted(1, "nr_isolated_anon") * PAGE >= size // 2)
            verdict = move(child.pid)
            left = child.pages(region=0)[1] * PAGE  # the other one may have gone on for a moment
            assert left >= size // 2
            judge(verdict, least=left, most=left + 4 * MIB)  # and what else the process has on NUMA node 1
        assert move(child.pid).outcome is Outcome.PLACED
        assert child.pages(region=0) == {0: size // PAGE}
        assert child.ask("intact") == "True"
