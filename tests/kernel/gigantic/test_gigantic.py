# SPDX-License-Identifier: Apache-2.0
"""Huge pages of 1 GiB, which the kernel has only when it was booted with some (the Makefile says how).

They move to a free page of the target's pool or not at all: such a pool is never raised.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Allow, Outcome, PageClass
from tests.kernel.causes.cause_process import NUMA_NODES, cause_process
from tests.kernel.memory_process import MIB, PAGE
from tests.kernel.test_engine_move import asked_residue, move
from tests.kernel.test_engine_refusals import refused, untouched

GIB = 1 << 30
BOOT = "hugepagesz=1G hugepages=1:1,2:1"
pytestmark = pytest.mark.usefixtures("autonuma_off", "booted")


def pools(name: str = "nr_hugepages") -> dict[int, int]:
    folder = "hugepages/hugepages-1048576kB"
    return {node: int((NUMA_NODES / f"node{node}" / folder / name).read_text()) for node in range(4)}


@pytest.fixture(scope="module")
def booted() -> None:
    """One page each on NUMA nodes 1 and 2, and none elsewhere."""
    assert BOOT in Path("/proc/cmdline").read_text(), f"boot with {BOOT}"
    assert "pdpe1gb" in Path("/proc/cpuinfo").read_text()
    assert pools() == pools("free_hugepages") == {0: 0, 1: 1, 2: 1, 3: 0}


def test_a_page_moves_to_a_free_page_of_the_targets_pool() -> None:
    before = pools()
    with cause_process(("gigantic", GIB, [1]), ("base", 2 * MIB, [3])) as child:
        assert child.pages(region=0) == {1: GIB // PAGE}
        verdict = move(child.pid, target=2)
        assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {}), verdict
        assert child.pages(region=0) == {2: GIB // PAGE}
        assert sum(row.bytes for row in verdict.after if row.page_class is PageClass.HUGETLB) == GIB
        assert pools() == before
        assert pools("free_hugepages") == {0: 0, 1: 1, 2: 0, 3: 0}
        assert child.ask("intact") == "True"


@pytest.mark.parametrize("allow", [frozenset(), frozenset({Allow.GROW_HUGE_PAGES})], ids=["", "GrowHugePages"])
def test_without_a_page_in_the_targets_pool_it_is_refused(allow: frozenset[Allow]) -> None:
    before = pools()
    with cause_process(("gigantic", GIB, [1])) as child:
        with untouched(child):
            verdict = move(child.pid, target=3, allow=allow)
            refused(verdict, Reason.HUGEPAGE_POOL)
        assert pools() == before
        assert child.pages(region=0) == {1: GIB // PAGE}


def test_a_page_that_is_promised_to_another_process_is_not_taken() -> None:
    """Who maps pages of a pool is promised as many, and is killed where one is missing when it touches it."""
    with cause_process(("gigantic", GIB, [1])) as child, cause_process(("base", MIB, [3])) as other:
        assert other.ask(f"promise {GIB}") == "done"
        with untouched(child):
            refused(move(child.pid, target=2), Reason.HUGEPAGE_POOL)
        assert other.ask("redeem") == "done"
        assert pools("free_hugepages") == dict.fromkeys(range(4), 0)
