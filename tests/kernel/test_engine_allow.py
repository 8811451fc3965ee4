# SPDX-License-Identifier: Apache-2.0
"""Each word of `allow`: what is refused without it moves with it, and only what the word permits is changed."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from numaplacement.engine.reasons import NOT_ASKED, Reason
from numaplacement.engine.verdict import Allow, Outcome, Verdict
from tests.kernel.causes.cause_process import NUMA_NODES, cause_process, counted
from tests.kernel.memory_process import (
    MIB,
    PAGE,
    MemoryProcess,
    cgroup,
    free_above_watermarks,
    mapping_start,
    memory_process,
    nearly_full,
    vmstat,
    wait_for,
)
from tests.kernel.test_admission_shells import page_cache
from tests.kernel.test_engine_move import SLOW, asked_residue, move, residue
from tests.kernel.test_engine_refusals import join, refused, untouched
from tests.rig.vm import VmSpec, numa_pages, start_vm
from tests.rig.vm_memory import memory_policy

HUGE = 2 * MIB
PAGES = 4
POOL = "hugepages/hugepages-2048kB/nr_hugepages"
pytestmark = pytest.mark.usefixtures("autonuma_off")


def refuses(child: MemoryProcess, reason: Reason, *allow: Allow, **wish: object) -> None:
    """A move with these words is refused for one reason, and nothing of the process has changed."""
    with untouched(child):
        verdict = move(child.pid, allow=frozenset(allow), **wish)
        refused(verdict, reason)
        assert [each.reason for each in verdict.refusals] == [reason]
    os.kill(child.pid, signal.SIGCONT)


def places(child: MemoryProcess, *allow: Allow, **wish: object) -> Verdict:
    """A move with these words leaves nothing behind and no byte changed."""
    verdict = move(child.pid, allow=frozenset(allow), **wish)
    assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {}), verdict
    assert child.ask("intact") == "True"
    return verdict


def pools() -> dict[int, int]:
    return {node: int((NUMA_NODES / f"node{node}" / POOL).read_text()) for node in range(4)}


@pytest.fixture
def pool() -> Iterator[dict[int, int]]:
    """Pools of huge pages: some on NUMA node 1 and 3, none on 0; as before at the end."""
    before = pools()
    for node, count in {0: 0, 1: PAGES + 1, 3: 2}.items():
        (NUMA_NODES / f"node{node}" / POOL).write_text(str(count))
    yield pools()
    for node, count in before.items():
        (NUMA_NODES / f"node{node}" / POOL).write_text(str(count))
    assert pools() == before


def test_grow_huge_pages(pool: dict[int, int]) -> None:
    assert (pool[0], pool[1], pool[3]) == (0, PAGES + 1, 2)
    with memory_process(("hugetlb", PAGES * HUGE, [1]), ("base", 2 * MIB, [2])) as child:
        refuses(child, Reason.HUGEPAGE_POOL)
        assert pools() == pool
        verdict = places(child, Allow.GROW_HUGE_PAGES)
        assert child.pages(region=0) == {0: PAGES * HUGE // PAGE}
        assert pools() == {**pool, 0: PAGES, 1: 1}
        assert not [note for note in verdict.notes if note.reason is Reason.HUGEPAGE_POOL]
    assert pools() == {**pool, 0: PAGES, 1: 1}


def test_a_pool_grows_by_no_more_than_is_missing(pool: dict[int, int]) -> None:
    with memory_process(("hugetlb", PAGES * HUGE, [1])) as child:
        places(child, Allow.GROW_HUGE_PAGES, target=3)
        assert child.pages(region=0) == {3: PAGES * HUGE // PAGE}
        assert pools() == {**pool, 3: PAGES, 1: PAGES + 1 - (PAGES - pool[3])}


def mems(group: Path) -> str:
    return (group / "cpuset.mems").read_text().strip()


def policy(child: MemoryProcess) -> str:
    return memory_policy(child.pid, mapping_start(child.pid, child.addresses[0]))


def test_rebind_cpuset() -> None:
    with (
        cgroup("allow-rebind", cpuset_mems="2") as group,
        memory_process(("base", 8 * MIB, [2]), ("thp", 8 * MIB, [2]), prepare=join(group)) as child,
    ):
        refuses(child, Reason.VM_CPUSET)
        assert mems(group) == "2"
        places(child, Allow.REBIND_CPUSET)
        assert mems(group) == "0"
        assert [child.pages(region) for region in range(2)] == [{0: 8 * MIB // PAGE}] * 2
        elsewhere = child.pages().get(1, 0)
        assert child.ask(f"more {MIB} 1") == "done"  # made later, by a thread that runs elsewhere
        assert child.pages().get(1, 0) == elsewhere


def test_strict_binding_is_moved_and_left_as_it_is() -> None:
    with memory_process(("base", 8 * MIB, [1]), ("base", 2 * MIB, [3])) as child:
        assert child.ask("bind 0 1") == "0"
        refuses(child, Reason.STRICT_BINDING)
        places(child, Allow.STRICT_BINDING)
        assert child.pages(region=0) == {0: 8 * MIB // PAGE}
        assert policy(child) == "bind:1"


def test_strict_binding_is_rebound_with_the_cpuset() -> None:
    with (
        cgroup("allow-both", cpuset_mems="2") as group,
        memory_process(("base", 8 * MIB, [2]), prepare=join(group)) as child,
    ):
        assert child.ask("bind 0 2") == "0"
        refuses(child, Reason.STRICT_BINDING, Allow.REBIND_CPUSET)
        refuses(child, Reason.VM_CPUSET, Allow.STRICT_BINDING)
        assert (mems(group), policy(child)) == ("2", "bind:2")
        places(child, Allow.REBIND_CPUSET, Allow.STRICT_BINDING)
        assert child.pages(region=0) == {0: 8 * MIB // PAGE}
        assert (mems(group), policy(child)) == ("0", "bind:0")


def test_reclaim_pushes_out_page_cache_and_nothing_else() -> None:
    """From Linux 6.17 on before the move, so that the high watermark is kept.

    Before that by kswapd while it runs, which is woken below the low watermark only.
    """
    size, on_request = 96 * MIB, (NUMA_NODES / "node1/reclaim").exists()
    assert Path("/proc/swaps").read_text().count("\n") == 1
    with nearly_full(1, leave=176 * MIB) as hog, memory_process(("base", size, [2])) as child, page_cache(1, 112 * MIB):
        refuses(child, Reason.DESTINATION_FULL, target=1)
        held, swapped, direct = hog.pages(region=0), vmstat("pswpout"), vmstat("pgscan_direct")
        cached = file_pages(1)
        places(child, Allow.RECLAIM, target=1)
        assert child.pages(region=0) == {1: size // PAGE}
        assert file_pages(1) < cached - 8 * MIB // PAGE
        assert (hog.pages(region=0), vmstat("pswpout")) == (held, swapped)
        if on_request:
            assert free_above_watermarks(1)
        else:
            assert vmstat("pgscan_direct") == direct
            wait_for(lambda: free_above_watermarks(1, "low"))


def file_pages(numa_node: int) -> int:
    """Pages of a NUMA node that are cache of files, by the kernel's lists for reclaim."""
    return sum(counted(numa_node, name) for name in ("nr_active_file", "nr_inactive_file"))


