# SPDX-License-Identifier: Apache-2.0
"""Whether memory is still on target once AutoNUMA has had its say: a look after the verdict, which may take a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from .errors import EngineError, ProcessEnded, Stopped
from .facts import targets_now
from .guard import Guard
from .host import read_host
from .kernel import Kernel
from .mappings import Kind, Mapping
from .plan import MOVABLE_KINDS
from .process import HeldProcess, hold
from .reasons import ADVICE, Reason
from .stay import placement_at, watch
from .surveyor import read_mappings
from .targets import Targets
from .verdict import Note, Outcome, Progress, Request, Stage, Verdict, Watcher

LIMIT = 120.0
"""Seconds that two scans of AutoNUMA take at most by default (sysctl_numa_balancing_scan_period_max)."""
_NOT_BY_AUTONUMA = (
    "Let all threads of the VM follow: pages are made where threads run. Then see what else moves memory on this host,"
    " such as numad or migratepages, and try again."
)


def with_stay(
    verdict: Verdict,
    *,
    pid: int,
    request: Request,
    kernel: Kernel,
    watcher: Watcher,
    limit: float = LIMIT,
    clock: Callable[[], float] = time.monotonic,
    pidfd: int | None = None,
) -> Verdict:
    """Return a verdict that says whether memory stayed since the run that came to it, however long ago that was.

    Unchanged where nothing came on target, where the process ended meanwhile, and where the watcher cancels. Where
    files cannot be read `stayed` is not known, and a note says so.
    """
    if verdict.outcome is not Outcome.PLACED and not (verdict.outcome is Outcome.RESIDUE and verdict.moved):
        return verdict
    watcher.progressed(Progress(stage=Stage.STAY))
    try:
        with hold(pid, kernel, pidfd) as process:
            targets = _targets(process, request)
            mappings = {mapping.start: mapping for mapping in read_mappings(pid, kernel)}

            def target_of(start: int) -> int | None:
                made_since = Mapping(start=start, end=start, path="", kind=Kind.ANON)
                mapping = mappings.get(start, made_since)
                return targets.of(mapping) if mapping.kind in MOVABLE_KINDS else None

            stay = watch(
                process,
                then=placement_at(verdict),
                target_of=target_of,
                target_cpus=_cpus(kernel, targets),
                tolerance=request.tolerance_bytes + int(request.tolerance_share * verdict.asked),
                limit=limit,
                check=Guard(process=process, watcher=watcher, clock=clock, deadline_at=clock() + 2 * limit).check,
                clock=clock,
            )
    except (ProcessEnded, Stopped):
        return verdict
    except EngineError as error:
        remedy = ADVICE[Reason.AUTO_NUMA].remedy
        note = Note(reason=Reason.AUTO_NUMA, evidence=f"whether it stays could not be seen: {error}", remedy=remedy)
        return replace(verdict, notes=(*verdict.notes, note))
    if stay.stayed:
        return replace(verdict, stayed=True, message=f"{verdict.message}; it stayed: {stay.evidence}")
    notes = tuple(
        Note(
            reason=Reason.MOVED_BACK,
            numa_node=numa_node,
            bytes=count,
            evidence=stay.evidence,
            remedy=ADVICE[Reason.MOVED_BACK].remedy if stay.balancing else _NOT_BY_AUTONUMA,
        )
        for numa_node, count in stay.came_back.items()
    )
    message = f"{verdict.message}; it did not stay: {stay.evidence}"
    return replace(verdict, stayed=False, message=message, notes=(*verdict.notes, *notes))


def _targets(process: HeldProcess, request: Request) -> Targets:
    """Return what is asked of each mapping there is now. Raises ProcessEnded, and EngineError where that is unknown."""
    targets = targets_now(process, request)
    if not targets.numa_nodes:
        raise EngineError("which memory is which guest cell's cannot be told any more")
    return targets


def _cpus(kernel: Kernel, targets: Targets) -> frozenset[int]:
    host = read_host(kernel)
    nodes = (host.numa_node(numa_node) for numa_node in targets.numa_nodes)
    return frozenset[int]().union(*(node.cpus for node in nodes if node))
