# SPDX-License-Identifier: Apache-2.0
"""What a move may do to others is seen in the real kernel's counters, and the move itself does not look like it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from numaplacement.engine.backoff import Sample
from numaplacement.engine.kernel import MPOL_MF_MOVE, Kernel
from numaplacement.engine.pressure import Sources, Throttle, find_sources, sample
from tests.kernel.memory_process import MIB, PAGE, MemoryProcess, cgroup, memory_process, nearly_full, wait_for

KERNEL = Kernel()
CPU = 3
pytestmark = pytest.mark.usefixtures("autonuma_off")


def sources(pid: int = 0, *, group: str = "", targets: set[int] | None = None) -> Sources:
    vcpus = {pid} if pid else set()
    return find_sources(KERNEL, pid=pid, targets=targets or set(), cgroup=group, vcpus=vcpus)


@contextmanager
def in_memory_cgroup(name: str, **settings: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """A cgroup's path, and what a child is to do to be in it."""
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+memory")
    with cgroup(name, **settings) as group:
        yield f"/{name}", lambda: (group / "cgroup.procs").write_text("0") and None


@pytest.fixture
def spinner() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts processes that want one and the same CPU all the time."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", "-c", "while True: pass"]
        started.append(subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, {CPU})))  # noqa: PLW1509
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def order(child: MemoryProcess, command: str) -> None:
    """Give a command and do not wait for its answer."""
    assert child.process.stdin is not None
    child.process.stdin.write(command + "\n")
    child.process.stdin.flush()


def test_every_numa_node_has_a_kswapd() -> None:
    found = sources(targets={0, 1, 2, 3})
    assert found.kswapd.keys() == {0, 1, 2, 3}
    assert all(seconds > 0 for seconds in sample(KERNEL, found).kswapd.values())
    assert len(set(found.kswapd.values())) == 4


def test_memory_pressure_of_a_cgroup() -> None:
    with (
        in_memory_cgroup("pressed", memory_high="24M") as (group, join),
        memory_process(("base", 4 * MIB, [0]), prepare=join) as child,
    ):
        found = sources(group=group)
        assert found.of_vm
        before = sample(KERNEL, found).some
        assert before is not None
        order(child, f"more {64 * MIB} 0")
        wait_for(lambda: (sample(KERNEL, found).some or 0.0) > before + 0.1)


def test_memory_pressure_of_the_host() -> None:
    now = sample(KERNEL, sources(group="/../elsewhere"))
    assert not now.of_vm
    assert now.some is not None
    assert now.full is not None


def test_a_move_that_asks_for_too_much_is_seen_in_the_kswapd_of_its_target() -> None:
    found = sources(targets={1, 3})
    with nearly_full(1, leave=8 * MIB), memory_process(("base", 48 * MIB, [2])) as child:
        addresses = child.addresses[0] + np.arange(0, 48 * MIB, PAGE, dtype=np.uint64)
        before = sample(KERNEL, found).kswapd

        def ran(numa_node: int) -> float:
            return sample(KERNEL, found).kswapd[numa_node] - before[numa_node]

        def seen() -> bool:
            KERNEL.move_pages(child.pid, addresses, numa_node=1, flags=MPOL_MF_MOVE)
            return ran(1) > 0.01

        wait_for(seen)
        assert ran(3) < ran(1) / 4


def test_a_vcpu_without_a_cpu_slows_the_move_until_it_has_one(spinner: Callable[[], subprocess.Popen[bytes]]) -> None:
    vcpu = spinner()
    throttle = Throttle(kernel=KERNEL, sources=sources(vcpu.pid), clock=time.monotonic)
    other = spinner()
    wait_for(lambda: throttle.pace().pause > 0)
    assert f"vCPU thread {vcpu.pid} was without a CPU" in throttle.pace().reason
    other.kill()
    other.wait()
    wait_for(lambda: throttle.pace().share == 1.0)


def test_a_move_is_no_memory_pressure_on_the_vm_by_itself() -> None:
    with (
        in_memory_cgroup("moved") as (group, join),
        memory_process(("base", 16 * MIB, [1]), prepare=join) as child,
    ):
        found = sources(child.pid, group=group)
        addresses = child.addresses[0] + np.arange(0, 16 * MIB, PAGE, dtype=np.uint64)
        order(child, "rewrite 1000000")
        began, before = time.monotonic(), sample(KERNEL, found)
        for turn in range(6):
            KERNEL.move_pages(child.pid, addresses, numa_node=turn % 2, flags=MPOL_MF_MOVE)
        passed, after = time.monotonic() - began, sample(KERNEL, found)
        print(f"\n{passed:.2f} s of moving: memory pressure {stalled(before, after):.4f} s; {cost(found)}")
        assert stalled(before, after) < 0.01 * passed


def stalled(before: Sample, after: Sample) -> float:
    assert before.some is not None
    assert after.some is not None
    return after.some - before.some


def cost(found: Sources) -> str:
    began = time.perf_counter()
    for _ in range(50):
        sample(KERNEL, found)
    return f"a sample takes {(time.perf_counter() - began) / 50 * 1e6:.0f} us here"
