# SPDX-License-Identifier: Apache-2.0
"""Moves pages in timed calls, several at once, each of which may be the last."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .chunks import LEAST, MOST, START, ChunkSize, TokenBucket
from .errors import PlaceFull, ProcessEnded, Stopped
from .flight import Flight
from .guard import NAP, Guard
from .jobs import Job, Jobs
from .kernel import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, UNWRITTEN, MoveResult
from .mappings import Kind
from .plan import Demand, Trial, Trials, Units, movable_bytes, units
from .pressure import Throttle
from .reasons import Reason
from .refusals import Patience, move_around_refusals
from .survey import MappingPages, Survey
from .targets import Targets
from .verdict import Progress, Stage
from .wording import count_text
from .work import BlockKey, Piece, Work, WorkPlace, block_key, gather

_TRIES = 2
"""Times a folio that was refused alone is tried in all passes together."""
_IN_VAIN = 4
"""Blocks of a mapping that are given up before all others of it are."""
_RECENT = 512
"""Calls of which progress tells the p99."""
_EXIT_WAIT = 2.0
"""Seconds an exiting process may take from losing its memory to being gone."""


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
    """Moves the pages of one process to their targets, with `movers` threads.

    Calls of several threads overlap; all that is counted here is written under one lock. `landed` hears of a target,
    the size of its pages and the bytes that arrived.
    """

    guard: Guard
    targets: Targets
    privileged: bool
    clock: Callable[[], float]
    size: ChunkSize
    bucket: TokenBucket
    flight: Flight
    movers: int = 1
    throttle: Throttle | None = None
    landed: Callable[[int, int, int], None] = lambda _target, _page_size, _count: None
    memory: Memory = field(default_factory=Memory)
    durations: list[float] = field(default_factory=list)
    moved: int = 0
    seconds: float = 0.0
    waiting: str = ""
    _began: float = 0.0
    _recent: list[float] = field(default_factory=list)
    _lane: threading.Lock = field(default_factory=threading.Lock)
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
            plan = units(part, target=target, privileged=self.privileged)
            trials = done.trials.of(part)
            refused = plan.pages(np.flatnonzero(np.isin(part.addresses(plan.position), known)))
            trials[refused[trials[refused] == Trial.NOT_TRIED]] = Trial.REFUSED
            if self.memory.is_given_up(part):
                pages = plan.pages(slice(None))
                trials[pages[trials[pages] == Trial.NOT_TRIED]] = Trial.GIVEN_UP

    def left(self, survey: Survey) -> int:
        """Return about how many bytes another pass over a survey could still move."""
        hopeless = self.memory.refused_folios(_TRIES)
        left = 0
        for part in survey.pages:
            full = (self.targets.of(part.mapping), part.mapping.page_size) in self.memory.full
            if not full and not self.memory.is_given_up(part):
                known = int(np.count_nonzero(np.isin(hopeless, part.addresses(slice(None)))))
                left += sum(self._movable([part]).values()) - known * part.mapping.page_size
        return left

    def latency(self, percent: float) -> float:
        """Return a percentile of the durations of calls so far, in seconds; 0 when there was none."""
        return float(np.percentile(np.array(self.durations or [0.0]), percent))

    def _movable(self, parts: Iterable[MappingPages]) -> Demand:
        return movable_bytes(parts, targets=self.targets, privileged=self.privileged)

    def _in_threads(self, jobs: Jobs, done: Pass, number: int) -> None:
        """Let the movers take one job after the other. Raises what the first of them raised that was to stop."""

        def work() -> None:
            going = True
            while going:
                # One that only prepares a call would keep the other from getting the interpreter back after its own.
                with self._lane if self.size.one_by_one else contextlib.nullcontext():
                    going = self._next(jobs, done, number)

        if self.movers == 1:
            work()
            return
        with ThreadPoolExecutor(self.movers, thread_name_prefix="mover") as pool:
            futures = []
            with contextlib.suppress(RuntimeError):  # the host has no thread left: fewer do the same
                for _ in range(self.movers):
                    futures.append(pool.submit(jobs.ending(work)))  # noqa: PERF401 - those made so far count
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
        self.guard.tell(self._progress(done, number))
        return True

    def _pieces(self, survey: Survey, done: Pass) -> Iterator[Piece]:
        """Yield what is to be moved, without what earlier passes have learned to leave; pages of pools come last.

        A pool that is too small ends a pass, and then nothing else is left undone.
        """
        for part in survey.pages.ordered(lambda mapping: mapping.kind is Kind.HUGETLB):
            target = self.targets.of(part.mapping)
            if target is not None:
                yield from self._pieces_of(part, target, done)

    def _pieces_of(self, part: MappingPages, target: int, done: Pass) -> Iterator[Piece]:
        plan = units(part, target=target, privileged=self.privileged)
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
        process = self.guard.process

        def call(which: NDArray[np.int64]) -> MoveResult:
            return self._call(addresses[which], sizes[which], target=work.target, page_size=work.page_size)

        def locate(which: NDArray[np.int64]) -> NDArray[np.int32]:
            result = process.kernel.locate_pages(process.pid, addresses[which])
            if result.errno:
                self._end(result.errno, target=work.target, page_size=work.page_size)
            return result.status

        move_around_refusals(
            addresses.size, target=work.target, call=call, locate=locate, patience=patience, trials=outcome
        )

    def _call(
        self, addresses: NDArray[np.uint64], sizes: NDArray[np.int64], *, target: int, page_size: int
    ) -> MoveResult:
        """Move folios with `sizes` int64[n] in bytes, in one call, or in several where room comes bit by bit."""
        status = np.full(addresses.size, UNWRITTEN, dtype=np.int32)
        self.guard.wait(self.bucket.take(int(sizes.sum()), self.clock()))
        first = 0
        while first < addresses.size:
            self.guard.check()
            self._await_pace()
            count = self.flight.take(sizes[first:], target=target, page_size=page_size)
            part = slice(first, first + count)
            result = self._made(addresses[part], int(sizes[part].sum()), target=target, page_size=page_size)
            if result is None:
                continue
            status[part] = result.status
            first += count
            if result.not_moved:
                return MoveResult(errno=0, not_moved=result.not_moved + addresses.size - first, status=status)
        return MoveResult(errno=0, not_moved=0, status=status)

    def _made(self, addresses: NDArray[np.uint64], size: int, *, target: int, page_size: int) -> MoveResult | None:
        """Make one call; None where it is to be made again with less privilege. Raises what its error means."""
        process, privileged = self.guard.process, self.privileged
        flags = MPOL_MF_MOVE_ALL if privileged else MPOL_MF_MOVE
        began = self.clock()
        try:
            with self.guard.watchdog.call(f"a kernel call over {count_text(addresses.size, 'page')}"):
                result = process.kernel.move_pages(process.pid, addresses, numa_node=target, flags=flags)
        finally:
            self.flight.landed(size, target=target)
        seconds = self.clock() - began
        if result.errno == errno.EPERM and privileged:
            self.privileged = False
            return None
        if result.errno:
            self._end(result.errno, target=target, page_size=page_size)
        with self._lock:
            self.durations.append(seconds)
            insort(self._recent, seconds)
            if len(self.durations) > _RECENT:
                del self._recent[bisect_left(self._recent, self.durations[-_RECENT - 1])]
            self.size.observe(seconds=seconds, moved=size)
        return result

    def _recent_p99(self) -> float:
        return self._recent[int(0.99 * (len(self._recent) - 1))] if self._recent else 0.0

    def _await_pace(self) -> None:
        """Wait for as long as the VM or its neighbours need a rest. Raises Stopped and ProcessEnded."""
        while self.throttle is not None:
            pace = self.throttle.pace()
            self.waiting = pace.reason
            if pace.pause <= 0:
                return
            self.guard.tell_waiting(pace.reason)
            self.guard.wait(pace.pause)

    def _most(self, done: Pass) -> int:
        """Return the bytes of the next chunk; towards the end fewer, so that no mover is left with the last big one."""
        share = self.throttle.pace().share if self.throttle is not None else 1.0
        left = done.planned - self.moved - self.flight.total
        evenly = MOST if self.movers == 1 or self.size.one_by_one else max(START, left // (2 * self.movers))
        return max(LEAST, int(min(self.size.size, self.bucket.most(), evenly) * share))

    def _end(self, number: int, *, target: int, page_size: int) -> None:
        """Raise what an error of a whole call means (move_pages(2), ERRORS; mm/migrate.c)."""
        if number == errno.ESRCH:
            raise ProcessEnded
        if number == errno.EINVAL:
            self._await_exit()
        pool = page_size > self.guard.process.kernel.page_size
        reason = {
            errno.ENOMEM: Reason.HUGEPAGE_POOL if pool else Reason.DESTINATION_FULL,
            errno.EACCES: Reason.VM_CPUSET,
            errno.EPERM: Reason.NO_ACCESS,
            errno.ENOSYS: Reason.SYSCALL_BLOCKED,
            errno.ENODEV: Reason.NODE_HAS_NO_MEMORY,
        }.get(number, Reason.UNEXPLAINED)
        name = errno.errorcode.get(number, str(number))
        kind = PlaceFull if number == errno.ENOMEM else Stopped
        raise kind(reason, f"move_pages to NUMA node {target} ended with {name}: {os.strerror(number)}")

    def _await_exit(self) -> None:
        """Raise ProcessEnded when the process is gone soon: the kernel says EINVAL once its memory is torn down."""
        until = self.clock() + _EXIT_WAIT
        process = self.guard.process
        while self.clock() < until:
            process.check()
            process.kernel.sleep(NAP)

    def _progress(self, done: Pass, number: int) -> Progress:
        with self._lock:
            passed = self.clock() - self._began
            return Progress(
                stage=Stage.MOVE,
                pass_number=number,
                bytes_done=self.moved,
                bytes_total=done.planned,
                bytes_per_second=int(self.moved / passed) if passed > 0 else 0,
                call_p99=self._recent_p99(),
                waiting=self.waiting,
            )
