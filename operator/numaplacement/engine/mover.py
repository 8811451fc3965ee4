# SPDX-License-Identifier: Apache-2.0
"""Moves pages in timed calls, each of which may be the last."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .chunks import ChunkSize, TokenBucket
from .errors import ProcessEnded, Stopped
from .host import safe_on
from .kernel import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MoveResult
from .plan import MOVABLE_KINDS, Trial, Units, movable_bytes, units
from .process import HeldProcess
from .reasons import Reason
from .refusals import Patience, move_around_refusals
from .survey import HEAD, HIDDEN, Survey
from .verdict import Progress, Stage, Watcher
from .wording import size_text
from .work import Piece, Work, gather

_TRIES = 2
"""Times a folio that was refused alone is tried in all passes together."""
_NAP = 0.05
"""Seconds between two looks at whether the run was cancelled, while it waits."""
_TOUCHES = 1024
"""Addresses touched in one call: IOV_MAX."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_EXIT_WAIT = 2.0
"""Seconds an exiting process may take from losing its memory to being gone."""


@dataclass
class Memory:
    """What is known from earlier passes: folios that were refused and how often, mappings that were given up."""

    refused: dict[int, int] = field(default_factory=dict)
    given_up: set[int] = field(default_factory=set)

    def refused_folios(self, times: int) -> NDArray[np.uint64]:
        """Return the addresses, uint64, of folios that were refused so many times at least."""
        return np.array([address for address, tries in self.refused.items() if tries >= times], dtype=np.uint64)


@dataclass(kw_only=True)
class Pass:
    """What one pass over a survey came to: Trial for each page of a mapping, by start address; bytes moved."""

    survey: Survey
    trials: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    planned: int = 0
    moved: int = 0
    stopped: Stopped | None = None


