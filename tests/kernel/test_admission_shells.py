# SPDX-License-Identifier: Apache-2.0
"""A target that has to be made ready first: its pool raised, page cache pushed out; and all given back.

Compaction is in test_compaction.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from numaplacement.engine.contiguity import compact
from numaplacement.engine.host import safe_on
from numaplacement.engine.kernel import MPOL_MF_MOVE_ALL, Kernel
from numaplacement.engine.poolgrowth import GrownPools
from numaplacement.engine.pools import PoolPlan, largest_block, plan_pool, read_pools, wandered
from numaplacement.engine.reclaim import Means, admissible, push_out, read_offer, read_room
from tests.kernel.memory_process import (
    MIB,
    PAGE,
    MemoryProcess,
    free_above_watermarks,
    memory_process,
    nearly_full,
    vmstat,
    wait_for,
)

HUGE = 2 * MIB
NODES = Path("/sys/devices/system/node")
POOL = "hugepages/hugepages-2048kB/nr_hugepages"
PAGES = 8
pytestmark = pytest.mark.usefixtures("autonuma_off")


@contextlib.contextmanager
def on_cpus_of(numa_node: int) -> Iterator[None]:
    """Run on the CPUs of one NUMA node, so that memory is taken there."""
    before = os.sched_getaffinity(0)
    first, _, last = (NODES / f"node{numa_node}/cpulist").read_text().strip().partition("-")
    os.sched_setaffinity(0, range(int(first), int(last or first) + 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def move(process: MemoryProcess, pages: int, size: int, target: int, *, first: int = 0) -> None:
    """Move pages of a process's first region by the plain call."""
    addresses = process.addresses[0] + np.arange(first, first + pages, dtype=np.uint64) * np.uint64(size)
    result = Kernel().move_pages(process.pid, addresses, numa_node=target, flags=MPOL_MF_MOVE_ALL)
    assert (result.errno, result.not_moved) == (0, 0)
    assert (result.status == target).all()


def test_compacting_a_numa_node_that_is_not_there_is_a_result() -> None:
    assert compact(77, Kernel()).errno != 0


def totals() -> dict[int, int]:
    return {node: int((NODES / f"node{node}" / POOL).read_text()) for node in range(4)}


@pytest.fixture
def child() -> Iterator[MemoryProcess]:
    """Eight pages of the pool of NUMA node 1, which has one more; the pools as before at the end."""
    before = totals()
    (NODES / "node1" / POOL).write_text(str(PAGES + 1))
    try:
        with memory_process(("hugetlb", PAGES * HUGE, [1])) as process:
            yield process
    finally:
        for node, count in before.items():
            (NODES / f"node{node}" / POOL).write_text(str(count))
        assert totals() == before


def plan(*, allowed: bool = True) -> PoolPlan:
    kernel = Kernel()
    return plan_pool(
        PAGES * HUGE,
        pools=read_pools(kernel, HUGE),
        numa_node=0,
        allowed=allowed,
        largest_block=largest_block(kernel),
    )


def surplus() -> int:
    return read_pools(Kernel(), HUGE).surplus


def test_a_pool_grows_and_the_source_gives_as_much_back(child: MemoryProcess) -> None:
    before = totals()
    with GrownPools(Kernel()) as grown:
        growth = grown.grow(plan())
        assert (growth.pages, growth.evidence) == (PAGES, "")
        assert totals() == {**before, 0: before[0] + PAGES}
        move(child, PAGES, HUGE, 0)
        grown.left(numa_node=0, page_size=HUGE, by_source={1: PAGES})
    assert [back.kept for back in grown.given_back] == [0]
    assert totals() == {**before, 0: before[0] + PAGES, 1: 1}
    assert surplus() == 0
    assert child.ask("intact") == "True"


def test_ended_in_the_middle_each_pool_has_what_is_on_it(child: MemoryProcess) -> None:
    before = totals()
    with contextlib.suppress(KeyboardInterrupt), GrownPools(Kernel()) as grown:
        grown.grow(plan())
        move(child, 3, HUGE, 0)
        grown.left(numa_node=0, page_size=HUGE, by_source={1: 3})
        raise KeyboardInterrupt
    assert totals() == {**before, 0: before[0] + 3, 1: PAGES + 1 - 3}
    assert surplus() == 0
    assert child.ask("intact") == "True"


