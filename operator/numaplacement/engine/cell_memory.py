# SPDX-License-Identifier: Apache-2.0
"""Which mappings of QEMU are the memory of which guest cell: proved, or said to be unknown.

What counts as proof, strongest first:

1. QEMU's own record of a RAM block, read from its heap (ram_blocks.py): name, address and size side by side.
2. Kind, exact size and name: a file backend's file carries the backend's id.
3. The policy of the mapping in numa_maps against host-nodes of the backend, for all backends it could be or for none: a
   write to cpuset.mems rebinds policies, and then what is bound to NUMA node 1 need not be what QEMU bound there.

Order of addresses is no proof, nor is order of memfds. mmap(2) hands out addresses downwards, and QEMU maps backends in
the order of its command line, so the first often lies highest. But a block is mapped with room for its alignment and
given back down to a guard page (qemu_ram_mmap), and a later one may fit into a gap above; kernels from 6.7 on align
large anonymous mappings to huge pages, which makes more gaps. Inode numbers of memfds come in batches for each CPU
(mm/shmem.c, shmem_reserve_inode), so that they do not tell the order of creation, and a lower descriptor may have been
closed in between.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Mapping as Table
from dataclasses import dataclass

from .cells import Backend, Cell, backends_of, cells_of
from .listformat import format_list, parse_list
from .mappings import Mapping, NumaMapsRow
from .ram_ranges import RamRange, fits, looks_like_guest_ram, ram_ranges
from .wording import size_text

_POLICY = re.compile(r"^(?P<mode>[a-z]+)(?: \(many\))?(?:=[^:]*)?:(?P<nodes>[0-9,-]*)$", re.ASCII)
_MODES = {"bind": "bind", "prefer": "preferred", "interleave": "interleave"}
"""Words of numa_maps for those of QEMU's policy= (HostMemPolicy)."""


@dataclass(frozen=True, kw_only=True)
class CellsUnknown:
    """The memory of the cells cannot be told apart or found; `evidence` says what was seen."""

    evidence: str


@dataclass(frozen=True, kw_only=True)
class CellPlace:
    """A cell and the mappings that are its memory; None where they cannot be told."""

    cell: Cell
    mappings: tuple[Mapping, ...] | None


def assign_cells(
    command_line: Sequence[str],
    mappings: Iterable[Mapping],
    rows: Iterable[NumaMapsRow],
    cells: Table[int, int],
    ram_blocks: Table[str, int] | None = None,
) -> tuple[tuple[Mapping, int], ...] | CellsUnknown:
    """Return the mappings of guest cells, each with the NUMA node its cell was given in `cells`.

    `rows` are those of numa_maps, `ram_blocks` addresses by backend from ram_block_addresses(). Where two assignments
    are possible that would send memory to different NUMA nodes, CellsUnknown is returned and nothing is guessed. To a
    guest of one cell belongs all that QEMU has mapped as guest RAM, also what was plugged in later.
    """
    known = cells_of(command_line)
    refused = _unusable(known, cells)
    if refused:
        return CellsUnknown(evidence=refused)
    ranges = ram_ranges(mappings)
    if len(known) == 1:
        return _of_the_only_cell(known[0], ranges, cells[known[0].number])
    backends = backends_of(known)
    wanted = {backend.id: cells.get(cell.number) for cell in known for backend in cell.backends}
    possible = _candidates(backends.values(), ranges, ram_blocks or {})
    lost = [backends[name] for name, starts in possible.items() if not starts and wanted[name] is not None]
    if any(not backend.pluggable for backend in lost):
        return CellsUnknown(evidence=_missing(lost))
    return _decided(_narrowed(possible, backends, tuple(rows)), ranges, wanted)


def _of_the_only_cell(
    cell: Cell, ranges: Sequence[RamRange], numa_node: int
) -> tuple[tuple[Mapping, int], ...] | CellsUnknown:
    lost = [each for each in cell.backends if not each.pluggable and not any(fits(each, one) for one in ranges)]
    if lost:
        return CellsUnknown(evidence=_missing(lost))
    own = [each for each in ranges if looks_like_guest_ram(each) or any(fits(one, each) for one in cell.backends)]
    return _given((each, numa_node) for each in own)


def places_of_cells(
    command_line: Sequence[str],
    mappings: Iterable[Mapping],
    rows: Iterable[NumaMapsRow],
    ram_blocks: Table[str, int] | None = None,
) -> tuple[CellPlace, ...]:
    """Return where each cell's memory is mapped, for display; parameters as those of assign_cells()."""
    known = cells_of(command_line)
    assigned = assign_cells(command_line, mappings, rows, {cell.number: cell.number for cell in known}, ram_blocks)
    if isinstance(assigned, CellsUnknown):
        return tuple(CellPlace(cell=cell, mappings=None) for cell in known)
    return tuple(
        CellPlace(cell=cell, mappings=tuple(mapping for mapping, number in assigned if number == cell.number))
        for cell in known
    )


