# SPDX-License-Identifier: Apache-2.0
"""Processes with memory where a test wants it, and what the kernel says of them by means that are not the product's."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numaplacement.engine.host import safe_on
from numaplacement.engine.kernel import Kernel
from tests.rig.vm import numa_pages

CHILD = Path(__file__).with_name("memory_child.py")
MIB = 1 << 20
PAGE = 4096
LIMIT = 60.0


@dataclass
class MemoryProcess:
    """A running memory_child.py."""

    process: subprocess.Popen[str]
    addresses: list[int]

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return read_line(self.process)

    def pages(self, region: int | None = None) -> dict[int, int]:
        """Pages by NUMA node, of all the process or of the mapping that begins a region, from numa_maps."""
        if region is None:
            return numa_pages(self.pid)
        return numa_pages(self.pid, mapping_start(self.pid, self.addresses[region]))

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        wait_for(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def affinity(self) -> set[int]:
        return os.sched_getaffinity(self.pid)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], LIMIT)
    line = process.stdout.readline() if ready else ""
    assert line, f"the child said nothing within {LIMIT} s or ended with {process.poll()}"
    return line.strip()


@contextlib.contextmanager
def memory_process(
    *regions: tuple[str, int, list[int]],
    prepare: Callable[[], None] | None = None,
    child: Path = CHILD,
    **spec: Any,
) -> Iterator[MemoryProcess]:
    """Start a process with regions of (kind, bytes, NUMA nodes); kinds are base, thp, memfd and hugetlb.

    `child` is the program it runs, and `of_regions` more about some of the regions, by their position.
    """
    more = spec.pop("of_regions", {})
    spec["regions"] = [
        {"kind": kind, "size": size, "nodes": nodes, **more.get(position, {})}
        for position, (kind, size, nodes) in enumerate(regions)
    ]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(child), json.dumps(spec)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,  # noqa: PLW1509 - one thread
    )
    try:
        yield MemoryProcess(process, json.loads(read_line(process)))
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]


def mapping_start(pid: int, address: int) -> int:
    """The start of the mapping an address lies in."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < last:
            return first
    raise AssertionError(f"no mapping at {address:#x}")


def vmstat(name: str) -> int:
    match = re.search(rf"^{name} (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    assert match, f"this kernel does not count {name}"
    return int(match[1])


def reclaim() -> int:
    """Pages the kernel has looked at for taking them back, on all NUMA nodes."""
    return vmstat("pgscan_kswapd") + vmstat("pgscan_direct")


def free_above_watermarks(numa_node: int, watermark: str = "high") -> bool:
    """Whether the zones of a NUMA node have more free than these watermarks (read here, not by the product)."""
    text = Path("/proc/zoneinfo").read_text()
    pattern = rf"^Node {numa_node}, zone\s+\w+$.*?pages free\s+(\d+).*?{watermark}\s+(\d+)"
    zones = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    assert zones
    return sum(int(free) for free, _ in zones) > sum(int(mark) for _, mark in zones)


def fill(hog: MemoryProcess, numa_node: int, *, leave: int) -> None:
    """Let a process take what is free on a NUMA node but for `leave` bytes, give or take a MiB.

    The kernel's background reclaim, once woken, goes on for a while and frees page cache: what is free has to settle.
    """

    looks = 0

    def settled() -> bool:
        nonlocal looks
        rest = (safe_on(numa_node, Kernel()) - leave) // PAGE * PAGE
        looks = looks + 1 if rest <= MIB else 0
        if rest > MIB:
            hog.ask(f"more {rest} {numa_node}")
        return looks == 5

    wait_for(settled)


@contextlib.contextmanager
def nearly_full(numa_node: int, *, leave: int) -> Iterator[MemoryProcess]:
    """A process that takes nearly all of a NUMA node: preferred policy (bind would call the OOM killer) and locked."""
    Path("/proc/sys/vm/drop_caches").write_text("1")
    size = (safe_on(numa_node, Kernel()) - leave - 32 * MIB) // (2 * MIB) * 2 * MIB
    with memory_process(("thp", size, []), preferred=numa_node, lock=True) as hog:
        fill(hog, numa_node, leave=leave)
        yield hog


def wait_for(condition: Callable[[], bool], limit: float = LIMIT) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.01)


@contextlib.contextmanager
def cgroup(name: str, **settings: str) -> Iterator[Path]:
    """A cgroup of the guest with settings such as cpuset_mems="1-3"; empty again at the end."""
    root = Path("/sys/fs/cgroup")
    (root / "cgroup.subtree_control").write_text("+cpuset")
    group = root / name
    group.mkdir()
    try:
        for key, value in settings.items():
            (group / key.replace("_", ".", 1)).write_text(value)
        yield group
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def in_a_fork(prepare: Callable[[], None], call: Callable[[], Any]) -> Any:
    """Return what `call` returns, or the exception it raises, in a copy of this process that ran `prepare` first."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            result = call()
        except BaseException as error:  # noqa: BLE001 - it is handed to the test
            result = error
        with os.fdopen(writer, "wb") as file:
            pickle.dump(result, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    assert data, "the copy ended without a word"
    return pickle.loads(data)  # noqa: S301 - written by our own copy