def test_the_process_dies_in_the_middle_and_all_is_as_before(child: MemoryProcess) -> None:
    before = totals()
    with GrownPools(Kernel()) as grown:
        grown.grow(plan())
        move(child, 3, HUGE, 0)
        os.kill(child.pid, signal.SIGKILL)
        child.process.wait()
        wait_for(lambda: read_pools(Kernel(), HUGE).free == sum(totals().values()))
    assert totals() == before
    assert surplus() == 0


@pytest.mark.usefixtures("child")
def test_no_pool_is_touched_without_the_word() -> None:
    before = read_pools(Kernel(), HUGE)
    with GrownPools(Kernel()) as grown:
        growth = grown.grow(plan(allowed=False))
        assert growth.pages == 0
        assert "8 pages of 2.0 MiB to move, 0 free in the pool of NUMA node 0" in growth.evidence
    assert wandered(before, read_pools(Kernel(), HUGE)) == ""


def test_without_a_page_in_the_pool_the_kernel_changes_pools_in_silence(child: MemoryProcess) -> None:
    """Why no more than what is free in the target's pool is ever moved in a call."""
    before = read_pools(Kernel(), HUGE)
    assert before.usable(0) == 0
    move(child, 2, HUGE, 0)
    assert wandered(before, read_pools(Kernel(), HUGE)).endswith("NUMA node 0 from 0 to 2, NUMA node 1 from 9 to 7")


def ram_disk() -> Path:
    """A disk in memory; however it is used first, the module has only these settings."""
    subprocess.run(["modprobe", "brd", "rd_nr=1", f"rd_size={512 * 1024}"], check=True)
    return Path("/dev/ram0")


@contextlib.contextmanager
def page_cache(numa_node: int, size: int) -> Iterator[None]:
    """Clean page cache on a NUMA node: that of an empty RAM disk, which takes no memory itself."""
    with ram_disk().open("rb", buffering=0) as disk, on_cpus_of(numa_node):  # the last to close it drops it
        buffer = bytearray(MIB)
        for _ in range(size // MIB):
            assert disk.readinto(buffer) == MIB
        yield


@pytest.mark.skipif(not (NODES / "node1/reclaim").exists(), reason="from Linux 6.17 on")
def test_page_cache_is_pushed_out_on_request() -> None:
    kernel = Kernel()
    with page_cache(1, 256 * MIB):
        assert read_offer(1, kernel).means is Means.ON_REQUEST
        before, others, swapped = safe_on(1, kernel), safe_on(2, kernel), vmstat("pswpout")
        done = push_out(64 * MIB, numa_node=1, kernel=kernel, check=lambda: None)
        assert 60 * MIB <= done.gained <= 128 * MIB, done
        assert safe_on(1, kernel) >= before + 56 * MIB
        assert abs(safe_on(2, kernel) - others) < 16 * MIB
        assert vmstat("pswpout") == swapped


@pytest.mark.skipif((NODES / "node1/reclaim").exists(), reason="before Linux 6.17")
def test_kswapd_makes_room_while_memory_moves() -> None:
    kernel, size = Kernel(), 96 * MIB
    with nearly_full(1, leave=176 * MIB), memory_process(("base", size, [2])) as child, page_cache(1, 112 * MIB):
        safe, offered = safe_on(1, kernel), read_offer(1, kernel)
        assert safe < size
        assert offered.means is Means.BY_KSWAPD
        refused, found = (
            admissible(numa_node=1, safe=safe, need=size, offered=offered, allowed=allowed) for allowed in (False, True)
        )
        assert not refused.admitted
        assert found.admitted, found.evidence
        direct, moved = vmstat("pgscan_direct"), 0
        while moved < size // PAGE:
            wait_for(lambda: read_room(1, kernel, allowed=True) >= PAGE)
            count = min(read_room(1, kernel, allowed=True) // PAGE, 1024, size // PAGE - moved)
            move(child, count, PAGE, 1, first=moved)
            moved += count
        assert child.pages(region=0) == {1: size // PAGE}
        assert vmstat("pgscan_direct") == direct
        wait_for(lambda: free_above_watermarks(1))
        assert child.ask("intact") == "True"
