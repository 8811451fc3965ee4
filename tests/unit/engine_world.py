# SPDX-License-Identifier: Apache-2.0
"""A simulated host with one process, for the engine's whole way without a kernel."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numaplacement.engine.kernel import MPOL_MF_MOVE_ALL, UNWRITTEN, KeptFile, Kernel, MoveResult
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Progress, Request, Stage, Verdict
from tests.unit.engine_world_region import PAGE, Region

MIB = 1 << 20
PID = 4242
ZONE = """Node {node}, zone   Normal
  pages free     {free}
        min      1000
        low      2000
        high     {high}
        spanned  1048576
        present  1048576
        managed  1048576
        protection: (0, 0)
  start_pfn:           {start}
Node {node}, zone  Movable
  pages free     0
        high     0
        spanned  0
        protection: (0, 0)
"""


@dataclass
class World:
    """What the host and the process are, and what happens at which move_pages call (counted from 1).

    `texts` are more files that can be read, `writes` what writing to files does, by path. `pools` are the huge pages of
    2 MiB by NUMA node, total and free. Worlds that are one host have `safe` and `lock` in common.
    """

    regions: list[Region]
    safe: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(4), 1 << 30))
    mems: str = "0-3"
    own_mems: str = "0-3"
    own_capabilities: int = (1 << 41) - 1
    blocked: bool = False
    hiding: bool = False
    locked_kib: int = 0
    pinned_kib: int = 0
    files: tuple[str, ...] = ()
    command_line: str = "/usr/bin/qemu-system-x86_64\0-name\0guest=prod_db\0"
    thread_names: tuple[str, ...] = ("qemu", "CPU 0/KVM")
    policy: int = 0
    at_call: dict[int, int] = field(default_factory=dict)
    hooks: dict[int, Callable[[], None]] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    affinity: dict[int, set[int]] = field(default_factory=dict)
    ended: bool = False
    started: int = 777
    now: float = 0.0
    speed: float = 1e9
    slept: float = 0.0
    touches: int = 0
    toucher: set[int] = field(default_factory=set)
    touch_error: int = 0
    texts: dict[str, Callable[[], str]] = field(default_factory=dict)
    writes: dict[str, Callable[[str], None]] = field(default_factory=dict)
    pools: dict[int, list[int]] = field(default_factory=dict)
    opened: int = 0
    overdrawn: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def page(self, address: int) -> tuple[Region, int] | None:
        for region in self.regions:
            if region.start <= address < region.end:
                return region, (address - region.start) // region.page_size
        return None

    def bytes_on(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for region in self.regions:
            for node in region.nodes:
                if node >= 0:
                    counts[node] = counts.get(node, 0) + region.page_size
        return counts

    def take(self, region: Region, index: int, numa_node: int) -> None:
        """Have a page of a region on a NUMA node: what it takes is gone there, and free where it was."""
        source, region.nodes[index] = region.nodes[index], numa_node
        if region.page_size == PAGE:
            self.overdrawn |= self.safe[numa_node] < PAGE
            self.safe[numa_node] -= PAGE
            return
        assert self.pools[numa_node][1] > 0, "the pool changes behind everybody's back"
        self.pools[numa_node][1] -= 1
        self.pools[source][1] += 1


class Kept(KeptFile):
    """A file of a world that is read again and again."""

    def __init__(self, read: Callable[[], str]) -> None:
        super().__init__(-1)
        self._read = read

    def read(self) -> str:
        return self._read()

    def close(self) -> None:
        pass


class SimulatedKernel(Kernel):
    """The shell over a World."""

    def __init__(self, world: World, root: Path) -> None:
        super().__init__(proc=root / "proc", sys=root / "sys")
        self.world = world
        for thread in range(len(world.thread_names)):
            (self.proc / str(PID) / "task" / str(PID + thread)).mkdir(parents=True)
            world.affinity[PID + thread] = set(range(8))

    def read(self, path: Path) -> str:
        name = str(path.relative_to(self.proc.parent))
        texts = {
            f"proc/{PID}/smaps": self._smaps,
            f"proc/{PID}/numa_maps": lambda: "".join(region.numa_maps() for region in self.world.regions),
            f"proc/{PID}/mountinfo": lambda: "",
            f"proc/{PID}/stat": lambda: self._stat("qemu"),
            f"proc/{PID}/status": self._status,
            f"proc/{PID}/cgroup": lambda: "0::/pod\n",
            f"proc/{PID}/cmdline": lambda: self.world.command_line,
            "proc/self/status": lambda: (
                f"Mems_allowed_list:\t{self.world.own_mems}\nSeccomp:\t{2 * self.world.blocked}\n"
                f"CapEff:\t{self.world.own_capabilities:016x}\n"
            ),
            "proc/zoneinfo": self._zoneinfo,
            "proc/meminfo": lambda: "SwapTotal:        0 kB\n",
            "proc/sys/kernel/osrelease": lambda: "6.1.0\n",
            "proc/sys/kernel/numa_balancing": lambda: "0\n",
            "sys/devices/system/node/online": lambda: "0-3\n",
            "sys/devices/system/node/has_memory": lambda: "0-3\n",
        }
        found = self.world.texts.get(name) or texts.get(name)
        if found is not None:
            return found()
        return self._by_pattern(path, name)

    def keep(self, path: Path) -> Kept:
        self.read(path)
        return Kept(lambda: self.read(path))

    def write(self, path: Path, text: str) -> None:
        name = str(path.relative_to(self.proc.parent))
        if name not in self.world.writes:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        with self.world.lock:
            self.world.writes[name](text.strip())

    def names(self, path: Path) -> tuple[str, ...]:
        below = f"{path.relative_to(self.proc.parent)}/"
        found = {name[len(below) :].split("/")[0] for name in self.world.texts if name.startswith(below)}
        return tuple(sorted(found | set(super().names(path)))) if path.exists() or not found else tuple(sorted(found))

    def _by_pattern(self, path: Path, name: str) -> str:
        if name.startswith("sys/devices/system/node/node"):
            node = int(re.sub(r".*/node(\d+)/.*", r"\1", name))
            free = (self.world.safe.get(node, 0) + 3000 * PAGE) >> 10
            known = {
                "cpulist": f"{2 * node}-{2 * node + 1}\n",
                "distance": "10 20 20 20\n",
                "meminfo": f"Node {node} MemTotal: 4194304 kB\nNode {node} MemFree: {free} kB\n",
            }
            if path.name not in known:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            return known[path.name]
        if "/task/" in name:
            thread = int(path.parent.name)
            comm = self.world.thread_names[thread - PID]
            cpus = ",".join(map(str, sorted(self.world.affinity[thread])))
            if path.name == "schedstat":
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            return {
                "stat": self._stat(comm),
                "status": f"Cpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{self.world.mems}\n",
                "cgroup": "0::/pod\n",
            }[path.name]
        if name == "sys/fs/cgroup/pod/cpuset.cpus.effective":
            return "0-7\n"
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    def _smaps(self) -> str:
        if self.world.ended:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        # Surveys read smaps first: here pagemap is written as it is now.
        path = self.proc / str(PID) / "pagemap"
        with path.open("wb") as file:
            for region in self.world.regions:
                file.seek(region.start // PAGE * 8)
                file.write(region.pagemap().tobytes())
        return "".join(region.smaps() for region in self.world.regions)

    def _stat(self, comm: str) -> str:
        if self.world.ended:
            raise FileNotFoundError
        fields = ["S", *["0"] * 18, str(self.world.started), *["0"] * 18, str(self.world.policy), *["0"] * 10]
        return f"{PID} ({comm}) {' '.join(fields)}\n"

    def _status(self) -> str:
        swapped = sum(len(region.swapped) * region.page_size >> 10 for region in self.world.regions)
        return f"VmLck:\t{self.world.locked_kib} kB\nVmPin:\t{self.world.pinned_kib} kB\nVmSwap:\t{swapped} kB\n"

    def _zoneinfo(self) -> str:
        return "".join(
            ZONE.format(node=node, free=safe // PAGE + 3000, high=3000, start=node * (1 << 20))
            for node, safe in self.world.safe.items()
        )

    def locate_pages(self, pid: int, addresses: NDArray[np.uint64]) -> MoveResult:
        if self.world.blocked:
            return MoveResult(errno=errno.EPERM, not_moved=0, status=np.full(addresses.size, UNWRITTEN, dtype=np.int32))
        if pid == 0:
            return MoveResult(errno=0, not_moved=0, status=np.zeros(addresses.size, dtype=np.int32))
        status = [self._status_of(int(address)) for address in addresses]
        return MoveResult(errno=0, not_moved=0, status=np.array(status, dtype=np.int32))

    def _status_of(self, address: int) -> int:
        found = self.world.page(address)
        if self.world.hiding:
            return -errno.ENOENT
        if found is None or found[0].nodes[found[1]] < 0 or found[1] in found[0].hidden:
            return -errno.ENOENT
        return found[0].nodes[found[1]]

    def move_pages(self, pid: int, addresses: NDArray[np.uint64], *, numa_node: int, flags: int) -> MoveResult:
        assert pid == PID
        with self.world.lock:
            return self._moved(addresses, numa_node, flags)

    def _moved(self, addresses: NDArray[np.uint64], numa_node: int, flags: int) -> MoveResult:
        world = self.world
        world.calls.append(addresses.size)
        number = len(world.calls)
        world.now += addresses.size * PAGE / world.speed
        world.hooks.get(number, lambda: None)()
        status = np.full(addresses.size, UNWRITTEN, dtype=np.int32)
        if number in world.at_call:
            return MoveResult(errno=world.at_call[number], not_moved=0, status=status)
        failed = 0
        for index, address in enumerate(addresses.tolist()):
            found = world.page(address)
            if found is None or found[0].nodes[found[1]] < 0 or found[1] in found[0].hidden:
                status[index] = -errno.ENOENT
            elif found[1] in found[0].refused:
                failed += 1
            elif found[1] in found[0].busy:
                status[index] = -errno.EBUSY
            elif found[1] in found[0].shared and flags != MPOL_MF_MOVE_ALL:
                status[index] = -errno.EACCES
            else:
                for page in found[0].folio(found[1]):
                    world.take(found[0], page, numa_node)
                if found[1] in found[0].fragile:
                    found[0].whole.discard(found[1])
                status[index] = numa_node
        if failed:
            status[:] = UNWRITTEN
        return MoveResult(errno=0, not_moved=failed, status=status)

    def open_pidfd(self, pid: int) -> int:
        if self.world.ended or pid != PID:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        self.world.opened += 1
        return -1

    def close(self, descriptor: int) -> None:
        assert descriptor == -1
        self.world.opened -= 1

    def has_ended(self, pidfd: int) -> bool:  # noqa: ARG002
        return self.world.ended

    def open_files(self, pid: int) -> tuple[str, ...]:  # noqa: ARG002
        return self.world.files

    def set_affinity(self, thread_id: int, cpus: Collection[int]) -> None:
        self.world.affinity[thread_id] = set(cpus)

    def set_own_affinity(self, cpus: Collection[int]) -> None:
        self.world.toucher = set(cpus)

    def touch(self, pid: int, addresses: NDArray[np.uint64]) -> int:  # noqa: ARG002
        self.world.touches += 1
        if self.world.touch_error:
            return self.world.touch_error
        for address in addresses.tolist():
            found = self.world.page(address)
            if found is not None:
                found[0].hidden.discard(found[1])
                if found[1] in found[0].swapped:
                    found[0].swapped.discard(found[1])
                    self.world.take(found[0], found[1], min(self.world.toucher, default=0) // 2)
        return 0

    def collapse(self, pidfd: int, address: int, length: int) -> int:
        assert pidfd == -1
        found = self.world.page(address)
        if length and found is not None:
            found[0].whole.add(found[1])
        return 0

    def sleep(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.slept += seconds


@dataclass
class Recorder:
    """A watcher that keeps what it hears and cancels from the given move report on."""

    cancel_after: int | None = None
    heard: list[Progress] = field(default_factory=list)

    def progressed(self, progress: Progress, /) -> None:
        self.heard.append(progress)

    def cancelled(self) -> bool:
        moves = sum(progress.stage is Stage.MOVE for progress in self.heard)
        return self.cancel_after is not None and moves >= self.cancel_after


def run_in(world: World, root: Path, watcher: Recorder | None = None, **wish: object) -> Verdict:
    """Run the engine in a world and see that the sums of its verdict close."""
    request = Request(**{"target": 0, "movers": 1, **wish})  # type: ignore[arg-type]
    verdict = run(
        pid=PID,
        request=request,
        kernel=SimulatedKernel(world, root),
        watcher=watcher or Recorder(),
        clock=lambda: world.now,
    )
    see_that_sums_close(verdict, request)
    return verdict


def see_that_sums_close(verdict: Verdict, request: Request) -> None:
    """Hold a verdict for one target against itself, to the byte."""
    before, after = (sum(row.bytes for row in rows) for rows in (verdict.before, verdict.after))
    assert before - verdict.freed + verdict.grown == after
    away = {row.numa_node for row in verdict.after} - {request.target, *request.cells.values()}
    for numa_node in away | {row.numa_node for row in verdict.residue}:
        there = sum(row.bytes for row in verdict.after if row.numa_node == numa_node)
        assert sum(row.bytes for row in verdict.residue if row.numa_node == numa_node) == there
