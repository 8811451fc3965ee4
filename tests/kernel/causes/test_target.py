# SPDX-License-Identifier: Apache-2.0
"""A target that cannot take memory, or not as it is; a full one is in test_engine_full.py."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Allow, Outcome, PageClass
from tests.kernel.causes.cause_process import NUMA_NODES, cause_process, fragments, setting, status_kib
from tests.kernel.causes.record import Judge
from tests.kernel.memory_process import MIB, PAGE, MemoryProcess, memory_process, vmstat
from tests.kernel.test_engine_move import move

THP = 2 * MIB
pytestmark = pytest.mark.usefixtures("autonuma_off")


@pytest.fixture(scope="module")
def fragmented() -> Iterator[MemoryProcess]:
    """NUMA node 0 in pieces that the kernel may not put together."""
    with fragments(compactable=False) as hog:
        yield hog


@pytest.mark.cause(Reason.HUGE_PAGES_SPLIT)
@pytest.mark.usefixtures("fragmented")
def test_huge_pages_are_split_where_no_block_is_free(judge: Judge) -> None:
    """transparent huge pages, and a target that has room and not one free block of 2 MiB"""
    with memory_process(("thp", 8 * THP, [1])) as child:
        splits = vmstat("thp_split_page")
        verdict = move(child.pid)
        assert vmstat("thp_split_page") > splits
        judge(verdict, least=THP, most=8 * THP)
        assert verdict.outcome is Outcome.PLACED
        assert child.pages(region=0) == {0: 8 * THP // PAGE}
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.HUGEPAGE_POOL)
@pytest.mark.usefixtures("fragmented")
@pytest.mark.parametrize("allow", [frozenset(), frozenset({Allow.GROW_HUGE_PAGES})], ids=["", "and GrowHugePages"])
def test_pages_of_a_pool_where_no_block_is_free(judge: Judge, allow: frozenset[Allow]) -> None:
    """pages of a huge-page pool, and a target without a pool and without a free block of 2 MiB"""
    with pool(1, 4), memory_process(("hugetlb", 4 * THP, [1]), ("base", 2 * MIB, [2])) as child:
        verdict = move(child.pid, allow=allow)
        if allow and verdict.outcome is Outcome.PLACED:  # newer kernels find blocks when they are told to
            judge(verdict, overcome=4 * THP)
            assert child.pages(region=0) == {0: 4 * THP // PAGE}
        else:
            judge(verdict, least=THP, most=4 * THP)
        assert child.ask("intact") == "True"


@contextlib.contextmanager
def pool(numa_node: int, pages: int) -> Iterator[Path]:
    """A pool of 2 MiB pages on a NUMA node."""
    with setting(NUMA_NODES / f"node{numa_node}/hugepages/hugepages-2048kB/nr_hugepages", str(pages)):
        yield NUMA_NODES / f"node{numa_node}/hugepages/hugepages-2048kB"


@pytest.fixture
def swap() -> Iterator[None]:
    """Swap in compressed memory."""
    subprocess.run(["modprobe", "zram", "num_devices=1"], check=True)
    Path("/sys/block/zram0/disksize").write_text(str(64 * MIB))
    subprocess.run(["mkswap", "/dev/zram0"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", "/dev/zram0"], check=True)
    yield
    subprocess.run(["swapoff", "/dev/zram0"], check=True)
    Path("/sys/block/zram0/reset").write_text("1")


@pytest.mark.cause(Reason.SWAPPED)
@pytest.mark.usefixtures("swap")
def test_swapped_memory_is_read_back_on_the_target(judge: Judge) -> None:
    """memory swapped out to zram"""
    with cause_process(("base", 8 * MIB, [1])) as child:
        assert child.ask("pageout 0") == "done"
        swapped = status_kib(child.pid, "VmSwap") * 1024
        assert swapped >= 4 * MIB
        verdict = move(child.pid)
        judge(verdict, overcome=swapped)
        assert verdict.outcome is Outcome.PLACED
        assert child.pages(region=0) == {0: 8 * MIB // PAGE}
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.SWAPPED)
@pytest.mark.usefixtures("swap")
def test_swapped_shared_memory_is_read_back_on_the_target(judge: Judge) -> None:
    """memory of a memfd, as of VMs with virtiofs, swapped out to zram"""
    with cause_process(("memfd", 8 * MIB, [1])) as child:
        assert child.ask("pageout 0") == "done"
        swapped = 8 * MIB - sum(child.pages(region=0).values()) * PAGE
        assert swapped >= 4 * MIB
        verdict = move(child.pid)
        assert sum(row.bytes for row in verdict.before if row.page_class is PageClass.SWAPPED) >= swapped
        judge(verdict, overcome=swapped)
        assert verdict.outcome is Outcome.PLACED
        assert child.pages(region=0) == {0: 8 * MIB // PAGE}
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.SWAPPED)
@pytest.mark.usefixtures("swap")
def test_swapped_memory_stays_so_where_the_target_has_no_cpu(judge: Judge) -> None:
    """memory swapped out, and a target whose only CPU is offline, so that nobody can read it back there"""
    with (
        cause_process(("base", 8 * MIB, [1])) as child,
        setting("/sys/devices/system/cpu/cpu3/online", "0"),
    ):
        assert child.ask("pageout 0") == "done"
        swapped = status_kib(child.pid, "VmSwap") * 1024
        verdict = move(child.pid, target=3)
        judge(verdict, least=swapped - 16 * PAGE, most=swapped)
        assert child.ask("intact") == "True"
