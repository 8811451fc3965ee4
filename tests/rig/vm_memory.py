# SPDX-License-Identifier: Apache-2.0
"""Where a process's memory lies, as the kernel and numastat say it. No code of the product is in this, so that it can
judge it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Container
from pathlib import Path


class VmError(Exception):
    """A VM cannot be started or reached; the message says why."""


def parse_list(text: str) -> list[int]:
    """A kernel list such as `0-2,5` as numbers."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def node_cpus(numa_node: int) -> list[int]:
    """The CPUs of a NUMA node. Raises VmError when the host has no such node."""
    try:
        return parse_list(Path(f"/sys/devices/system/node/node{numa_node}/cpulist").read_text())
    except FileNotFoundError:
        raise VmError(f"this host has no NUMA node {numa_node}") from None


def parse_numa_maps(text: str, address: int | None = None, without: Container[int] = ()) -> dict[int, int]:
    """4 KiB pages by NUMA node in a numa_maps text, of the mapping at `address` or of all but some (proc(5))."""
    pages: dict[int, int] = {}
    for line in text.splitlines():
        start = int(line.split(maxsplit=1)[0], 16)
        if start in without or address not in {None, start}:
            continue
        size = re.search(r"kernelpagesize_kB=(\d+)", line)
        for node, count in re.findall(r" N(\d+)=(\d+)", line):
            pages[int(node)] = pages.get(int(node), 0) + int(count) * (int(size[1]) if size else 4) // 4
    return pages


def numa_pages(pid: int, address: int | None = None) -> dict[int, int]:
    """4 KiB pages of a process by NUMA node, all of it or one mapping, from /proc/PID/numa_maps.

    Without the pages of the kernel itself that each process maps ([vvar]): Linux 7 counts them, 6 does not.
    """
    lines = map(str.split, Path(f"/proc/{pid}/maps").read_text().splitlines())
    kernels_own = {int(words[0].split("-")[0], 16) for words in lines if words[-1].startswith("[v")}
    return parse_numa_maps(Path(f"/proc/{pid}/numa_maps").read_text(), address, kernels_own)


def memory_policy(pid: int, address: int) -> str:
    """The memory policy numa_maps shows for the mapping at `address`."""
    for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines():
        start, policy = line.split()[:2]
        if int(start, 16) == address:
            return policy
    raise VmError(f"process {pid} has no mapping at {address:#x}")


def ram_mapping(pid: int, size: int) -> int:
    """The address of the VM's RAM in QEMU: its one writable mapping of just that size. Raises VmError."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        first, last = (int(number, 16) for number in line.split()[0].split("-"))
        if line.split()[1].startswith("rw") and last - first == size:
            found.append(first)
    if len(found) != 1:
        raise VmError(f"process {pid} has {len(found)} writable mappings of {size} bytes, not one")
    return found[0]


def parse_numastat(text: str) -> dict[int, float]:
    """MiB by NUMA node from the output of numastat -p."""
    nodes = [int(number) for number in re.findall(r"Node (\d+)", text)]
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == "Total" and len(words) >= len(nodes) + 1:
            return dict(zip(nodes, map(float, words[1:]), strict=False))
    raise VmError(f"no totals in what numastat says:\n{text}")


def numastat_p(pid: int) -> dict[int, float]:
    """MiB of a process by NUMA node, by numastat -p."""
    result = subprocess.run(["numastat", "-p", str(pid)], capture_output=True, text=True, check=True)
    return parse_numastat(result.stdout)
