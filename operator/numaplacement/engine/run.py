# SPDX-License-Identifier: Apache-2.0
"""The whole way for one process: survey, check, threads, move, verify, explain."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from .checks import Facts, refusals
from .chunks import ChunkSize, TokenBucket
from .compare import Overlay, compare
from .errors import LocatingRefused, ProcessEnded, Stopped
from .explain import Circumstances, explain
from .host import HostFacts, read_host
from .kernel import Kernel
from .mappings import NumaMapsRow
from .mover import Mover, Pass
from .pins import Pins, attribute, find_pins
from .plan import hidden_bytes, movable_bytes
from .process import HeldProcess, ProcessFacts, hold, read_process
from .reasons import NOT_ASKED, Reason
from .survey import Survey
from .surveyor import coarse_survey, read_numa_maps, survey
from .threads import follow
from .verdict import (
    CallTimes,
    Outcome,
    PageClass,
    Progress,
    Refusal,
    Request,
    ResidueRow,
    Stage,
    ThreadOutcome,
    Verdict,
    Watcher,
)
from .wording import size_text

_PASSES = 4
"""Passes at most: what a VM keeps touching anew is not chased for ever."""


def run(
    *,
    pid: int,
    request: Request,
    kernel: Kernel,
    watcher: Watcher,
    clock: Callable[[], float] = time.monotonic,
    pidfd: int | None = None,
) -> Verdict:
    """Move the memory of a process to one NUMA node and say where every byte is, and why any byte stayed.

    `pidfd` is held by the caller and stays theirs; without it the run holds one of its own. Whatever the process or
    the kernel do ends in a verdict. Raises EngineError where the engine cannot even look: no /proc, or no right to
    read where the process's pages are.
    """
    started = clock()
    run_state = _Run(request=request, watcher=watcher, clock=clock, started=started)
    try:
        with hold(pid, kernel, pidfd) as process:
            verdict = run_state.verdict(process)
    except ProcessEnded:
        verdict = run_state.gone()
    return replace(verdict, seconds=clock() - started)


@dataclass(kw_only=True)
class _Run:
    """One run, and what it has seen so far."""

    request: Request
    watcher: Watcher
    clock: Callable[[], float]
    started: float
    before: Survey | None = None
    mover: Mover | None = None
    threads: ThreadOutcome = field(default_factory=ThreadOutcome)
    passes: int = 0

    def verdict(self, process: HeldProcess) -> Verdict:
        """Go the whole way. Raises ProcessEnded and EngineError."""
        target = self.request.target
        self.watcher.progressed(Progress(stage=Stage.SURVEY))
        host = read_host(process.kernel)
        before, locating = _look(process)
        self.before = before
        facts = _gather(process, host=host, before=before, target=target, locating=locating)
        found = refusals(facts.facts)
        if found:
            return self._untouched(Outcome.REFUSED, facts, found)
        if self.request.dry_run:
            return self._untouched(Outcome.PLANNED, facts, ())
        if self.request.follow_threads:
            self.watcher.progressed(Progress(stage=Stage.THREADS))
            node = host.numa_node(target)
            self.threads = follow(
                process,
                target_cpus=node.cpus if node else frozenset(),
                numa_node_cpus=[node.cpus for node in host.numa_nodes],
            )
        return self._moved(process, facts)

    def gone(self) -> Verdict:
        """Return the verdict on a process that ended."""
        before = self.before or Survey(mappings=())
        return self._measured(
            Verdict(
                outcome=Outcome.PROCESS_GONE,
                message="the process ended; its memory is given back",
                before=before.rows,
                freed=before.total(),
            )
        )

    def _untouched(self, outcome: Outcome, facts: _Gathered, found: tuple[Refusal, ...]) -> Verdict:
        """Return the verdict when no page was touched."""
        before, target = facts.before, self.request.target
        pinned = any(refusal.reason is Reason.PINNED_BY_DEVICE for refusal in found)
        first = found[0].reason if found else Reason.PLANNED
        own_rows = first in {Reason.PINNED_BY_DEVICE, Reason.STRICT_BINDING, Reason.HUGETLB_NOT_YET}
        rows = explain(
            before,
            None,
            Circumstances(
                target=target,
                privileged=facts.privileged,
                untried=Reason.NOT_ATTEMPTED if own_rows else first,
                held=facts.held if pinned else {},
                bound=facts.bound if any(refusal.reason is Reason.STRICT_BINDING for refusal in found) else frozenset(),
                evidence={
                    Reason.NOT_ATTEMPTED: "no page was touched",
                    Reason.PLANNED: "would be moved",
                    **{refusal.reason: refusal.evidence for refusal in found},
                },
            ),
        )
        if found:
            message = "nothing was touched: " + "; ".join(refusal.evidence for refusal in found)
        else:
            message = (
                f"dry run: {size_text(facts.facts.needed)} of {size_text(before.total())} would be moved to NUMA node"
                f" {target}"
            )
        return _summed(
            Verdict(outcome=outcome, message=message, before=before.rows, after=before.rows, refusals=found),
            rows,
            target,
        )

    def _moved(self, process: HeldProcess, facts: _Gathered) -> Verdict:
        """Move in passes, look again, and say what came of it."""
        request = self.request
        mover = self.mover = Mover(
            process=process,
            target=request.target,
            privileged=facts.privileged,
            watcher=self.watcher,
            clock=self.clock,
            deadline_at=self.started + request.deadline,
            size=ChunkSize(target=request.call_latency),
            bucket=TokenBucket(rate=request.bandwidth),
        )
        done, after = self._passes(process, mover, facts.before)
        stopped = done.stopped
        rows = explain(
            after,
            Overlay(done.survey, done.trials),
            Circumstances(
                target=request.target,
                privileged=mover.privileged,
                untried=stopped.reason if stopped else Reason.UNEXPLAINED,
                refused=_meaning_of_refusal(facts.pins),
                evidence={stopped.reason: stopped.evidence} if stopped else {},
            ),
        )
        changes = compare(facts.before, after, target=request.target)
        verdict = self._measured(
            Verdict(
                outcome=Outcome.RESIDUE,
                message="",
                before=facts.before.rows,
                after=after.rows,
                moved=changes.moved,
                freed=changes.freed,
                grown=changes.grown,
                split=changes.split,
            )
        )
        return _judged(_summed(verdict, rows, request.target), request, stopped, swapped=facts.process.swapped)

    def _passes(self, process: HeldProcess, mover: Mover, before: Survey) -> tuple[Pass, Survey]:
        """Move until nothing movable is left, nothing moves any more, or the run is stopped."""
        last = before
        while True:
            self.passes += 1
            try:
                seen = self._revealed(process, mover, last)
            except Stopped as stopped:
                return Pass(survey=last, stopped=stopped), last
            done = mover.run(seen, number=self.passes)
            self.watcher.progressed(Progress(stage=Stage.VERIFY, pass_number=self.passes, bytes_done=mover.moved))
            after = survey(process.pid, process.kernel)
            left = mover.left(after)
            hidden = hidden_bytes(after, target=mover.target)
            if done.stopped or self.passes == _PASSES or not (hidden or (left and done.moved)):
                return done, after
            last = after

    def _revealed(self, process: HeldProcess, mover: Mover, last: Survey) -> Survey:
        """Return a survey in which the pages that hid can be seen, as far as they let themselves be. Raises Stopped."""
        if hidden_bytes(last, target=mover.target) and mover.reveal(last):
            return survey(process.pid, process.kernel)
        return last

    def _measured(self, verdict: Verdict) -> Verdict:
        """Return the verdict with what the run itself measured."""
        mover = self.mover
        if mover is None:
            return replace(verdict, threads=self.threads)
        durations = np.array(mover.durations or [0.0])
        return replace(
            verdict,
            threads=self.threads,
            passes=self.passes,
            move_seconds=mover.seconds,
            calls=CallTimes(
                count=len(mover.durations),
                p50=float(np.percentile(durations, 50)),
                p99=float(np.percentile(durations, 99)),
            ),
        )


@dataclass(frozen=True, kw_only=True)
class _Gathered:
    """All facts, before the first page is touched; `held` and `bound` as Circumstances wants them."""

    facts: Facts
    process: ProcessFacts
    before: Survey
    pins: Pins
    held: dict[int, int]
    bound: frozenset[int]
    privileged: bool


def _look(process: HeldProcess) -> tuple[Survey, int]:
    """Survey a process; where pages may not be located from numa_maps alone, with the errno of the refusal."""
    try:
        return survey(process.pid, process.kernel), 0
    except LocatingRefused as refused:
        return coarse_survey(process.pid, process.kernel), refused.number


def _gather(process: HeldProcess, *, host: HostFacts, before: Survey, target: int, locating: int) -> _Gathered:
    facts = read_process(process.pid, process.kernel)
    policies = read_numa_maps(process.pid, process.kernel)
    privileged = "CAP_SYS_NICE" in host.capabilities
    pins = find_pins(facts, before.mappings)
    held = attribute(pins.bytes, before)
    bound = [row for row in policies if _bound_elsewhere(row, target)]
    return _Gathered(
        facts=Facts(
            target=target,
            host=host,
            process=facts,
            pins=pins,
            total=before.total(),
            needed=_needed(before, target=target, privileged=privileged),
            in_pools=sum(
                row.bytes for row in before.rows if row.page_class is PageClass.HUGETLB and row.numa_node != target
            ),
            pinned_off_target=_held_off_target(before, held, target),
            bound_elsewhere=sum(
                count for row in bound for numa_node, count in row.bytes_by_numa_node.items() if numa_node != target
            ),
            bindings=tuple(sorted({row.policy for row in bound})),
            locating=locating,
        ),
        process=facts,
        before=before,
        pins=pins,
        held=held,
        bound=frozenset(row.start for row in bound),
        privileged=privileged,
    )


def _needed(before: Survey, *, target: int, privileged: bool) -> int:
    """Return the bytes that may have to be taken on the target, those of pages that hide for now included."""
    if not before.located:
        return before.total() - before.on(target)
    seen = movable_bytes(before.pages, target=target, privileged=privileged)
    return seen + hidden_bytes(before, target=target)


def _bound_elsewhere(row: NumaMapsRow, target: int) -> bool:
    return row.bound_to is not None and target not in row.bound_to


def _held_off_target(before: Survey, held: dict[int, int], target: int) -> int:
    """Return the most of the held bytes that can be off target, mapping by mapping."""
    return sum(
        min(
            held.get(part.mapping.start, 0),
            int(np.count_nonzero(part.numa_node != target)) * part.mapping.page_size,
        )
        for part in before.pages
    )


def _meaning_of_refusal(pins: Pins) -> Reason:
    """Return what it means in this process that a folio is refused although it is alone in a call."""
    if pins.by_device:
        return Reason.PINNED_BY_DEVICE
    return Reason.PINNED_BY_IO if pins.bytes else Reason.EXTRA_REFERENCE


def _summed(verdict: Verdict, rows: tuple[ResidueRow, ...], target: int) -> Verdict:
    """Return the verdict with its residue and the sums that follow from it."""
    total = sum(row.bytes for row in verdict.after)
    return replace(
        verdict,
        residue=rows,
        asked=total - sum(row.bytes for row in rows if row.reason in NOT_ASKED),
        on_target=sum(row.bytes for row in verdict.after if row.numa_node == target),
    )


def _judged(verdict: Verdict, request: Request, stopped: Stopped | None, *, swapped: int) -> Verdict:
    """Return the verdict with its outcome and message."""
    left = verdict.asked - verdict.on_target
    outcome = Outcome.RESIDUE
    if left <= request.tolerance_bytes + int(request.tolerance_share * verdict.asked):
        outcome = Outcome.PLACED
    elif stopped is not None:
        outcome = {Reason.CANCELLED: Outcome.CANCELLED, Reason.DEADLINE: Outcome.DEADLINE}.get(
            stopped.reason, Outcome.RESIDUE
        )
    parts = [
        f"{size_text(verdict.on_target)} of {size_text(verdict.asked)} on NUMA node {request.target}",
        f"{size_text(left)} off target" if left else "",
        stopped.evidence if stopped else "",
        f"{size_text(swapped)} swapped out and on no NUMA node" if swapped else "",
    ]
    return replace(verdict, outcome=outcome, message="; ".join(filter(None, parts)))