def _unusable(known: Sequence[Cell], cells: Table[int, int]) -> str:
    """Say why cells cannot be placed as asked, if not."""
    numbers = [cell.number for cell in known]
    absent = set(cells) - set(numbers)
    if absent:
        there = f"guest cell {numbers[0]} only" if len(numbers) == 1 else f"guest cells {format_list(numbers)}"
        return f"guest cell {format_list(absent)} does not exist: the VM has {there}"
    for backend in backends_of(known).values():
        sharing = [cell.number for cell in known if backend.id in {each.id for each in cell.backends}]
        if len({cells.get(number) for number in sharing}) > 1:
            return f"guest cells {format_list(sharing)} have one memory backend together, {backend.id}"
    return ""


def _missing(backends: Iterable[Backend]) -> str:
    names = ", ".join(f"{backend.id} ({size_text(backend.size)})" for backend in backends)
    return f"QEMU has mapped no memory that fits memory backend {names}"


def _candidates(
    backends: Iterable[Backend], ranges: Iterable[RamRange], ram_blocks: Table[str, int]
) -> dict[str, set[int]]:
    """Return the starts of the ranges each backend can be."""
    possible: dict[str, set[int]] = {}
    for backend in backends:
        fitting = {each.start for each in ranges if fits(backend, each)}
        recorded = {ram_blocks[backend.id]} if backend.id in ram_blocks else set()
        possible[backend.id] = recorded & fitting or fitting
    return possible


def _narrowed(
    possible: dict[str, set[int]], backends: Table[str, Backend], rows: Sequence[NumaMapsRow]
) -> dict[str, set[int]]:
    """Take away what others must be, then what policies rule out; policies count only where they contradict nothing."""
    there = {name: starts for name, starts in possible.items() if starts}
    sure = {name for name in there if not backends[name].pluggable}
    first = _eliminated(there, sure) or there
    policies = {row.start: _policy(row) for row in rows}
    bound = {
        name: {
            start
            for start in starts
            if backends[name].policy == "default"
            or policies.get(start) == (backends[name].policy, backends[name].host_nodes)
        }
        for name, starts in first.items()
        if starts
    }
    return (_eliminated(bound, sure) if all(bound.values()) else {}) or first


def _eliminated(possible: dict[str, set[int]], sure: Collection[str]) -> dict[str, set[int]]:
    """Take a range that is the only one of a backend in `sure` away from all others, until nothing changes.

    Return nothing when that leaves one of those without any; others may be there no more.
    """
    left = {name: set(starts) for name, starts in possible.items()}
    changed = True
    while changed and all(left[name] for name in sure):
        changed = False
        for name in sure:
            others = [other for other, starts in left.items() if other != name and starts & left[name]]
            if len(left[name]) == 1 and others:
                changed = True
                left |= {other: left[other] - left[name] for other in others}
    return left if all(left[name] for name in sure) else {}


def _policy(row: NumaMapsRow) -> tuple[str, frozenset[int]]:
    match = _POLICY.match(row.policy)
    return (_MODES.get(match["mode"], ""), parse_list(match["nodes"])) if match else ("default", frozenset())


def _decided(
    possible: dict[str, set[int]], ranges: Iterable[RamRange], wanted: Table[str, int | None]
) -> tuple[tuple[Mapping, int], ...] | CellsUnknown:
    """Give each range the one NUMA node it can have; a range that may belong to no backend may also have none."""
    given: list[tuple[RamRange, int]] = []
    for each in ranges:
        names = [name for name, starts in possible.items() if each.start in starts]
        choices = {wanted[name] for name in names}
        rivals = {start for name in names for start in possible[name]}
        sure = len([name for name, starts in possible.items() if starts & rivals]) >= len(rivals)
        if len(choices) > 1 or (choices and choices != {None} and not sure):
            return CellsUnknown(
                evidence=f"{len(rivals)} mappings of {size_text(each.size)} fit memory backend"
                f" {' and '.join(sorted(names))} alike"
            )
        given += [(each, numa_node) for numa_node in choices if numa_node is not None]
    return _given(given)


def _given(assigned: Iterable[tuple[RamRange, int]]) -> tuple[tuple[Mapping, int], ...]:
    return tuple((mapping, numa_node) for each, numa_node in assigned for mapping in each.mappings)
