# SPDX-License-Identifier: Apache-2.0
"""The guest's NUMA cells as QEMU's command line describes them (qemu(1): -numa, -object, -machine, -m, -smp, -device).

What was plugged in while the guest ran is not on the command line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .listformat import parse_list
from .qemu_options import Option, last, number_of, options, size_of

_BACKEND = "memory-backend-"
_MEMORY_DEVICES = ("pc-dimm", "nvdimm", "virtio-mem")
_MOST_VCPUS = 65536
"""More than any machine of QEMU has."""
_SMALL_RANGE = re.compile(r"^\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*$", re.ASCII)
_DEFAULT_RAM = "pc.ram"
"""What QEMU's x86 machines call RAM for which no backend was given."""
_DEFAULT_SIZE = "128"
"""MiB of RAM without -m."""
_RAM_ALIGNMENT = 8192
"""QEMU rounds the size of -m up to this (softmmu/vl.c, set_memory_options)."""
_LEVELS = ("sockets", "dies", "clusters", "modules", "cores", "threads")
_IDS = ("socket-id", "die-id", "cluster-id", "module-id", "core-id", "thread-id")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One memory backend: `kind` ram, memfd, file or another, and `size` in bytes.

    `path` is the file or folder of a file backend; `page_size` that of a hugetlb memfd, 0 where none is said. `policy`
    and `host_nodes` are what QEMU asked the kernel for. `pluggable` memory may have been taken out again.
    """

    id: str
    kind: str = "ram"
    size: int = 0
    path: str = ""
    offset: int = 0
    shared: bool = False
    hugetlb: bool = False
    page_size: int = 0
    policy: str = "default"
    host_nodes: frozenset[int] = frozenset()
    pluggable: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One guest cell: its number, its memory backends, and the numbers of the vCPUs that are known to be in it."""

    number: int
    backends: tuple[Backend, ...] = ()
    vcpus: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return sum(backend.size for backend in self.backends)


def cells_of(command_line: Sequence[str]) -> tuple[Cell, ...]:
    """Return the guest's cells, ascending; a guest without NUMA is one cell.

    Cells whose memory is one backend together, as old machine types allow, all name that backend.
    """
    backends = {backend.id: backend for backend in map(_backend, _memory_objects(command_line))}
    topology = _topology(command_line)
    numa = list(options(command_line, "numa", implied="type"))
    cells = _nodes([each for each in numa if last(each, "type") == "node"], backends)
    if not any(cell.backends for cell in cells):
        ram = _machine_ram(command_line, backends)
        cells = [replace(cell, backends=(ram,)) for cell in cells]
        if not cells:
            cells = [Cell(number=0, backends=(ram,))]
    if len(cells) == 1:
        cells = [replace(cells[0], vcpus=frozenset(range(_vcpus(topology))))]
    for each in numa:
        if last(each, "type") == "cpu":
            cells = [_with_cpu(cell, each, topology) for cell in cells]
    for device in options(command_line, "device", implied="driver"):
        backend = backends.get(last(device, "memdev"))
        if backend is not None and last(device, "driver").startswith(_MEMORY_DEVICES):
            cells = [_with_device(cell, device, backend) for cell in cells]
    return tuple(sorted(cells, key=lambda cell: cell.number))


def backends_of(cells: Iterable[Cell]) -> dict[str, Backend]:
    """Return all backends of cells by their ids."""
    return {backend.id: backend for cell in cells for backend in cell.backends}


def _memory_objects(command_line: Sequence[str]) -> list[Option]:
    found = options(command_line, "object", implied="qom-type")
    return [each for each in found if last(each, "qom-type").startswith(_BACKEND)]


