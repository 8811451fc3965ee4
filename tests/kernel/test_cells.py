# SPDX-License-Identifier: Apache-2.0
"""Guest cells of a real QEMU: what the engine takes for a cell's memory is what QEMU's own monitor says it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from numaplacement.engine.cell_memory import CellsUnknown, assign_cells
from numaplacement.engine.cells import backends_of, cells_of
from numaplacement.engine.host import read_host
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.mappings import Mapping, NumaMapsRow
from numaplacement.engine.process import ProcessFacts, hold, read_process
from numaplacement.engine.ram_blocks import ram_block_addresses
from numaplacement.engine.sharers import find_sharers
from numaplacement.engine.surveyor import read_mappings, read_numa_maps
from numaplacement.engine.threads import cpus_by_cell, follow, restore
from tests.rig.vm_monitor import qmp
from tests.rig.waiting import wait_until

MIB = 1 << 20
SIZE = 32 * MIB
KERNEL = Kernel()
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Guest:
    """A QEMU with two cells whose vCPUs never start."""

    pid: int
    monitor: Path

    def memory_of_cells(self) -> dict[int, int]:
        """Cell by address in QEMU, by the monitor: cell 1 begins in the guest where cell 0 ends."""
        answer = [
            str(qmp(self.monitor, "human-monitor-command", {"command-line": f"gpa2hva {cell * SIZE:#x}"}))
            for cell in range(2)
        ]
        return {int(re.search(r" is (0x[0-9a-f]+)", text)[1], 16): cell for cell, text in enumerate(answer)}  # type: ignore[index]

    def looked_at(self) -> Seen:
        """What the engine sees of it now."""
        facts = read_process(self.pid, KERNEL)
        mappings, rows = read_mappings(self.pid, KERNEL), read_numa_maps(self.pid, KERNEL)
        backends = backends_of(cells_of(facts.command_line))
        blocks = ram_block_addresses(self.pid, KERNEL, backends.values(), mappings)
        assert set(blocks) == set(backends)
        return Seen(facts, mappings, rows, blocks)


@dataclass(frozen=True)
class Seen:
    facts: ProcessFacts
    mappings: tuple[Mapping, ...]
    rows: tuple[NumaMapsRow, ...]
    blocks: dict[str, int]

    def assigned(self, cells: dict[int, int], *, records: bool) -> dict[int, int] | str:
        """What the engine says: NUMA node by address, or why it cannot tell."""
        blocks = self.blocks if records else {}
        found = assign_cells(self.facts.command_line, self.mappings, self.rows, cells, blocks)
        if isinstance(found, CellsUnknown):
            return found.evidence
        return {mapping.start: numa_node for mapping, numa_node in found}


Start = Callable[..., Guest]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Start]:
    """Starts a QEMU with the given backends, the first for cell 0; `cgroup` is the one it is started in.

    `more` are more words of its command line.
    """
    running: list[subprocess.Popen[bytes]] = []

    def start(*backends: str, cgroup: Path | None = None, more: Sequence[str | Path] = ()) -> Guest:
        monitor = tmp_path / f"monitor{len(running)}.sock"
        command = ["qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-name", "guest=a_b,debug-threads=on"]
        command += [
            "-machine",
            "q35,accel=kvm:tcg",
            "-m",
            str(2 * SIZE // MIB),
            "-qmp",
            f"unix:{monitor},server,nowait",
        ]
        command += ["-smp", "2,sockets=1,cores=2,threads=1"]
        for cell, backend in enumerate(backends):
            command += ["-object", backend, "-numa", f"node,nodeid={cell},cpus={cell},memdev=ram-node{cell}"]

        command += map(str, more)

        def enter() -> None:
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text(str(os.getpid()))

        running.append(subprocess.Popen(command, preexec_fn=enter))  # noqa: PLW1509 - the child is alone
        wait_until(lambda: answers(monitor, running[-1]), timeout=60, what="QEMU's monitor")
        return Guest(running[-1].pid, monitor)

    yield start
    for process in running:
        process.kill()
        process.wait()


def answers(monitor: Path, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        return bool(qmp(monitor, "query-status", {}))
    except (FileNotFoundError, ConnectionError):
        return False


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Room for both cells in the pools of NUMA nodes 1 and 2."""
    pools = [Path(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages") for node in (1, 2)]
    before = [pool.read_text() for pool in pools]
    for pool in pools:
        pool.write_text(str(SIZE // (2 * MIB) + 2))
    yield
    for pool, text in zip(pools, before, strict=True):
        pool.write_text(text)


def backend(kind: str, cell: int, **more: object) -> str:
    """A backend as libvirt writes it."""
    return json.dumps({"qom-type": f"memory-backend-{kind}", "id": f"ram-node{cell}", "size": SIZE, **more})


def bound(kind: str, **more: object) -> list[str]:
    """Backends bound to NUMA node 1 for cell 0 and 2 for cell 1."""
    return [backend(kind, cell, **{"host-nodes": [cell + 1], "policy": "bind"}, **more) for cell in range(2)]


@pytest.mark.usefixtures("huge_pages")
@pytest.mark.parametrize(
    "backends",
    [
        [backend("ram", 0), f"memory-backend-ram,id=ram-node1,size={SIZE}"],
        [backend("ram", cell, share=True) for cell in range(2)],
        [backend("memfd", cell) for cell in range(2)],
        [backend("memfd", cell, hugetlb=True) for cell in range(2)],
    ],
    ids=["ram", "shared ram", "memfd", "hugetlb"],
)
def test_equal_memory_is_told_apart_by_qemus_records_only(guest: Start, backends: list[str]) -> None:
    vm = guest(*backends)
    own, seen = vm.memory_of_cells(), vm.looked_at()
    assert len(own) == 2
    assert seen.assigned({0: 3, 1: 0}, records=True) == {start: (3, 0)[cell] for start, cell in own.items()}
    assert seen.assigned({1: 2}, records=True) == {start: 2 for start, cell in own.items() if cell == 1}
    without = seen.assigned({0: 3, 1: 0}, records=False)
    assert isinstance(without, str), own
    assert "2 mappings of 32.0 MiB fit" in without
    assert seen.assigned({0: 3, 1: 3}, records=False) == dict.fromkeys(own, 3)


@pytest.mark.usefixtures("huge_pages")
@pytest.mark.parametrize(
    "backends",
    [
        bound("ram"),
        bound("memfd", hugetlb=True, hugetlbsize=2 * MIB, prealloc=True),
        [backend("file", cell, **{"mem-path": "/dev/shm", "share": True}) for cell in range(2)],
    ],
    ids=["bound ram", "bound hugetlb", "files"],
)
def test_policies_and_names_are_enough(guest: Start, backends: list[str]) -> None:
    vm = guest(*backends)
    own, seen = {start: (3, 0)[cell] for start, cell in vm.memory_of_cells().items()}, vm.looked_at()
    assert seen.assigned({0: 3, 1: 0}, records=False) == own
    assert seen.assigned({0: 3, 1: 0}, records=True) == own


def test_policies_that_were_rebound_prove_nothing(guest: Start) -> None:
    (CGROUPS / "cgroup.subtree_control").write_text("+cpuset")
    cgroup = CGROUPS / "test-cells"
    cgroup.mkdir()
    try:
        (cgroup / "cpuset.mems").write_text("1-2")
        vm = guest(*bound("ram"), cgroup=cgroup)
        own = {start: (3, 0)[cell] for start, cell in vm.memory_of_cells().items()}
        assert vm.looked_at().assigned({0: 3, 1: 0}, records=False) == own
        (cgroup / "cpuset.mems").write_text("2-3")
        seen = vm.looked_at()
        policies = {row.start: row.policy for row in seen.rows}
        assert [policies[start] for start in sorted(own, key=own.__getitem__, reverse=True)] == ["bind:2", "bind:3"]
        assert isinstance(seen.assigned({0: 3, 1: 0}, records=False), str)
        assert seen.assigned({0: 3, 1: 0}, records=True) == own
    finally:
        moved = (cgroup / "cgroup.procs").read_text().split()
        for pid in moved:
            (CGROUPS / "cgroup.procs").write_text(pid)
        cgroup.rmdir()


def test_threads_follow_their_cell_and_go_back(guest: Start) -> None:
    vm = guest(backend("ram", 0), backend("ram", 1))
    facts = read_process(vm.pid, KERNEL)
    before = affinities(vm.pid)
    cpus = {node.numa_node: node.cpus for node in read_host(KERNEL).numa_nodes}
    with hold(vm.pid, KERNEL, None) as process:
        wanted = cpus_by_cell(cells_of(facts.command_line), {0: 3, 1: 1}, cpus)
        outcome = follow(process, target_cpus=wanted, numa_node_cpus=cpus.values())
        now = affinities(vm.pid)
        vcpus = {thread.vcpu: thread.thread_id for thread in facts.threads}
        assert (now[vcpus[0]], now[vcpus[1]], now[vm.pid]) == (cpus[3], cpus[1], cpus[1] | cpus[3])
        assert (outcome.left, outcome.followed) == (0, len(before))
        assert restore(process, outcome).followed == 0
    assert affinities(vm.pid) == before


def affinities(pid: int) -> dict[int, set[int]]:
    return {int(thread.name): os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()}


MAP_IT = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(descriptor, int(sys.argv[2]))
os.close(descriptor)
print("mapped", flush=True)
sys.stdin.read()
"""


def test_a_process_that_maps_the_guests_memory_is_found(guest: Start) -> None:
    vm = guest(backend("memfd", 0), backend("memfd", 1))
    mappings = read_mappings(vm.pid, KERNEL)
    assert find_sharers(vm.pid, mappings, KERNEL, clock=time.monotonic).found == ()
    links = Path(f"/proc/{vm.pid}/fd").iterdir()
    memfd = next(link for link in links if "memory-backend-memfd" in str(link.readlink()))
    with subprocess.Popen(
        [sys.executable, "-c", MAP_IT, str(memfd), str(SIZE // 2)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as helper:
        assert helper.stdout
        assert helper.stdout.readline() == b"mapped\n"
        started = time.monotonic()
        sharers = find_sharers(vm.pid, mappings, KERNEL, clock=time.monotonic, limit=30.0)
        print("looked through all processes in", time.monotonic() - started, "s")
        assert [(each.pid, each.bytes) for each in sharers.found] == [(helper.pid, SIZE // 2)]
        assert sharers.complete
        helper.stdin and helper.stdin.close()
