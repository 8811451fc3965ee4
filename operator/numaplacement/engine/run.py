# SPDX-License-Identifier: Apache-2.0
"""The whole way for one process: survey, check, prepare, threads, move, verify, explain."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .afterwards import notes_beside, notes_on
from .checks import refusals
from .chunks import ChunkSize, TokenBucket
from .collapse import Collapsed, collapse_blocks, split_blocks
from .compare import Overlay, compare
from .contiguity import read_blocks
from .errors import EngineError, LocatingRefused, ProcessEnded, Stopped
from .explain import Circumstances, explain, refused_pages
from .facts import Gathered, gather, look
from .guard import Guard
from .host import HostFacts, read_host
from .judge import judged, on_target, summed, untouched
from .kernel import Kernel
from .ledger import Ledger
from .mover import Mover, Pass
from .pins import meaning_of_refusal
from .plan import touchable_bytes
from .prepare import Preparation, Refused
from .pressure import Throttle, find_sources
from .process import HeldProcess, hold, main_cgroup
from .reasons import ADVICE, Reason
from .reveal import reveal
from .survey import Survey
from .surveyor import survey
from .threads import cpus_by_cell, follow, restore
from .verdict import (
    Allow,
    CallTimes,
    Note,
    Outcome,
    Progress,
    Request,
    Stage,
    ThreadOutcome,
    Verdict,
    Watcher,
)

_PASSES = 4
"""Passes at most: what a VM keeps touching anew is not chased for ever."""
_PATIENCE = 5.0
"""Seconds to wait for the kernel to make room on a target, where that is allowed."""
_PATIENCE_WITH_OTHERS = 1.0
"""Seconds after which another run has taken note of what a call of its took: until then that counts twice."""
_WHOLLY = 0.9
"""Share of a mapping's memory from which on a device is taken to hold all of it."""


def run(
    *,
    pid: int,
    request: Request,
    kernel: Kernel,
    watcher: Watcher,
    clock: Callable[[], float] = time.monotonic,
    pidfd: int | None = None,
    ledger: Ledger | None = None,
) -> Verdict:
    """Move the memory of a process where it was asked to be and say where every byte is, and why any byte stayed.

    `pidfd` is held by the caller and stays theirs; without it the run holds one of its own. `ledger` is where runs at
    the same time reserve what they are going to take. Whatever the process or the kernel do ends in a verdict. Raises
    EngineError where the engine cannot even look: no /proc, or no right to read where the process's pages are.
    """
    started = clock()
    run_state = _Run(request=request, watcher=watcher, clock=clock, started=started, ledger=ledger)
    try:
        with hold(pid, kernel, pidfd) as process:
            verdict = run_state.verdict(process)
    except ProcessEnded:
        verdict = run_state.gone()
    except LocatingRefused as refused:
        raise EngineError(
            f"the kernel does not say any more where the process's pages are ({os.strerror(refused.number)}); run as"
            " root with CAP_SYS_PTRACE, and see that no security module denies it"
        ) from refused
    except MemoryError as error:
        raise EngineError("this program has not enough memory; allow it more, and try again") from error
    return replace(verdict, seconds=clock() - started)


