# SPDX-License-Identifier: Apache-2.0
"""What makes memory stay where it was moved to, and what is told of it, on a real kernel."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from numaplacement.engine.cgroups import find_container
from numaplacement.engine.collapse import Collapsed, collapse_blocks, split_blocks
from numaplacement.engine.cpuset import LEFT_LIMIT, prepare_rebind
from numaplacement.engine.host import read_host
from numaplacement.engine.kernel import MPOL_MF_MOVE_ALL, Kernel
from numaplacement.engine.kernel_memory import read_kernel_notes
from numaplacement.engine.pins import Holder, find_pins, meaning_of_refusal, read_pin_counters
from numaplacement.engine.process import hold, read_process
from numaplacement.engine.reasons import Reason
from numaplacement.engine.stay import Stay, look, scan_seq, watch
from numaplacement.engine.surveyor import read_mappings, survey
from numaplacement.engine.targets import Targets
from tests.kernel.memory_process import (
    MIB,
    PAGE,
    MemoryProcess,
    cgroup,
    mapping_start,
    memory_process,
    vmstat,
    wait_for,
)

THP = 2 * MIB
ON_0 = Targets(default=0)
DEBUG = Path("/sys/kernel/debug")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
BALANCING = DEBUG / "sched/numa_balancing"
LIBC = ctypes.CDLL(None, use_errno=True)
NR_IO_URING_SETUP, NR_IO_URING_REGISTER = 425, 427


def move(child: MemoryProcess, region: int, size: int, *, step: int = PAGE) -> int:
    """Move a region to NUMA node 0 and return the errno."""
    addresses = np.arange(child.addresses[region], child.addresses[region] + size, step, dtype=np.uint64)
    return Kernel().move_pages(child.pid, addresses, numa_node=0, flags=MPOL_MF_MOVE_ALL).errno


@contextlib.contextmanager
def setting(path: Path, value: str) -> Iterator[None]:
    before = path.read_text()
    path.write_text(value)
    yield
    chosen = before.partition("[")[2].partition("]")[0]
    path.write_text(chosen or before)


def split(child: MemoryProcess, region: int, size: int) -> None:
    """Let the kernel split huge pages, as it does where none can be had on the target (mm/huge_memory.c)."""
    start, before = child.addresses[region], vmstat("thp_split_page")
    (DEBUG / "split_huge_pages").write_text(f"{child.pid},{start:#x},{start + size:#x}")
    assert vmstat("thp_split_page") - before >= size // THP


def rebuild(child: MemoryProcess, before: object, *, room: int = 1 << 40, most: int | None = None) -> Collapsed:
    kernel = Kernel()
    after = survey(child.pid, kernel)
    blocks = split_blocks(before, after, targets=ON_0, huge=THP)  # type: ignore[arg-type]
    rooms: list[int] = []

    def room_of(numa_node: int) -> int:
        rooms.append(numa_node)
        return room if most is None or len(rooms) <= most else 0

    with hold(child.pid, kernel, None) as process:
        result = collapse_blocks(
            process,
            blocks,
            huge=THP,
            room=room_of,
            check=lambda: None,
            clock=time.monotonic,
            watched=contextlib.nullcontext,
        )
    assert set(rooms) <= {0}
    return result


@pytest.mark.usefixtures("autonuma_off")
@pytest.mark.parametrize("kind", ["thp", "memfd"])
def test_split_huge_pages_are_rebuilt_on_the_target(kind: str) -> None:
    size = 8 * THP
    resting = setting(HUGE_PAGES / "khugepaged/scan_sleep_millisecs", "3600000")  # or it rebuilds some itself
    with resting, setting(HUGE_PAGES / "shmem_enabled", "always"), memory_process((kind, size, [1])) as child:
        before = survey(child.pid, Kernel())
        assert move(child, 0, size, step=THP) == 0
        split(child, 0, size)
        assert child.ask("intact") == "True"  # to split shared memory takes it out of the page tables
        assert rebuild(child, before, room=THP - 1) == Collapsed(not_rebuilt=size, no_room=size)
        assert rebuild(child, before, most=3).rebuilt == 3 * THP
        rest = rebuild(child, before)
        assert rest == Collapsed(rebuilt=size - 3 * THP), rest.evidence()
        assert split_blocks(before, survey(child.pid, Kernel()), targets=ON_0, huge=THP) == ()
        assert child.pages(0) == {0: size // PAGE}
        assert child.ask("intact") == "True"


def policy(child: MemoryProcess, region: int) -> str:
    start = mapping_start(child.pid, child.addresses[region])
    lines = (line.split() for line in Path(f"/proc/{child.pid}/numa_maps").read_text().splitlines())
    return next(words[1] for words in lines if int(words[0], 16) == start)


@contextlib.contextmanager
def housekeeping(group: Path) -> Iterator[Path]:
    """A threaded child of a cgroup, made as KubeVirt makes it."""
    child = group / "housekeeping"
    child.mkdir()
    (child / "cgroup.type").write_text("threaded")
    (group / "cgroup.subtree_control").write_text("+cpuset")
    try:
        yield child
    finally:
        wait_for(lambda: not (child / "cgroup.threads").read_text())
        child.rmdir()


@pytest.mark.usefixtures("autonuma_off")
@pytest.mark.parametrize("threaded", [False, True])
def test_a_cpuset_is_widened_first_and_narrowed_last(*, threaded: bool) -> None:
    size, kernel = 16 * MIB, Kernel()
    with cgroup("vm-of-a-test", cpuset_mems="2") as group, contextlib.ExitStack() as stack:
        inner = stack.enter_context(housekeeping(group)) if threaded else None
        join = lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None  # noqa: E731
        child = stack.enter_context(memory_process(("base", size, [2]), prepare=join))
        assert child.ask("bind 0 2") == "0"
        child.ask("thread 2")
        if inner is not None:
            (inner / "cgroup.threads").write_text(str(child.pid))
        container = find_container(child.pid, kernel)
        assert container.directory == group
        assert container.inner == ((inner,) if inner else ())
        assert move(child, 0, size) == errno.EACCES

        rebind = prepare_rebind(child.pid, container, kernel, targets=frozenset({0}))
        outcome = rebind.widen()
        assert outcome.done, outcome
        assert (group / "cpuset.mems.effective").read_text().strip() == "0,2"
        assert child.pages(0) == {2: size // PAGE}
        refused = rebind.narrow(left=LEFT_LIMIT + 1)
        assert not refused.done
        assert child.pages(0) == {2: size // PAGE}

        assert rebind.put_back().done
        assert (group / "cpuset.mems").read_text().strip() == "2"
        assert child.pages(0) == {2: size // PAGE}
        assert rebind.widen().done

        assert move(child, 0, size) == 0
        outcome = rebind.narrow(left=0)
        assert outcome.done, outcome
        assert (group / "cpuset.mems.effective").read_text().strip() == "0"
        assert policy(child, 0) == "bind:0"
        assert child.pages(0) == {0: size // PAGE}
        assert child.ask("intact") == "True"


def test_a_cgroup_above_that_forbids_the_target() -> None:
    with cgroup("pod-of-a-test", cpuset_mems="1-2") as pod:
        (pod / "cgroup.subtree_control").write_text("+cpuset")
        group = pod / "container"
        group.mkdir()
        join = lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None  # noqa: E731
        with memory_process(("base", MIB, [2]), prepare=join) as child:
            container = find_container(child.pid, Kernel())
            rebind = prepare_rebind(child.pid, container, Kernel(), targets=frozenset({0}))
            assert "allows NUMA nodes 1-2 only" in rebind.plan.refused
            outside = prepare_rebind(child.pid, container, Kernel(), targets=frozenset({1}))
            assert not outside.plan.refused
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@contextlib.contextmanager
def moved_to_0(size: int, *, thread_on: int) -> Iterator[tuple[MemoryProcess, Callable[[], Stay]]]:
    """A process whose region was moved from NUMA node 2 to 0, with a thread that keeps touching it."""
    kernel = Kernel()
    target_cpus = frozenset(read_host(kernel).numa_nodes[0].cpus)
    with memory_process(("base", size, [2])) as child, hold(child.pid, kernel, None) as process:
        start = mapping_start(child.pid, child.addresses[0])
        target_of = {start: 0}.get
        assert move(child, 0, size) == 0
        then = look(process, target_of=target_of)
        assert (then.on_target, then.off_target) == (size, {})
        child.ask(f"thread {thread_on}")
        yield (
            child,
            lambda: watch(
                process,
                then=then,
                target_of=target_of,
                target_cpus=target_cpus,
                tolerance=0,
                limit=60.0,
                check=lambda: None,
                clock=time.monotonic,
            ),
        )


def test_a_thread_on_the_old_numa_node_calls_memory_back(numa_balancing: Callable[[bool], None]) -> None:
    numa_balancing(False)
    with moved_to_0(8 * MIB, thread_on=2) as (child, stay_of):
        numa_balancing(True)
        stay = stay_of()
        assert not stay.stayed, stay
        assert stay.came_back[2] > MIB
        assert "off the target" in stay.evidence
        assert "AutoNUMA on" in stay.evidence
        assert child.pages(0)[2] * PAGE >= stay.came_back[2]


def test_with_autonuma_off_it_stays(numa_balancing: Callable[[bool], None]) -> None:
    numa_balancing(False)
    with moved_to_0(8 * MIB, thread_on=2) as (_, stay_of):
        stay = stay_of()
        assert stay.stayed, stay
        assert stay.came_back == {}
        assert stay.evidence == "nothing came back; AutoNUMA is off"


def test_with_its_threads_there_it_stays_through_two_scans(numa_balancing: Callable[[bool], None]) -> None:
    numa_balancing(False)
    with setting(BALANCING / "scan_period_max_ms", "30000"), moved_to_0(8 * MIB, thread_on=0) as (child, stay_of):
        numa_balancing(True)
        assert scan_seq(child.pid, Kernel()) is not None, "this kernel does not show mm->numa_scan_seq"
        stay = stay_of()
        assert stay.stayed, stay
        assert stay.scans is not None
        assert stay.scans >= 2, stay


def test_page_tables_on_the_old_numa_node_are_told() -> None:
    with cgroup("tables-of-a-test") as group:
        join = lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None  # noqa: E731
        with memory_process(("base", 4 * MIB, [2]), prepare=join) as child:
            assert child.ask(f"sparse {1 << 30} 2") == "done"
            container = find_container(child.pid, Kernel())
            notes = {note.numa_node: note for note in read_kernel_notes(container, Kernel(), targets=(0,))}
            assert notes[2].reason is Reason.KERNEL_MEMORY
            assert notes[2].bytes >= 2 * MIB
            assert "pagetables" in notes[2].evidence


@pytest.fixture
def ring() -> Iterator[mmap.mmap]:
    """64 pages of NUMA node 2, registered with an io_uring of this process."""
    area = mmap.mmap(-1, 64 * PAGE)
    area.madvise(mmap.MADV_NOHUGEPAGE)  # one pinned page of a huge page counts as the whole huge page
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, read_host(Kernel()).numa_nodes[2].cpus)
    area.write(bytes(64 * PAGE))
    os.sched_setaffinity(0, allowed)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    descriptor = LIBC.syscall(NR_IO_URING_SETUP, 4, ctypes.create_string_buffer(120))
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    vector = (ctypes.c_ulong * 2)(address, 64 * PAGE)
    assert LIBC.syscall(NR_IO_URING_REGISTER, descriptor, 0, vector, 1) == 0, os.strerror(ctypes.get_errno())
    yield area
    os.close(descriptor)


def test_registered_buffers_are_told_from_mere_references(ring: mmap.mmap) -> None:  # noqa: ARG001
    kernel = Kernel()
    pins = find_pins(read_process(os.getpid(), kernel), read_mappings(os.getpid(), kernel), read_pin_counters(kernel))
    assert set(pins.files) == {Holder.IO_URING}
    assert pins.bytes == 64 * PAGE
    assert pins.counted[2] == 64
    reason, evidence = meaning_of_refusal(pins, numa_node=2, pages=64)
    assert reason is Reason.PINNED_BY_IO
    assert "consistent with 64 pinned pages on NUMA node 2" in evidence
    with memory_process(("base", MIB, [3]), hold=64) as child:
        pins = find_pins(read_process(child.pid, kernel), read_mappings(child.pid, kernel), read_pin_counters(kernel))
        reason, evidence = meaning_of_refusal(pins, numa_node=3, pages=64)
        assert reason is Reason.EXTRA_REFERENCE
        assert "only 0 pages are pinned on NUMA node 3" in evidence