def test_pinned_part_of_a_process_with_many_registered_buffers() -> None:
    """Without any device's file so much pinned memory is taken for a device's; newer kernels count none of root's."""
    pinned = 20 * MIB
    unlimited = lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (-1, -1))  # noqa: E731
    with cause_process(("base", pinned, [1]), ("thp", 4 * MIB, [2]), prepare=unlimited) as child:
        assert child.ask("become 1001") == "done"
        assert child.ask(f"register {pinned // PAGE}") == "done"
        refuses(child, Reason.PINNED_BY_DEVICE)
        verdict = move(child.pid, allow=frozenset({Allow.PINNED_PART}))
        assert verdict.outcome is Outcome.RESIDUE
        assert sum(asked_residue(verdict).values()) == pinned
        assert asked_residue(verdict).keys() <= {Reason.PINNED_BY_DEVICE, Reason.NOT_ATTEMPTED}
        assert child.pages(region=0) == {1: pinned // PAGE}
        assert child.pages(region=1) == {0: 4 * MIB // PAGE}
        assert child.ask("intact") == "True"


def test_pinned_part_of_a_vm_with_a_device() -> None:
    vm = start_vm(VmSpec(namespace="prod", name="gpu", memory=64 * MIB, numa_nodes=(1,), vfio=True))
    try:
        assert move(vm.pid).outcome is Outcome.REFUSED
        ram, others = numa_pages(vm.pid, vm.ram_address), numa_pages(vm.pid)
        assert ram == {1: 64 * MIB // PAGE}
        verdict = move(vm.pid, allow=frozenset({Allow.PINNED_PART}), call_latency=SLOW)
        assert verdict.outcome is Outcome.RESIDUE
        assert 60 * MIB <= residue(verdict)[Reason.PINNED_BY_DEVICE] <= 65 * MIB
        assert set(residue(verdict)) - NOT_ASKED <= {Reason.PINNED_BY_DEVICE, Reason.NOT_ATTEMPTED}
        assert residue(verdict).get(Reason.NOT_ATTEMPTED, 0) <= MIB  # the hole below 1 MiB, which no device reaches
        assert numa_pages(vm.pid, vm.ram_address)[1] >= 60 * MIB // PAGE
        assert numa_pages(vm.pid)[0] > others.get(0, 0)
        assert verdict.moved >= (others[1] - ram[1]) * PAGE * 0.5
        passes = vm.passes()
        wait_for(lambda: vm.passes() > passes + 1)
        assert vm.errors() == 0
    finally:
        vm.stop()


def test_realtime() -> None:
    """The thread that waits and the one that writes are both FIFO threads, and by their name vCPUs."""
    with memory_process(("base", 4 * MIB, [1, 2]), name="CPU 0/KVM") as child:
        os.sched_setscheduler(child.pid, os.SCHED_FIFO, os.sched_param(1))
        refuses(child, Reason.REALTIME)
        affinity = child.affinity()
        assert child.ask("rewrite 20") == "started"
        verdict = places(child, Allow.REALTIME)
        assert child.ask("written") == "True"
        assert set(child.pages(region=0)) == {0}
        assert (verdict.threads.followed, child.affinity()) == (0, affinity)
        assert os.sched_getscheduler(child.pid) == os.SCHED_FIFO