@dataclass(kw_only=True)
class _Run:
    """One run, and what it has seen so far."""

    request: Request
    watcher: Watcher
    clock: Callable[[], float]
    started: float
    ledger: Ledger | None
    before: Survey | None = None
    mover: Mover | None = None
    threads: ThreadOutcome = field(default_factory=ThreadOutcome)
    passes: int = 0

    def verdict(self, process: HeldProcess) -> Verdict:
        """Go the whole way. Raises ProcessEnded and EngineError."""
        self.watcher.progressed(Progress(stage=Stage.SURVEY))
        host = read_host(process.kernel)
        before, locating = look(process)
        self.before = before
        gathered = gather(process, request=self.request, host=host, before=before, locating=locating)
        found = refusals(gathered.facts)
        if found:
            return untouched(Outcome.REFUSED, gathered, found)
        if self.request.dry_run:
            return untouched(Outcome.PLANNED, gathered, ())
        guard = Guard(
            process=process,
            watcher=self.watcher,
            clock=self.clock,
            deadline_at=self.started + self.request.deadline,
        )
        preparation = Preparation(
            process=process, request=self.request, gathered=gathered, guard=guard, ledger=self.ledger
        )
        try:
            with preparation:
                verdict = self._prepared(preparation, host)
        except EngineError as error:  # what was not given back is to be known all the same
            told = (note.evidence for note in preparation.notes)
            raise EngineError("; ".join((str(error), *told))) from error
        return replace(verdict, notes=(*preparation.notes, *verdict.notes))

    def _prepared(self, preparation: Preparation, host: HostFacts) -> Verdict:
        """Prepare and move; the preparations are undone by their context. Raises ProcessEnded and EngineError."""
        gathered = preparation.gathered
        try:
            if gathered.facts.needed:
                preparation.prepare()
        except Refused as refused:
            return untouched(Outcome.REFUSED, gathered, (refused.found,))
        except Stopped as stopped:
            return self._stopped_before(gathered, stopped)
        try:
            return self._moved(preparation, host)
        except (EngineError, LocatingRefused, MemoryError, ProcessEnded):
            self._leave(preparation)
            raise

    def _leave(self, preparation: Preparation) -> None:
        """Where the run breaks off put the threads back, unless memory has moved; see what pools get back."""
        process = preparation.process
        with contextlib.suppress(EngineError, ProcessEnded, LocatingRefused):
            if self.mover is None or not self.mover.moved:
                self.threads = restore(process, self.threads)
            else:
                preparation.left_pools(preparation.gathered.before, survey(process.pid, process.kernel))

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

    def _stopped_before(self, gathered: Gathered, stopped: Stopped) -> Verdict:
        """Return the verdict where the run was stopped before anything moved."""
        targets = gathered.facts.targets
        rows = explain(
            gathered.before,
            None,
            Circumstances(
                targets=targets,
                privileged=gathered.privileged,
                untried=stopped.reason,
                evidence={stopped.reason: stopped.evidence},
            ),
        )
        verdict = Verdict(outcome=Outcome.RESIDUE, message="", before=gathered.before.rows, after=gathered.before.rows)
        return judged(summed(verdict, rows, on_target(gathered.before, targets)), self.request, targets, stopped)

    def _follow(self, process: HeldProcess, host: HostFacts, gathered: Gathered) -> None:
        self.watcher.progressed(Progress(stage=Stage.THREADS))
        by_numa_node = {node.numa_node: node.cpus for node in host.numa_nodes}
        if self.request.cells:
            wanted = cpus_by_cell(gathered.cells, self.request.cells, by_numa_node)
            self.threads = follow(process, target_cpus=wanted, numa_node_cpus=by_numa_node.values())
        else:
            target = by_numa_node.get(self.request.target or 0, frozenset())
            self.threads = follow(process, target_cpus=target, numa_node_cpus=by_numa_node.values())

    def _moved(self, preparation: Preparation, host: HostFacts) -> Verdict:
        """Move in passes, look again, and say what came of it."""
        request, gathered, guard = self.request, preparation.gathered, preparation.guard
        process, targets, before = guard.process, gathered.facts.targets, gathered.before
        throttle = self._throttle(process, gathered)
        if request.follow_threads:
            self._follow(process, host, gathered)
        mover = self.mover = Mover(
            guard=guard,
            targets=targets,
            privileged=gathered.privileged,
            clock=self.clock,
            size=ChunkSize(target=request.call_latency),
            bucket=TokenBucket(rate=request.bandwidth),
            room=preparation.room,
            movers=request.movers,
            throttle=throttle,
            patience=self._patience(),
            landed=preparation.landed,
        )
        mover.memory.held = frozenset(self._held_wholly(gathered))
        throttle.settle()
        done, after = self._passes(mover, host, before)
        collapsed, after = self._rebuilt(mover, done, after)
        preparation.left_pools(before, after)
        verdict = self._explained(gathered, mover, done, after)
        if not verdict.moved and self.threads.earlier and verdict.outcome is not Outcome.PLACED:
            self.threads = restore(process, self.threads)
            verdict = replace(verdict, threads=self.threads)
        if self._bind(preparation, verdict):  # the kernel has moved what was left, as far as it could
            after = survey(process.pid, process.kernel)
            verdict = self._explained(gathered, mover, done, after)
        preparation.close()
        notes = (
            *notes_on(verdict, request, host, collapsed),
            *notes_beside(
                pid=process.pid,
                survey=after,
                targets=targets,
                container=preparation.container,
                kernel=process.kernel,
                clock=self.clock,
            ),
        )
        return replace(verdict, notes=notes)

    def _patience(self) -> float:
        """Return how long to wait for room: for the kernel to make some, or for another run to say what it has used."""
        if Allow.RECLAIM in self.request.allow:
            return _PATIENCE
        return _PATIENCE_WITH_OTHERS if self.ledger is not None else 0.0

    def _throttle(self, process: HeldProcess, gathered: Gathered) -> Throttle:
        """Return what holds the movers back while the VM or the target's neighbours suffer."""
        sources = find_sources(
            process.kernel,
            pid=process.pid,
            targets=gathered.facts.targets.numa_nodes,
            cgroup=main_cgroup(process.pid, process.kernel),
            vcpus=[thread.thread_id for thread in gathered.process.threads if thread.is_vcpu],
        )
        return Throttle(kernel=process.kernel, sources=sources, clock=self.clock)

    def _held_wholly(self, gathered: Gathered) -> set[int]:
        """Return the mappings that a device holds all of: each try to move a page of them would cost the VM a fault."""
        if not gathered.pins.by_device:
            return set()
        sizes: dict[int, int] = {}
        for part in gathered.before.pages:
            sizes[part.mapping.start] = sizes.get(part.mapping.start, 0) + part.page.size * part.mapping.page_size
        return {start for start, count in gathered.held.items() if count >= _WHOLLY * sizes.get(start, 0)}

    def _explained(self, gathered: Gathered, mover: Mover, done: Pass, after: Survey) -> Verdict:
        """Return the verdict on what the passes left."""
        request, targets, stopped = self.request, gathered.facts.targets, done.stopped
        meanings = {
            numa_node: meaning_of_refusal(gathered.pins, numa_node=numa_node, pages=pages)
            for numa_node, pages in refused_pages(done.survey, done.trials).items()
        }
        held_wholly = self._held_wholly(gathered)
        rows = explain(
            after,
            Overlay(done.survey, done.trials),
            Circumstances(
                targets=targets,
                privileged=mover.privileged,
                untried=stopped.reason if stopped else Reason.UNEXPLAINED,
                refused={numa_node: reason for numa_node, (reason, _) in meanings.items()},
                held={start: count for start, count in gathered.held.items() if start in held_wholly},
                evidence={
                    **({Reason.PINNED_BY_DEVICE: gathered.pins.evidence()} if held_wholly else {}),
                    **({stopped.reason: stopped.evidence} if stopped else {}),
                },
                evidence_on={(reason, node): seen for node, (reason, seen) in meanings.items()},
            ),
        )
        changes = compare(gathered.before, after, targets=targets)
        verdict = self._measured(
            Verdict(
                outcome=Outcome.RESIDUE,
                message="",
                before=gathered.before.rows,
                after=after.rows,
                moved=changes.moved,
                freed=changes.freed,
                grown=changes.grown,
                split=changes.split,
            )
        )
        return judged(summed(verdict, rows, on_target(after, targets)), request, targets, stopped)

    def _passes(self, mover: Mover, host: HostFacts, before: Survey) -> tuple[Pass, Survey]:
        """Move until nothing movable is left, nothing moves any more, or the run is stopped."""
        process, targets = mover.guard.process, mover.targets
        last = before
        while True:
            self.passes += 1
            try:
                seen = self._revealed(mover, host, last)
            except Stopped as stopped:
                return Pass(survey=last, stopped=stopped), last
            done = mover.run(seen, number=self.passes)
            self.watcher.progressed(Progress(stage=Stage.VERIFY, pass_number=self.passes, bytes_done=mover.moved))
            after = survey(process.pid, process.kernel)
            left = mover.left(after)
            waiting = touchable_bytes(after.pages, targets=targets)
            if done.stopped or self.passes == _PASSES or not (waiting or (left and done.moved)):
                return done, after
            last = after

    def _revealed(self, mover: Mover, host: HostFacts, last: Survey) -> Survey:
        """Return a survey in which the pages that hid can be seen, as far as they let themselves be. Raises Stopped."""
        guard = mover.guard
        touched = touchable_bytes(last.pages, targets=mover.targets) and reveal(
            last, targets=mover.targets, guard=guard, room=mover.room, cpus=lambda target: _cpus(host, target)
        )
        return survey(guard.process.pid, guard.process.kernel) if touched else last

    def _rebuilt(self, mover: Mover, done: Pass, after: Survey) -> tuple[Collapsed, Survey]:
        """Make huge pages again of those that were split, and look again where that changed anything."""
        process, before = mover.guard.process, self.before
        if before is None or (done.stopped and done.stopped.reason in {Reason.CANCELLED, Reason.DEADLINE}):
            return Collapsed(), after
        huge = process.kernel.huge_page_size()
        try:
            collapsed = collapse_blocks(
                process,
                split_blocks(before, after, targets=mover.targets, huge=huge),
                huge=huge,
                room=lambda target: _whole_huge_pages(process.kernel, target, huge),
                check=mover.guard.check,
                clock=self.clock,
            )
        except Stopped:
            collapsed = Collapsed(rebuilt=1)  # some perhaps: look again
        return collapsed, survey(process.pid, process.kernel) if collapsed.rebuilt else after

    def _bind(self, preparation: Preparation, verdict: Verdict) -> bool:
        """Narrow the container's cpuset to the targets after the move, or put it back where nothing moved.

        Return whether memory may be elsewhere now than the verdict says.
        """
        if preparation.rebind is None:
            return False
        left = verdict.asked - verdict.on_target
        if verdict.moved or verdict.outcome is Outcome.PLACED:
            outcome = preparation.rebind.narrow(left=left)
        else:
            outcome = preparation.rebind.put_back()
        preparation.rebind = None
        if not outcome.done:
            remedy = outcome.remedy or ADVICE[Reason.VM_CPUSET].remedy
            preparation.notes.append(Note(reason=Reason.VM_CPUSET, evidence=outcome.evidence, remedy=remedy))
        return left > 0

    def _measured(self, verdict: Verdict) -> Verdict:
        """Return the verdict with what the run itself measured."""
        mover = self.mover
        if mover is None:
            return replace(verdict, threads=self.threads)
        return replace(
            verdict,
            threads=self.threads,
            passes=self.passes,
            move_seconds=mover.seconds,
            calls=CallTimes(count=len(mover.durations), p50=mover.latency(50), p99=mover.latency(99)),
        )


def _whole_huge_pages(kernel: Kernel, numa_node: int, huge: int) -> int:
    """Return the bytes in free huge pages that may be taken on a NUMA node; 0 where that cannot be read."""
    try:
        return read_blocks(numa_node, kernel, huge).usable
    except OSError:
        return 0


def _cpus(host: HostFacts, numa_node: int) -> frozenset[int]:
    """Return the CPUs of a NUMA node; none where it has none."""
    found = host.numa_node(numa_node)
    return found.cpus if found else frozenset()
