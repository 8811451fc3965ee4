# SPDX-License-Identifier: Apache-2.0
"""What is done to the host before memory moves, and undone however the move ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from .checks import Refused, refusal, weighty
from .claim import Claim
from .contiguity import make_contiguous
from .errors import Stopped
from .facts import Gathered
from .gauge import Gauge
from .guard import Guard
from .host import reading_host
from .kernel import Kernel
from .ledger import Ledger, Place, Reservation
from .notes import note
from .poolgrowth import GrownPools
from .process import HeldProcess
from .reasons import Reason
from .reclaim import Means, push_out, read_offer
from .survey import HUGE, Survey
from .targets import Targets
from .verdict import NO_NUMA_NODE, Note, Request
from .widening import Widening


@dataclass(kw_only=True)
class Preparation:
    """One move's preparations, as a context: what it reserved and raised is given back at its end.

    `notes` grow with what there is to tell, and hold all of it once the context has been left, whatever ended it.
    """

    process: HeldProcess
    request: Request
    gathered: Gathered
    guard: Guard
    ledger: Ledger | None
    clock: Callable[[], float]
    notes: list[Note] = field(default_factory=list)
    widening: Widening = field(init=False)
    _claim: Claim = field(init=False)
    _landed: bool = False
    _reservation: Reservation | None = None
    _pools: GrownPools | None = None
    _gauge: Gauge = field(init=False)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._gauge = Gauge(kernel=self.kernel, allow=self.request.allow, clock=self.clock)
        self.widening = Widening(process=self.process, request=self.request, gathered=self.gathered, notes=self.notes)
        self._claim = Claim(
            kernel=self.kernel,
            gathered=self.gathered,
            allow=self.request.allow,
            ledger=self.ledger,
            notes=self.notes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what was reserved and raised; more than once is once. What was not given back is in the notes."""
        self._gauge.close()
        try:
            self._stack.close()
        finally:
            self._tell_of_pools()

    def _tell_of_pools(self) -> None:
        """Take note of what stays raised, also where giving it back was interrupted: then go on with that first."""
        pools, self._pools = self._pools, None
        if pools is None:
            return
        try:
            pools.give_back()
        finally:
            for given in pools.given_back:
                if given.evidence:
                    self.notes.append(note(Reason.HUGEPAGE_POOL, given.evidence, numa_node=given.numa_node))

    def prepare(self) -> None:
        """Do all that is needed before a thread or a page is touched.

        Raises Refused, Stopped, ProcessEnded, and EngineError where the host cannot be read.
        """
        self.widening.find_container()
        if (reserved := self._claim.reserve()) is not None:
            self._reservation = self._stack.enter_context(reserved)
        self.widening.widen()
        self._stack.callback(lambda: self.widening.put_back(landed=self._landed))
        with self.guard.watchdog.call("raising a huge-page pool"):
            self._grow()
        with self.guard.watchdog.call("pushing page cache out"):
            self._push_out()
        with self.guard.watchdog.call("compaction"):
            self._make_contiguous()

    def foresee(self) -> None:
        """Look whether prepare() would refuse the move for what others hold or for the cpuset, and change nothing.

        Raises Refused, and EngineError where the host cannot be read.
        """
        self.widening.find_container()
        self._claim.foresee()
        self.widening.planned()

    @property
    def kernel(self) -> Kernel:
        """The kernel of the process."""
        return self.process.kernel

    def room(self, target: int, page_size: int) -> int:
        """Return the bytes that may be taken on a target now, without those that other runs count on.

        Raises Stopped where the host does not say.
        """
        try:
            there = self._gauge.room(target, page_size)
        except OSError as error:
            raise Stopped(Reason.UNEXPLAINED, f"what NUMA node {target} can take cannot be read: {error}") from error
        if self._reservation is None:
            return there
        return there - self._reservation.others(self._claim.place(target, page_size))

    def make_room(self, target: int, page_size: int, count: int) -> None:
        """Have room made on a target for `count` bytes, where that is allowed. Raises as Guard.check() does."""
        if page_size == self.kernel.page_size:
            with contextlib.suppress(OSError):  # then there is none, which is told
                self._gauge.make_room(target, count, check=self.guard.check)

    def landed(self, target: int, page_size: int, count: int) -> None:
        """Take note of bytes that arrived on a target."""
        self._landed = self._landed or count > 0
        if self._reservation is not None:
            self._reservation.used(count, self._claim.place(target, page_size))

    def left_pools(self, before: Survey, after: Survey) -> None:
        """Take note of the huge pages that left their pools for the targets', from surveys before and after."""
        if self._pools is None:
            return
        for target, size in self.gathered.pools:
            then, now = (_pool_pages(each, self.gathered.facts.targets, target, size) for each in (before, after))
            gone = {
                source: count - now.get(source, 0)
                for source, count in then.items()
                if source != target and count > now.get(source, 0)
            }
            self._pools.left(numa_node=target, page_size=size, by_source=gone)

    def _grow(self) -> None:
        """Raise the pools that have to grow, from memory that neither this move nor another counts on otherwise."""
        plans = [plan for plan in self._claim.plans.values() if plan.grow]
        if not plans:
            return
        self._pools = self._stack.enter_context(GrownPools(self.kernel, reservation=self._reservation))
        for plan in plans:
            others = self.gathered.facts.needed.get((plan.numa_node, self.kernel.page_size), 0)
            if self._reservation is not None:
                others += self._reservation.others(Place(plan.numa_node))
            growth = self._pools.grow(plan, others=others)
            if self._reservation is not None:  # it is the pool's now, or nobody's
                self._reservation.used(plan.grow * plan.page_size, Place(plan.numa_node))
            if growth.pages < plan.grow and weighty(plan, self.gathered.facts.total):
                raise Refused(refusal(Reason.HUGEPAGE_POOL, growth.evidence or plan.evidence))
            if growth.evidence:
                self.notes.append(note(Reason.HUGEPAGE_POOL, growth.evidence, numa_node=plan.numa_node))

    def _push_out(self) -> None:
        """Push page cache out of targets where that is allowed, needed, and done on request."""
        for target, admission in self.gathered.facts.admissions.items():
            with reading_host():
                if not admission.push_out or read_offer(target, self.kernel).means is not Means.ON_REQUEST:
                    continue
                done = push_out(admission.push_out, numa_node=target, kernel=self.kernel, check=self.guard.check)
            if done.gained < admission.push_out:
                raise Refused(
                    refusal(Reason.DESTINATION_FULL, f"{admission.evidence}; that gave less than it promised")
                )

    def _make_contiguous(self) -> None:
        """Have whole huge pages ready on the targets, as far as compaction can make them."""
        huge = self.kernel.huge_page_size()
        for target, need in huge_bytes(self.gathered.before, self.gathered.facts.targets).items():
            others = self.gathered.facts.needed.get((target, self.kernel.page_size), 0) - need
            try:
                found = make_contiguous(
                    need, numa_node=target, kernel=self.kernel, huge_page_size=huge, others=max(0, others)
                )
            except OSError:
                continue
            if not found.enough:
                seen = f"{found.evidence}; the others may be split for the move"
                self.notes.append(note(Reason.HUGE_PAGES_SPLIT, seen, numa_node=target))


def huge_bytes(survey: Survey, targets: Targets) -> Mapping[int, int]:
    """Return by target the bytes in transparent huge pages that are off it."""
    found: dict[int, int] = {}
    for part in survey.pages:
        target = targets.of(part.mapping)
        if target is not None:
            mask = (part.numa_node != target) & ((part.flags & HUGE) != 0)
            if count := int(np.count_nonzero(mask)) * part.mapping.page_size:
                found[target] = found.get(target, 0) + count
    return found


def _pool_pages(survey: Survey, targets: Targets, target: int, page_size: int) -> dict[int, int]:
    """Return by NUMA node the pages of pools, of one size, that belong on a target."""
    found: dict[int, int] = {}
    for part in survey.pages.where(lambda mapping: mapping.page_size == page_size and targets.of(mapping) == target):
        there = part.numa_node[part.numa_node != NO_NUMA_NODE]
        for numa_node, count in enumerate(np.bincount(there)):
            if count:
                found[numa_node] = found.get(numa_node, 0) + int(count)
    return found
