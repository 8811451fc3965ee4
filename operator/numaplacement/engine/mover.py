# SPDX-License-Identifier: Apache-2.0
"""Moves what is off target by several threads, and keeps what became of each page."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .calls import Calls
from .errors import PlaceFull, Stopped
from .guard import Guard
from .jobs import Job, Jobs
from .kernel import UNWRITTEN, MoveResult
from .mappings import Kind
from .plan import Demand, Trial, Trials, Units, movable_bytes, units
from .refusals import Patience, move_around_refusals, trials_of_status
from .survey import MappingPages, Survey
from .targets import Targets
from .verdict import Progress, Stage
from .work import BlockKey, Piece, Work, WorkPlace, block_key, gather

_TRIES = 3
"""Times a folio that was refused alone is tried in all passes together."""
_IN_VAIN = 4
"""Blocks of a mapping that are given up before all others of it are."""
_CALLS = 8
"""Calls that one job takes at most: what is done once a job costs as much as a small call."""
_TELL_EVERY = 0.05
"""Seconds between two tellings of progress at least."""


@dataclass
class Memory:
    """What is known from earlier passes: folios that were refused and how often, blocks that were given up.

    `held` are the start addresses of mappings that a device holds all of: none of their pages is tried. `full` are the
    places that had no room any more. Several threads may take note of refusals.
    """

    given_up: set[BlockKey] = field(default_factory=set)
    held: frozenset[int] = frozenset()
    full: dict[WorkPlace, PlaceFull] = field(default_factory=dict)
    _refused: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note_refused(self, addresses: NDArray[np.uint64]) -> None:
        """Take note of folios, by their addresses uint64[n], that were refused once more."""
        with self._lock:
            for address in addresses.tolist():
                self._refused[address] = self._refused.get(address, 0) + 1

    def is_given_up(self, part: MappingPages) -> bool:
        """Say whether a block is to be left: it was given up, or many others of its mapping were."""
        start = part.mapping.start
        blocks = sum(block[0] == start for block in self.given_up)
        return start in self.held or blocks >= _IN_VAIN or block_key(part) in self.given_up

    def refused_folios(self, times: int) -> NDArray[np.uint64]:
        """Return the addresses, uint64, of folios that were refused so many times at least."""
        with self._lock:
            return np.array([address for address, tries in self._refused.items() if tries >= times], dtype=np.uint64)


@dataclass(kw_only=True)
class Pass:
    """What one pass over a survey came to, and the bytes it planned and moved; `stopped` is why it ended early."""

    survey: Survey
    trials: Trials = field(default_factory=Trials)
    planned: int = 0
    moved: int = 0
    stopped: Stopped | None = None


@dataclass(kw_only=True)
class Mover:
    """Moves the pages of one process to their targets, with `movers` threads that run on `cpus`, if any are given.

    All that is counted here is written under one lock. `landed` hears of a target, the size of its pages and the bytes
    that arrived.
    """

    guard: Guard
    targets: Targets
    calls: Calls
    clock: Callable[[], float]
    movers: int = 1
    cpus: frozenset[int] = frozenset()
    landed: Callable[[int, int, int], None] = lambda _target, _page_size, _count: None
    memory: Memory = field(default_factory=Memory)
    moved: int = 0
    seconds: float = 0.0
    _began: float = 0.0
    _told: float = -math.inf
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def run(self, survey: Survey, *, number: int) -> Pass:
        """Move all that is off target in a survey; `number` counts passes from 1. Raises ProcessEnded."""
        done = Pass(survey=survey)
        done.planned = self.moved + sum(self._movable(survey.pages).values())
        self._began = self.clock() - self.seconds
        jobs = Jobs(
            gather(self._pieces(survey, done)),
            most=lambda: self._most(done),
            given_up=self.memory.given_up,
            full=self.memory.full,
        )
        self.guard.begin(self._progress(done, number))
        try:
            self._in_threads(jobs, done, number)
        except Stopped as stopped:
            done.stopped = stopped
        finally:
            self.seconds = self.clock() - self._began
            jobs.take_note()
        self.guard.tell(self._progress(done, number))
        if done.stopped:
            self.recall(done)
        return done

    def recall(self, done: Pass) -> None:
        """Write into a pass that was stopped what earlier ones had learned of the folios it did not come to."""
        known = self.memory.refused_folios(1)
        for part in done.survey.pages:
            target = self.targets.of(part.mapping)
            if target is None or not (known.size or self.memory.is_given_up(part)):
                continue
            plan = units(part, target=target, privileged=self.calls.privileged)
            trials = done.trials.of(part)
            refused = plan.pages(np.flatnonzero(np.isin(part.addresses(plan.position), known)))
            trials[refused[trials[refused] == Trial.NOT_TRIED]] = Trial.REFUSED
            if self.memory.is_given_up(part):
                pages = plan.pages(slice(None))
                trials[pages[trials[pages] == Trial.NOT_TRIED]] = Trial.GIVEN_UP

    def left(self, survey: Survey, *, tries: int = _TRIES) -> int:
        """Return about how many bytes another pass over a survey could still move, without folios refused so often."""
        hopeless = self.memory.refused_folios(tries)
        left = 0
        for part in survey.pages:
            full = (self.targets.of(part.mapping), part.mapping.page_size) in self.memory.full
            if not full and not self.memory.is_given_up(part):
                known = int(np.count_nonzero(np.isin(hopeless, part.addresses(slice(None)))))
                left += sum(self._movable([part]).values()) - known * part.mapping.page_size
        return left

    def _movable(self, parts: Iterable[MappingPages]) -> Demand:
        return movable_bytes(parts, targets=self.targets, privileged=self.calls.privileged)

    def _in_threads(self, jobs: Jobs, done: Pass, number: int) -> None:
        """Let the movers take one job after the other. Raises what the first of them raised that was to stop."""

        def all_there_are() -> None:
            while self._next(jobs, done, number):
                self.calls.lanes.step_aside()

        def work() -> None:
            with self.calls.lanes.entered():
                jobs.ending(all_there_are)()

        if self.movers == 1:
            work()
            return
        with ThreadPoolExecutor(self.movers, thread_name_prefix="mover", initializer=self._settle) as pool:
            futures = []
            with contextlib.suppress(RuntimeError):  # the host has no thread left: fewer do the same
                for _ in range(self.movers):
                    futures.append(pool.submit(work))  # noqa: PERF401 - those made so far count
        for future in futures:
            future.result()
        work()

    def _next(self, jobs: Jobs, done: Pass, number: int) -> bool:
        """Do one job; False where there was none any more."""
        job = jobs.next()
        if job is None:
            return False
        try:
            self._move(job, done)
        except PlaceFull as full:
            self.memory.full.setdefault(job.work.place, full)
        now = self.clock()
        if now - self._told >= _TELL_EVERY:
            self._told = now
            self.guard.tell(self._progress(done, number))
        return True

    def _settle(self) -> None:
        """Keep a mover's thread where it is to be; where that is not allowed it runs anywhere."""
        if self.cpus:
            with contextlib.suppress(OSError):
                self.guard.process.kernel.set_own_affinity(self.cpus)

    def _pieces(self, survey: Survey, done: Pass) -> Iterator[Piece]:
        """Yield what is to be moved, without what earlier passes have learned to leave; pages of pools come last.

        A pool that is too small ends a pass, and then nothing else is left undone.
        """
        for part in survey.pages.ordered(lambda mapping: mapping.kind is Kind.HUGETLB):
            target = self.targets.of(part.mapping)
            if target is not None:
                yield from self._pieces_of(part, target, done)

    def _pieces_of(self, part: MappingPages, target: int, done: Pass) -> Iterator[Piece]:
        plan = units(part, target=target, privileged=self.calls.privileged)
        if plan.position.size == 0:
            return
        trials = done.trials.of(part)
        given_up = self.memory.is_given_up(part)
        if given_up:
            trials[plan.pages(slice(None))] = Trial.GIVEN_UP
        known = self.memory.refused_folios(1 if given_up else _TRIES)
        hopeless = np.isin(part.addresses(plan.position), known)
        trials[plan.pages(np.flatnonzero(hopeless))] = Trial.REFUSED
        if not given_up and not hopeless.all():
            rest = Units(position=plan.position[~hopeless], length=plan.length[~hopeless])
            addresses = part.addresses(rest.position)
            yield Piece(
                target=target,
                mapping=part.mapping,
                block=block_key(part),
                addresses=addresses,
                units=rest,
                trials=trials,
            )

    def _move(self, job: Job, done: Pass) -> None:
        """Move one chunk of work, and keep what came of it, also where that ends the pass."""
        work, chunk = job.work, job.chunk
        outcome = np.zeros(chunk.stop - chunk.start, dtype=np.uint8)
        try:
            self._move_chunk(work, chunk, outcome=outcome, patience=job.patience)
        finally:
            with self._lock:
                work.write(chunk, outcome)
                moved = int(work.sizes[chunk][outcome == Trial.MOVED].sum())
                done.moved += moved
                self.moved += moved
                self.landed(work.target, work.page_size, moved)
            self.memory.note_refused(work.addresses[chunk][outcome == Trial.REFUSED])

    def _move_chunk(self, work: Work, chunk: slice, *, outcome: NDArray[np.uint8], patience: Patience) -> None:
        """Move the folios of a chunk; write `outcome`, Trial as uint8[c]."""
        addresses, sizes = work.addresses[chunk], work.sizes[chunk]
        place = {"target": work.target, "page_size": work.page_size}

        def call(which: NDArray[np.int64]) -> MoveResult:
            status = np.full(which.size, UNWRITTEN, dtype=np.int32)
            try:
                not_moved = self.calls.move(addresses[which], sizes[which], status=status, **place)
            except BaseException:
                reached = status != UNWRITTEN
                outcome[which[reached]] = trials_of_status(status[reached], target=work.target)
                self._look(which[~reached], addresses, outcome, target=work.target)
                raise
            outcome[which[status == work.target]] = Trial.MOVED  # known, whatever comes of looking for the others
            return MoveResult(errno=0, not_moved=not_moved, status=status)

        def locate(which: NDArray[np.int64]) -> NDArray[np.int32]:
            return self.calls.locate(addresses[which], **place)

        move_around_refusals(
            addresses.size, target=work.target, call=call, locate=locate, patience=patience, trials=outcome
        )

    def _look(
        self, which: NDArray[np.int64], addresses: NDArray[np.uint64], outcome: NDArray[np.uint8], *, target: int
    ) -> None:
        """Note of folios that a call which failed did not tell of whether they are on their target all the same."""
        process = self.guard.process
        result = process.kernel.locate_pages(process.pid, addresses[which])
        if not result.errno:
            outcome[which[result.status == target]] = Trial.MOVED

    def _most(self, done: Pass) -> int:
        """Return the bytes of the next job; towards the end fewer, so that no mover is left with the last big one."""
        usual = self.calls.usual()
        left = done.planned - self.moved - self.calls.flight.total
        calls = _CALLS if self.calls.durations else 1
        return max(usual, min(calls * usual, left // (4 * self.movers)))

    def _progress(self, done: Pass, number: int) -> Progress:
        with self._lock:
            passed = self.clock() - self._began
            return Progress(
                stage=Stage.MOVE,
                pass_number=number,
                bytes_done=self.moved,
                bytes_total=done.planned,
                bytes_per_second=int(self.moved / passed) if passed > 0 else 0,
                call_p99=self.calls.recent_p99(),
                waiting=self.calls.waiting,
            )
