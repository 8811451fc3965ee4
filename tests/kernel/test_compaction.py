# SPDX-License-Identifier: Apache-2.0
"""A target whose free memory is in pieces is compacted, so that huge pages stay whole; where it cannot be is in causes.

What lies between the pieces is memory of a process, every second page of it, which the kernel may move. How much of it
one run of its compaction puts together is the kernel's affair: mostly it is enough, now and then hardly anything.
"""

from __future__ import annotations

import pytest

from numaplacement.engine.contiguity import read_blocks
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Outcome, PageClass
from tests.kernel.causes.cause_process import THP, fragments
from tests.kernel.memory_process import PAGE, memory_process, vmstat
from tests.kernel.test_engine_move import asked_residue, move

UNWANTED = ("thp_migration_split", "compact_stall", "pgscan_direct", "pgscan_kswapd")
"""What the kernel counts when it makes room for one page at a time: huge pages split, searches, reclaim."""
LAYOUTS = 4
pytestmark = pytest.mark.usefixtures("autonuma_off")


def stayed_whole() -> bool:
    """Move huge pages to a target in pieces; say whether compaction made room for all, as told beforehand."""
    size = 4 * THP
    with fragments(compactable=True), memory_process(("thp", size, [1])) as child:
        assert read_blocks(0, Kernel(), THP).usable < size
        before = [vmstat(name) for name in UNWANTED]
        verdict = move(child.pid)
        counted = [after - earlier for earlier, after in zip(before, map(vmstat, UNWANTED), strict=True)]
        assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {})
        whole = sum(row.bytes for row in verdict.after if row.page_class is PageClass.ANON_HUGE)
        assert whole + verdict.split == size
        assert child.pages(region=0) == {0: size // PAGE}
        assert child.ask("intact") == "True"
        told = any(note.reason is Reason.HUGE_PAGES_SPLIT for note in verdict.notes)
        assert told or (counted, verdict.split) == ([0] * len(UNWANTED), 0)
        return not told


def test_a_move_has_its_target_compacted_and_no_huge_page_is_split() -> None:
    assert any(stayed_whole() for _ in range(LAYOUTS))
