# SPDX-License-Identifier: Apache-2.0
"""The whole way for one process: survey, check, prepare, threads, move, verify, explain."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .afterwards import notes_beside, notes_on
from .calls import Calls
from .checks import Refused, refusals
from .chunks import ChunkSize, TokenBucket
from .errors import EngineError, LocatingRefused, ProcessEnded, Stopped
from .facts import Gathered, gather, look
from .flight import Flight
from .guard import Guard
from .host import HostFacts, read_host
from .judge import held_wholly, moved, stopped_before, untouched
from .kernel import Kernel
from .lanes import Lanes
from .ledger import Ledger
from .mover import Mover, Pass
from .passes import Passes, rebuilt
from .prepare import Preparation
from .pressure import Throttle, find_sources
from .process import HeldProcess, hold, main_cgroup, possible_vcpus, read_threads
from .reasons import ADVICE, Reason
from .reveal import explained
from .survey import Survey
from .surveyor import survey
from .threads import beside, cpus_by_cell, follow, restore
from .verdict import (
    NO_NUMA_NODE,
    Allow,
    Note,
    Outcome,
    PageClass,
    Progress,
    Request,
    Stage,
    ThreadOutcome,
    Verdict,
    Watcher,
)

_PATIENCE = 5.0
"""Seconds to wait for the kernel to make room on a target, where that is allowed."""
_PATIENCE_WITH_OTHERS = 1.0
"""Seconds after which another run has taken note of what a call of its took: until then that counts twice."""


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
        raise run_state.told(
            f"the kernel does not say any more where the process's pages are ({os.strerror(refused.number)}); run as"
            " root with CAP_SYS_PTRACE, and see that no security module denies it"
        ) from refused
    except MemoryError as error:
        raise run_state.told("this program has not enough memory; allow it more, and try again") from error
    except EngineError as error:
        raise run_state.told(str(error)) from error
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
    preparation: Preparation | None = None
    throttle: Throttle | None = None
    mover: Mover | None = None
    threads: ThreadOutcome = field(default_factory=ThreadOutcome)
    passes: Passes | None = None

    def verdict(self, process: HeldProcess) -> Verdict:
        """Go the whole way. Raises ProcessEnded and EngineError."""
        self.watcher.progressed(Progress(stage=Stage.SURVEY))
        host = read_host(process.kernel)
        throttle = None if self.request.dry_run else self._throttle(process)
        before, locating = look(process)
        self.before = before
        gathered = gather(process, request=self.request, host=host, before=before, locating=locating)
        found = refusals(gathered.facts)
        if found:
            return untouched(Outcome.REFUSED, gathered, found)
        if throttle is not None and gathered.facts.needed:
            throttle.settle()
        self.throttle = throttle
        guard = Guard(
            process=process,
            watcher=self.watcher,
            clock=self.clock,
            deadline_at=self.started + self.request.deadline,
        )
        preparation = self.preparation = Preparation(
            process=process, request=self.request, gathered=gathered, guard=guard, ledger=self.ledger, clock=self.clock
        )
        if throttle is None:
            return self._planned(preparation)
        with guard.watchdog, preparation:
            verdict = self._prepared(preparation, host)
        return replace(verdict, notes=(*preparation.notes, *verdict.notes))

    def _planned(self, preparation: Preparation) -> Verdict:
        """Say what would come of it, and touch nothing. Raises EngineError."""
        gathered = preparation.gathered
        try:
            if gathered.facts.needed:
                preparation.foresee()
        except Refused as refused:
            return untouched(Outcome.REFUSED, gathered, (refused.found,))
        return replace(untouched(Outcome.PLANNED, gathered, ()), notes=tuple(preparation.notes))

    def _prepared(self, preparation: Preparation, host: HostFacts) -> Verdict:
        """Prepare and move; the preparations are undone by their context. Raises ProcessEnded and EngineError."""
        gathered = preparation.gathered
        try:
            if gathered.facts.needed:
                preparation.prepare()
        except Refused as refused:
            return untouched(Outcome.REFUSED, gathered, (refused.found,))
        except Stopped as stopped:
            return stopped_before(gathered, stopped, self.request)
        try:
            return self._moved(preparation, host)
        except BaseException:
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

    def told(self, words: str) -> EngineError:
        """Return what ends the run without a verdict; what was not given back is to be known all the same."""
        notes = self.preparation.notes if self.preparation else ()
        return EngineError("; ".join((words, *(note.evidence for note in notes))))

    def gone(self) -> Verdict:
        """Return the verdict on a process that ended."""
        before = self.before or Survey(mappings=())
        notes = self.preparation.notes if self.preparation else ()
        return self._measured(
            Verdict(
                outcome=Outcome.PROCESS_GONE,
                message="the process ended; its memory is given back",
                before=before.rows,
                freed=before.total(),
                notes=tuple(notes),
            )
        )

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
        if request.follow_threads:
            self._follow(process, host, gathered)
        mover = self.mover = Mover(
            guard=guard,
            targets=targets,
            calls=self._calls(preparation),
            clock=self.clock,
            movers=request.movers,
            cpus=beside(
                read_threads(process.pid, process.kernel), own=process.kernel.own_affinity(), least=request.movers
            ),
            landed=preparation.landed,
        )
        mover.memory.held = held_wholly(gathered)
        if self.throttle is not None:
            self.throttle.begin()
        passes = self.passes = Passes(mover=mover, host=host, clock=self.clock)
        done, after = passes.run(before)
        collapsed, after = rebuilt(mover, before=before, done=done, after=after)
        preparation.left_pools(before, after)
        verdict = self._judged(gathered, mover, done, after)
        if not verdict.moved and self.threads.earlier and 2 * verdict.on_target < verdict.asked:
            self.threads = restore(process, self.threads)
            verdict = replace(verdict, threads=self.threads)
        if self._bind(preparation, verdict):  # the kernel has moved what was left, as far as it could
            after = survey(process.pid, process.kernel)
            verdict = self._judged(gathered, mover, done, after)
        preparation.close()
        notes = (
            *notes_on(verdict, request, host, collapsed),
            *notes_beside(
                pid=process.pid,
                survey=after,
                targets=targets,
                container=preparation.widening.container,
                kernel=process.kernel,
                clock=self.clock,
            ),
        )
        return replace(verdict, notes=notes, residue=explained(verdict.residue, passes.left_in_swap))

    def _calls(self, preparation: Preparation) -> Calls:
        """Return what makes the calls, as this run may make them."""
        request, guard = self.request, preparation.guard
        return Calls(
            guard=guard,
            clock=self.clock,
            size=ChunkSize(target=request.call_latency),
            bucket=TokenBucket(rate=request.bandwidth),
            flight=Flight(
                guard=guard,
                room=preparation.room,
                clock=self.clock,
                patience=self._patience(),
                make_room=preparation.make_room,
            ),
            lanes=Lanes(movers=request.movers, latency=request.call_latency, clock=self.clock),
            privileged=preparation.gathered.privileged,
            throttle=self.throttle,
        )

    def _patience(self) -> float:
        """Return how long to wait for room: for the kernel to make some, or for another run to say what it has used."""
        if Allow.RECLAIM in self.request.allow:
            return _PATIENCE
        return _PATIENCE_WITH_OTHERS if self.ledger is not None else 0.0

    def _throttle(self, process: HeldProcess) -> Throttle:
        """Return what holds the movers back while the VM or the target's neighbours suffer; it looks from now on."""
        threads = possible_vcpus(read_threads(process.pid, process.kernel))
        targets = set(self.request.cells.values()) if self.request.target is None else {self.request.target}
        sources = find_sources(
            process.kernel,
            pid=process.pid,
            targets=targets,
            cgroup=main_cgroup(process.pid, process.kernel),
            vcpus=[thread.thread_id for thread in threads],
            of_vcpus=any(thread.is_vcpu for thread in threads),
        )
        return Throttle(kernel=process.kernel, sources=sources, clock=self.clock)

    def _judged(self, gathered: Gathered, mover: Mover, done: Pass, after: Survey) -> Verdict:
        """Return the verdict on what the passes left."""
        verdict = moved(
            gathered,
            request=self.request,
            done=done,
            after=after,
            privileged=mover.calls.privileged,
            full=mover.memory.full,
        )
        return self._measured(verdict)

    def _bind(self, preparation: Preparation, verdict: Verdict) -> bool:
        """Narrow the container's cpuset to the targets after the move, or put it back where nothing moved.

        Return whether memory may be elsewhere now than the verdict says.
        """
        rebind = preparation.widening.rebind
        if rebind is None:
            return False
        if verdict.moved or verdict.outcome is Outcome.PLACED:
            away = [row for row in verdict.after if row.numa_node not in rebind.targets | {NO_NUMA_NODE}]
            with preparation.guard.watchdog.call("a write of cpuset.mems"):
                outcome = rebind.narrow(
                    left=sum(row.bytes for row in away),
                    pooled=sum(row.bytes for row in away if row.page_class is PageClass.HUGETLB),
                )
        else:
            outcome = rebind.put_back()
        preparation.widening.rebind = None
        if not outcome.done:
            remedy = outcome.remedy or ADVICE[Reason.VM_CPUSET].remedy
            preparation.notes.append(Note(reason=Reason.VM_CPUSET, evidence=outcome.evidence, remedy=remedy))
        return outcome.written

    def _measured(self, verdict: Verdict) -> Verdict:
        """Return the verdict with what the run itself measured."""
        mover = self.mover
        if mover is None:
            return replace(verdict, threads=self.threads)
        return replace(
            verdict,
            threads=self.threads,
            passes=self.passes.count if self.passes else 0,
            move_seconds=mover.seconds,
            calls=mover.calls.times(),
        )
