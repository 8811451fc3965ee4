# SPDX-License-Identifier: Apache-2.0
"""A target whose free memory is in pieces is compacted, so that huge pages stay whole; where it cannot be is in causes.

What lies between the pieces is memory of a process, every second page of it: that can always be put together, whatever
layout booting left.
"""

from __future__ import annotations

import pytest

from numaplacement.engine.contiguity import read_blocks
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Outcome, PageClass
from tests.kernel.causes.cause_process import THP, fragments
from tests.kernel.memory_process import MIB, PAGE, memory_process, vmstat
from tests.kernel.test_engine_move import asked_residue, move

UNWANTED = ("thp_migration_split", "compact_stall", "pgscan_direct", "pgscan_kswapd")
"""What the kernel counts when it makes room for one page at a time: huge pages split, searches, reclaim."""
pytestmark = pytest.mark.usefixtures("autonuma_off")


def test_a_move_has_its_target_compacted_and_no_huge_page_is_split() -> None:
    size, kernel = 8 * THP, Kernel()
    with fragments(compactable=True), memory_process(("thp", size, [1])) as child:
        assert read_blocks(0, kernel, THP).usable < size
        before = [vmstat(name) for name in UNWANTED]
        verdict = move(child.pid)
        assert [vmstat(name) for name in UNWANTED] == before
        assert (verdict.outcome, asked_residue(verdict), verdict.split) == (Outcome.PLACED, {}, 0)
        assert not [note for note in verdict.notes if note.reason is Reason.HUGE_PAGES_SPLIT]
        assert sum(row.bytes for row in verdict.after if row.page_class is PageClass.ANON_HUGE) == size
        assert child.pages(region=0) == {0: size // PAGE}
        assert child.ask("intact") == "True"
        compacted = read_blocks(0, kernel, THP)
        assert compacted.usable >= compacted.possible // 2 >= 8 * MIB