@dataclass(kw_only=True)
class Mover:
    """Moves the pages of one process to one NUMA node. One thread uses it."""

    process: HeldProcess
    target: int
    privileged: bool
    watcher: Watcher
    clock: Callable[[], float]
    deadline_at: float
    size: ChunkSize
    bucket: TokenBucket
    memory: Memory = field(default_factory=Memory)
    durations: list[float] = field(default_factory=list)
    moved: int = 0
    seconds: float = 0.0
    _began: float = 0.0

    def run(self, survey: Survey, *, number: int) -> Pass:
        """Move what a survey found off target; `number` is the pass, from 1. Raises ProcessEnded."""
        done = Pass(survey=survey, planned=movable_bytes(survey.pages, target=self.target, privileged=self.privileged))
        self._began = self.clock() - self.seconds
        try:
            for work in gather(self._pieces(survey, done)):
                self._move(work, done, number)
        except Stopped as stopped:
            done.stopped = stopped
        finally:
            self.seconds = self.clock() - self._began
        return done

    def left(self, survey: Survey) -> int:
        """Return about how many bytes another pass over a survey could still move."""
        parts = [part for part in survey.pages if part.mapping.start not in self.memory.given_up]
        hopeless = self.memory.refused_folios(_TRIES).tolist()
        within = len([1 for part in parts for address in hopeless if part.mapping.start <= address < part.mapping.end])
        return movable_bytes(parts, target=self.target, privileged=self.privileged) - within * _PAGE

    def reveal(self, survey: Survey) -> bool:
        """Touch the folios off target that hide, and say whether that may have helped. Raises Stopped, ProcessEnded.

        A read fault takes AutoNUMA's mark from them, and only then can move_pages(2) see them.
        """
        touched = False
        for part in survey.pages:
            if part.mapping.kind not in MOVABLE_KINDS:
                continue
            hiding = np.flatnonzero(
                (part.numa_node != self.target) & ((part.flags & (HIDDEN | HEAD)) == (HIDDEN | HEAD))
            )
            for start in range(0, hiding.size, _TOUCHES):
                self.check()
                if self.process.kernel.touch(self.process.pid, part.addresses(hiding[start : start + _TOUCHES])):
                    break
                touched = True
        return touched

    def check(self) -> None:
        """Raise Stopped or ProcessEnded when nothing more is to be done."""
        if self.watcher.cancelled():
            raise Stopped(Reason.CANCELLED, "cancelled while it ran")
        if self.clock() >= self.deadline_at:
            raise Stopped(Reason.DEADLINE, "the deadline passed while it ran")
        self.process.check()

    def _pieces(self, survey: Survey, done: Pass) -> Iterator[Piece]:
        """Yield what is to be moved, mapping by mapping, without what earlier passes have learned to leave."""
        for part in survey.pages:
            for plan in units(part, target=self.target, privileged=self.privileged):
                start = part.mapping.start
                trials = done.trials.setdefault(start, np.zeros(part.page.size, dtype=np.uint8))
                given_up = start in self.memory.given_up
                if given_up:
                    trials[plan.pages(slice(None))] = Trial.GIVEN_UP
                known = self.memory.refused_folios(1 if given_up else _TRIES)
                hopeless = np.isin(part.addresses(plan.position), known)
                trials[plan.pages(np.flatnonzero(hopeless))] = Trial.REFUSED
                if not given_up and not hopeless.all():
                    rest = Units(position=plan.position[~hopeless], length=plan.length[~hopeless])
                    yield Piece(part=part, units=rest, trials=trials)

    def _move(self, work: Work, done: Pass, number: int) -> None:
        """Move some work, a chunk at a time."""
        patience = Patience()
        for chunk in work.chunks(lambda: min(self.size.size, self.bucket.most())):
            outcome = np.zeros(chunk.stop - chunk.start, dtype=np.uint8)
            try:
                self._move_chunk(work.addresses[chunk], work.sizes[chunk], outcome=outcome, patience=patience)
            finally:
                work.write(chunk, outcome)
                moved = int(work.sizes[chunk][outcome == Trial.MOVED].sum())
                done.moved += moved
                self.moved += moved
                for address in work.addresses[chunk][outcome == Trial.REFUSED].tolist():
                    self.memory.refused[address] = self.memory.refused.get(address, 0) + 1
            self._report(done, number)
        if patience.ended:
            self.memory.given_up |= work.mappings()

    def _move_chunk(
        self,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.int64],
        *,
        outcome: NDArray[np.uint8],
        patience: Patience,
    ) -> None:
        """Move folios at addresses uint64[c] with sizes int64[c] in bytes; write `outcome`, Trial as uint8[c]."""

        def call(which: NDArray[np.int64]) -> MoveResult:
            return self._call(addresses[which], int(sizes[which].sum()))

        def locate(which: NDArray[np.int64]) -> NDArray[np.int32]:
            result = self.process.kernel.locate_pages(self.process.pid, addresses[which])
            if result.errno:
                self._end(result.errno)
            return result.status

        move_around_refusals(
            addresses.size, target=self.target, call=call, locate=locate, patience=patience, trials=outcome
        )

    def _call(self, addresses: NDArray[np.uint64], size: int) -> MoveResult:
        """Make one call, if it may be made."""
        self.check()
        while (wait := self.bucket.wait(self.clock())) > 0:
            self.process.kernel.sleep(min(wait, _NAP))
            self.check()
        safe = safe_on(self.target, self.process.kernel)
        if size > safe:
            raise Stopped(
                Reason.DESTINATION_FULL,
                f"{size_text(safe)} could still be taken on NUMA node {self.target} without making others give memory"
                f" back, the next call needed {size_text(size)}",
            )
        flags = MPOL_MF_MOVE_ALL if self.privileged else MPOL_MF_MOVE
        began = self.clock()
        result = self.process.kernel.move_pages(self.process.pid, addresses, numa_node=self.target, flags=flags)
        seconds = self.clock() - began
        if result.errno == errno.EPERM and self.privileged:
            self.privileged = False
            return self._call(addresses, size)
        if result.errno:
            self._end(result.errno)
        self.durations.append(seconds)
        self.size.observe(seconds=seconds, moved=size)
        self.bucket.take(size, began)
        return result

    def _end(self, number: int) -> None:
        """Raise what an error of a whole call means (move_pages(2), ERRORS; mm/migrate.c)."""
        if number == errno.ESRCH:
            raise ProcessEnded
        if number == errno.EINVAL:
            self._await_exit()
        reason = {
            errno.ENOMEM: Reason.DESTINATION_FULL,
            errno.EACCES: Reason.VM_CPUSET,
            errno.EPERM: Reason.NO_ACCESS,
            errno.ENOSYS: Reason.SYSCALL_BLOCKED,
            errno.ENODEV: Reason.NODE_HAS_NO_MEMORY,
        }.get(number, Reason.UNEXPLAINED)
        raise Stopped(
            reason, f"move_pages to NUMA node {self.target} ended with {errno.errorcode[number]}: {os.strerror(number)}"
        )

    def _await_exit(self) -> None:
        """Raise ProcessEnded when the process is gone soon: the kernel says EINVAL once its memory is torn down."""
        until = self.clock() + _EXIT_WAIT
        while self.clock() < until:
            self.process.check()
            self.process.kernel.sleep(_NAP)

    def _report(self, done: Pass, number: int) -> None:
        passed = self.clock() - self._began
        self.watcher.progressed(
            Progress(
                stage=Stage.MOVE,
                pass_number=number,
                bytes_done=done.moved,
                bytes_total=done.planned,
                bytes_per_second=int(self.moved / passed) if passed > 0 else 0,
            )
        )