def _backend(option: Option) -> Backend:
    kind = last(option, "qom-type").removeprefix(_BACKEND)
    return Backend(
        id=last(option, "id"),
        kind=kind,
        size=size_of(last(option, "size")),
        path=last(option, "mem-path"),
        offset=size_of(last(option, "offset")),
        shared=last(option, "share", "on" if kind in {"memfd", "shm"} else "off") == "on",
        hugetlb=last(option, "hugetlb") == "on",
        page_size=size_of(last(option, "hugetlbsize")),
        policy=last(option, "policy", "default"),
        host_nodes=_numbers(option.get("host-nodes", ())),
    )


def _numbers(texts: Iterable[str]) -> frozenset[int]:
    """Return the numbers of lists such as 0-3; what is none, or beyond any machine, names nothing."""
    found: set[int] = set()
    for part in filter(_SMALL_RANGE.match, texts):
        found |= parse_list(part)
    return frozenset(found)


def _nodes(found: Iterable[Option], backends: dict[str, Backend]) -> list[Cell]:
    cells: list[Cell] = []
    for option in found:
        number = number_of(last(option, "nodeid"))
        backend = backends.get(last(option, "memdev"))
        cells.append(
            Cell(
                number=len(cells) if number is None else number,
                backends=() if backend is None else (backend,),
                vcpus=_numbers(option.get("cpus", ())),
            )
        )
    return cells


def _machine_ram(command_line: Sequence[str], backends: dict[str, Backend]) -> Backend:
    """Return the backend of a guest whose cells have none of their own."""
    machine = {
        key: values for each in options(command_line, "machine", "M", implied="type") for key, values in each.items()
    }
    named = backends.get(last(machine, "memory-backend"))
    if named is not None:
        return named
    memory = {key: values for each in options(command_line, "m", implied="size") for key, values in each.items()}
    size = size_of(last(memory, "size", _DEFAULT_SIZE), unit="m")
    paths = [text for flag, text in pairwise(command_line) if flag.lstrip("-") == "mem-path"]
    return Backend(
        id=_DEFAULT_RAM,
        kind="file" if paths else "ram",
        size=-(-size // _RAM_ALIGNMENT) * _RAM_ALIGNMENT,
        path=paths[-1] if paths else "",
    )


def _topology(command_line: Sequence[str]) -> dict[str, int]:
    """Return how many of each level the level above has; levels that were not given are 1, unless they matter."""
    smp = {key: values for each in options(command_line, "smp", implied="cpus") for key, values in each.items()}
    found = {key: number_of(last(smp, key)) for key in ("cpus", "maxcpus", *_LEVELS)}
    return {key: number for key, number in found.items() if number}


def _vcpus(topology: dict[str, int]) -> int:
    product = math.prod(topology.get(level, 1) for level in _LEVELS)
    return min(max(topology.get("maxcpus", 0), topology.get("cpus", 0), product), _MOST_VCPUS)


def _with_cpu(cell: Cell, option: Option, topology: dict[str, int]) -> Cell:
    """Add the vCPUs that -numa cpu names by their place in the machine; those whose place is not clear are left out.

    QEMU numbers vCPUs socket by socket, and in each core by core (hw/i386/x86.c, x86_possible_cpu_arch_ids).
    """
    if number_of(last(option, "node-id")) != cell.number or not {"sockets", "cores", "threads"} <= set(topology):
        return cell
    counts = [min(topology.get(level, 1), _MOST_VCPUS) for level in _LEVELS]
    if math.prod(counts) > _MOST_VCPUS:
        return cell
    numbers = [0]
    for name, count in zip(_IDS, counts, strict=True):
        wanted = number_of(last(option, name))
        places = range(count) if wanted is None else (wanted,)
        numbers = [number * count + place for number in numbers for place in places]
    return replace(cell, vcpus=cell.vcpus | frozenset(numbers))


def _with_device(cell: Cell, device: Option, backend: Backend) -> Cell:
    if number_of(last(device, "node", "0")) != cell.number:
        return cell
    return replace(cell, backends=(*cell.backends, replace(backend, pluggable=True)))
