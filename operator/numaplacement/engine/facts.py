# SPDX-License-Identifier: Apache-2.0
"""Gathers all that is known of a process and its host before the first page or thread is touched."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

from .cell_memory import CellsUnknown, assign_cells
from .cells import Cell, backends_of, cells_of
from .checks import Facts
from .errors import LocatingRefused
from .host import HostFacts, reading_host
from .kernel import Kernel
from .mappings import Mapping, NumaMapsRow
from .pins import Pins, attribute, find_pins, read_pin_counters
from .plan import Demand, movable_bytes, touchable_bytes
from .pools import PoolPlan, largest_block, plan_pool, read_pools
from .process import HeldProcess, ProcessFacts, read_process
from .ram_blocks import ram_block_addresses
from .reclaim import Admission, Means, Offer, admissible, read_offer, read_room
from .survey import Survey
from .surveyor import coarse_survey, read_mappings, read_numa_maps, survey
from .targets import Targets, targets_of_cells
from .verdict import NO_NUMA_NODE, Allow, Request


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """All facts, before the first page is touched; `held` and `bound` as Circumstances wants them.

    `bindings` are all bind policies of the process, wherever to.
    """

    facts: Facts
    process: ProcessFacts
    before: Survey
    pins: Pins
    held: dict[int, int]
    bound: frozenset[int]
    privileged: bool
    cells: tuple[Cell, ...] = ()
    bindings: frozenset[str] = frozenset()
    pools: dict[tuple[int, int], PoolPlan] = field(default_factory=dict)


def look(process: HeldProcess) -> tuple[Survey, int]:
    """Survey a process; where pages may not be located from numa_maps alone, with the errno of the refusal."""
    try:
        return survey(process.pid, process.kernel), 0
    except LocatingRefused as refused:
        return coarse_survey(process.pid, process.kernel), refused.number


def gather(
    process: HeldProcess,
    *,
    request: Request,
    host: HostFacts,
    before: Survey,
    locating: int,
    policies: tuple[NumaMapsRow, ...] | None = None,
) -> Gathered:
    """Return the facts; `policies` are read where they are not known yet. Raises ProcessEnded and EngineError."""
    kernel = process.kernel
    facts = read_process(process.pid, kernel)
    if policies is None:
        policies = read_numa_maps(process.pid, kernel)
    cells = cells_of(facts.command_line) if request.cells else ()
    targets, cells_unknown = _targets_of(process, request, facts, before.mappings, policies)
    privileged = "CAP_SYS_NICE" in host.capabilities
    pins = find_pins(facts, before.mappings, read_pin_counters(kernel))
    held = attribute(pins.bytes, before)
    starts = {mapping.start: targets.of(mapping) for mapping in before.mappings}
    bound = [row for row in policies if _bound_elsewhere(row, starts.get(row.start))]
    needed = _needed(before, targets=targets, privileged=privileged)
    with reading_host():
        pools = _pools(needed, request, kernel)
        admissions = _admissions(needed, request, host, kernel)
    return Gathered(
        facts=Facts(
            targets=targets,
            allow=request.allow,
            host=host,
            process=facts,
            pins=pins,
            total=before.total(),
            needed=needed,
            admissions=admissions,
            pools=pools,
            pinned_off_target=_held_off_target(before, held, targets),
            bound_elsewhere=sum(
                count
                for row in bound
                for numa_node, count in row.bytes_by_numa_node.items()
                if numa_node != starts.get(row.start)
            ),
            bindings=tuple(sorted({row.policy for row in bound})),
            locating=locating,
            cells_unknown=cells_unknown,
        ),
        process=facts,
        before=before,
        pins=pins,
        held=held,
        bound=frozenset(row.start for row in bound),
        privileged=privileged,
        cells=cells,
        bindings=frozenset(row.policy for row in policies if row.bound_to is not None),
        pools=pools,
    )


def room(kernel: Kernel, numa_node: int, page_size: int, *, allow: frozenset[Allow] = frozenset()) -> int:
    """Return the bytes that may be taken on a NUMA node now, in base pages or in those of a huge-page pool.

    Raises OSError.
    """
    if page_size == kernel.page_size:
        return read_room(numa_node, kernel, allowed=Allow.RECLAIM in allow)
    return read_pools(kernel, page_size).usable(numa_node) * page_size


def targets_now(process: HeldProcess, request: Request) -> Targets:
    """Return what is asked of each mapping there is now. Raises ProcessEnded and EngineError."""
    kernel, pid = process.kernel, process.pid
    facts, policies = read_process(pid, kernel), read_numa_maps(pid, kernel)
    return _targets_of(process, request, facts, read_mappings(pid, kernel), policies)[0]


def _targets_of(
    process: HeldProcess,
    request: Request,
    facts: ProcessFacts,
    mappings: tuple[Mapping, ...],
    policies: tuple[NumaMapsRow, ...],
) -> tuple[Targets, str]:
    """Return what is asked of each mapping, and why guest cells could not be found, empty where they could."""
    if not request.cells:
        return Targets(default=request.target), ""
    backends = backends_of(cells_of(facts.command_line)).values()
    blocks = ram_block_addresses(process.pid, process.kernel, backends, mappings)
    assigned = assign_cells(facts.command_line, mappings, policies, request.cells, blocks)
    if isinstance(assigned, CellsUnknown):
        return Targets(), assigned.evidence
    return targets_of_cells(assigned), ""


def _admissions(needed: Demand, request: Request, host: HostFacts, kernel: Kernel) -> dict[int, Admission]:
    """Return whether the base pages needed fit on each target."""
    found: dict[int, Admission] = {}
    allowed = Allow.RECLAIM in request.allow
    for (target, size), count in needed.items():
        node = host.numa_node(target)
        if size == kernel.page_size and node is not None:
            offered = read_offer(target, kernel) if allowed else Offer(means=Means.NONE)
            found[target] = admissible(numa_node=target, safe=node.safe, need=count, offered=offered, allowed=allowed)
    return found


def _pools(needed: Demand, request: Request, kernel: Kernel) -> dict[tuple[int, int], PoolPlan]:
    """Return how what is needed of huge-page pools finds a place, by target and size of page."""
    allowed = Allow.GROW_HUGE_PAGES in request.allow
    return {
        (target, size): plan_pool(
            count,
            pools=read_pools(kernel, size),
            numa_node=target,
            allowed=allowed,
            largest_block=largest_block(kernel),
        )
        for (target, size), count in needed.items()
        if size > kernel.page_size
    }


def _needed(before: Survey, *, targets: Targets, privileged: bool) -> Demand:
    """Return the bytes that may have to be taken on the targets, those of pages that hide for now included."""
    if not before.located:
        away = {
            target: before.total() - before.on(target) for target in targets.numa_nodes if target == targets.default
        }
        return {(target, os.sysconf("SC_PAGE_SIZE")): count for target, count in away.items() if count}
    needed = movable_bytes(before.pages, targets=targets, privileged=privileged)
    for key, count in touchable_bytes(before.pages, targets=targets).items():
        needed[key] = needed.get(key, 0) + count
    return needed


def _bound_elsewhere(row: NumaMapsRow, target: int | None) -> bool:
    return row.bound_to is not None and target is not None and target not in row.bound_to


def _held_off_target(before: Survey, held: dict[int, int], targets: Targets) -> int:
    """Return the most of the held bytes that can be off target, mapping by mapping."""
    away: dict[int, int] = {}
    for part in before.pages:
        target = targets.of(part.mapping)
        if target is not None:
            there = (part.numa_node != target) & (part.numa_node != NO_NUMA_NODE)
            count = int(np.count_nonzero(there)) * part.mapping.page_size
            away[part.mapping.start] = away.get(part.mapping.start, 0) + count
    return sum(min(held.get(start, 0), count) for start, count in away.items())
