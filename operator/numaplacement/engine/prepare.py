# SPDX-License-Identifier: Apache-2.0
"""What is done to the host before memory moves, and undone however the move ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from collections.abc import Mapping as Table
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from .cgroups import Container, NoCgroup, find_container
from .checks import refusal, weighty
from .contiguity import Contiguity, make_contiguous
from .cpuset import CannotRead, Rebind, prepare_rebind
from .errors import Stopped
from .facts import Gathered, room
from .gauge import Gauge
from .guard import Guard
from .host import reading_host
from .kernel import Kernel
from .ledger import Ledger, Place, Reservation, Shortage
from .listformat import format_list
from .poolgrowth import GrownPools
from .pools import PoolPlan, largest_block, plan_pool, read_pools
from .process import HeldProcess
from .reasons import ADVICE, Reason
from .reclaim import Means, push_out, read_offer
from .survey import HUGE, Survey
from .targets import Targets
from .verdict import NO_NUMA_NODE, Allow, Note, Refusal, Request

Answer = TypeVar("Answer")


class Refused(Exception):
    """The move cannot be made after all; nothing was moved."""

    def __init__(self, found: Refusal) -> None:
        super().__init__(found.evidence)
        self.found = found


@dataclass(kw_only=True)
class Preparation:
    """One move's preparations, as a context: what it reserved and raised is given back at its end.

    `notes` grow with what there is to tell, and hold all of it once the context has been left, whatever ended it;
    `rebind` is there where the container's cpuset.mems is to be written.
    """

    process: HeldProcess
    request: Request
    gathered: Gathered
    guard: Guard
    ledger: Ledger | None
    clock: Callable[[], float]
    container: Container | None = None
    notes: list[Note] = field(default_factory=list)
    rebind: Rebind | None = None
    _landed: bool = False
    _plans: dict[tuple[int, int], PoolPlan] = field(default_factory=dict)
    _reservation: Reservation | None = None
    _pools: GrownPools | None = None
    _gauge: Gauge = field(init=False)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._gauge = Gauge(kernel=self.kernel, allow=self.request.allow, clock=self.clock)

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
                    self._note(Reason.HUGEPAGE_POOL, given.evidence, given.numa_node)

    def prepare(self) -> None:
        """Do all that is needed before a thread or a page is touched.

        Raises Refused, Stopped, ProcessEnded, and EngineError where the host cannot be read.
        """
        self._find_container()
        self._reserve()
        self._rebind()
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
        self._find_container()
        self._plans = dict(self.gathered.pools)
        if self.ledger is not None:
            self._plan_around_others(self.ledger)
            self._fit(self.ledger.lacking)
        self._planned_rebind()

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
        return there - self._reservation.others(self._place(target, page_size))

    def make_room(self, target: int, page_size: int, count: int) -> None:
        """Have room made on a target for `count` bytes, where that is allowed. Raises as Guard.check() does."""
        if page_size == self.kernel.page_size:
            with contextlib.suppress(OSError):  # then there is none, which is told
                self._gauge.make_room(target, count, check=self.guard.check)

    def landed(self, target: int, page_size: int, count: int) -> None:
        """Take note of bytes that arrived on a target."""
        self._landed = self._landed or count > 0
        if self._reservation is not None:
            self._reservation.used(count, self._place(target, page_size))

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

    def _place(self, target: int, page_size: int) -> Place:
        return Place(target, 0 if page_size == self.kernel.page_size else page_size)

    def _find_container(self) -> None:
        try:
            self.container = find_container(self.process.pid, self.kernel)
        except NoCgroup as missing:
            if Allow.REBIND_CPUSET in self.request.allow:
                self._no_rebind(str(missing), missing.remedy)

    def _reserve(self) -> None:
        """Reserve what the move is going to take, so that no other run counts on it too."""
        self._plans = dict(self.gathered.pools)
        if self.ledger is None:
            return
        self._plan_around_others(self.ledger)
        self._reservation = self._stack.enter_context(self._fit(self.ledger.reserve))

    def _fit(self, ask: Callable[[Table[Place, int], Callable[[Place], int]], Answer | Shortage]) -> Answer:
        """Return what the ledger answers when all fits, without what need not be raised. Raises Refused."""
        result = ask(self._wanted(), self._available)
        if isinstance(result, Shortage) and self._grow_less(result):
            result = ask(self._wanted(), self._available)
        if isinstance(result, Shortage):
            reason = Reason.HUGEPAGE_POOL if result.place.page_size else Reason.DESTINATION_FULL
            raise Refused(refusal(reason, str(result)))
        return result

    def _plan_around_others(self, ledger: Ledger) -> None:
        """Plan anew for pools that other runs count on. Raises Refused where guest RAM would stay behind for that."""
        with reading_host():
            others = ledger.held_by_others() if self._plans else {}
            for key, count in self.gathered.facts.needed.items():
                if key not in self._plans or not (held := others.get(self._place(*key), 0)):
                    continue
                plan = self._plans[key] = plan_pool(
                    count,
                    pools=read_pools(self.kernel, key[1]),
                    numa_node=key[0],
                    allowed=Allow.GROW_HUGE_PAGES in self.request.allow,
                    largest_block=largest_block(self.kernel),
                    held=held,
                )
                if plan.short and weighty(plan, self.gathered.facts.total):
                    raise Refused(refusal(Reason.HUGEPAGE_POOL, plan.evidence))

    def _wanted(self) -> dict[Place, int]:
        """Return what the move is going to take: of pools what they have, and else what they are to be raised by."""
        wanted = {
            self._place(*key): count for key, count in self.gathered.facts.needed.items() if key not in self._plans
        }
        for (numa_node, size), plan in self._plans.items():
            wanted[Place(numa_node, size)] = min(plan.need, plan.usable) * size
            wanted[Place(numa_node)] = wanted.get(Place(numa_node), 0) + plan.grow * size
        return wanted

    def _available(self, place: Place) -> int:
        with reading_host():
            there = room(self.kernel, place.numa_node, place.page_size or self.kernel.page_size)
            if not place.page_size and Allow.RECLAIM in self.request.allow:
                there += read_offer(place.numa_node, self.kernel).reclaimable
        return there

    def _grow_less(self, missing: Shortage) -> bool:
        """Leave pools as they are where there is no room to raise them, and say whether there are such.

        Only those whose pages are so little of the VM that they may stay behind.
        """
        left = {
            key: plan
            for key, plan in self._plans.items()
            if plan.grow and missing.place == Place(plan.numa_node) and not weighty(plan, self.gathered.facts.total)
        }
        for key, plan in left.items():
            self._plans[key] = replace(plan, grow=0)
            self._note(Reason.HUGEPAGE_POOL, f"{plan.evidence}; {missing}", plan.numa_node)
        return bool(left)

    def _rebind(self) -> None:
        """Let the container's memory be on the targets, where that is allowed and it may not be there yet."""
        rebind = self._planned_rebind()
        if rebind is None:
            return
        widened = rebind.widen()
        if not widened.done:
            self._no_rebind(widened.evidence, widened.remedy)
            return
        self.rebind = rebind
        self._stack.callback(self._put_back)

    def _planned_rebind(self) -> Rebind | None:
        """Return how the container's cpuset is to be written; None where it is not. Raises Refused."""
        if Allow.REBIND_CPUSET not in self.request.allow or self.container is None:
            return None
        targets = frozenset(self.gathered.facts.targets.numa_nodes)
        if others := {cell.number for cell in self.gathered.cells} - set(self.request.cells):
            self._no_rebind(
                f"nothing is asked of {'guest cells' if len(others) > 1 else 'guest cell'} {format_list(others)}: the"
                " kernel would move that memory to the targets too, in one call that cannot be stopped",
                "Give every guest cell a NUMA node; or widen cpuset.mems of the VM's cgroup yourself, and do without"
                " RebindCpuset.",
            )
            return None
        if len(targets) > 1 and self.gathered.bindings:
            # The kernel rebinds by position: n-th NUMA node of the old set to n-th of the new.
            bound = ", ".join(sorted(self.gathered.bindings))
            self._no_rebind(
                f"memory is bound ({bound}) and there is more than one target: the kernel would mix the bindings up",
                "Place the whole VM on one NUMA node, or do without RebindCpuset.",
            )
            return None
        try:
            rebind = prepare_rebind(self.process.pid, self.container, self.kernel, targets=targets)
        except CannotRead as error:
            self._no_rebind(str(error), error.remedy)
            return None
        if rebind.plan.refused:
            self._no_rebind(rebind.plan.refused, rebind.plan.remedy)
            return None
        return rebind

    def _put_back(self) -> None:
        """Take the cpuset's widening back where the run ended before it decided about that and nothing has moved.

        Once something has, the kernel would move it back, in one go.
        """
        if self.rebind is None:
            return
        if self._landed:
            seen = f"cpuset.mems of {self.rebind.container.directory.name} stays widened: memory has moved already"
            self.notes.append(Note(reason=Reason.VM_CPUSET, evidence=seen, remedy=ADVICE[Reason.VM_CPUSET].remedy))
            return
        outcome = self.rebind.put_back()
        self.rebind = None
        if not outcome.done:
            self.notes.append(Note(reason=Reason.VM_CPUSET, evidence=outcome.evidence, remedy=outcome.remedy))

    def _no_rebind(self, evidence: str, remedy: str) -> None:
        """Tell that the cpuset is not written; where the move needs that, refuse it."""
        allowed = [thread.mems_allowed for thread in self.gathered.process.threads]
        if not all(set(self.gathered.facts.targets.numa_nodes) <= mems for mems in allowed):
            raise Refused(Refusal(reason=Reason.VM_CPUSET, evidence=evidence, remedy=remedy))
        self.notes.append(Note(reason=Reason.VM_CPUSET, evidence=evidence, remedy=remedy))

    def _grow(self) -> None:
        """Raise the pools that have to grow, from memory that neither this move nor another counts on otherwise."""
        plans = [plan for plan in self._plans.values() if plan.grow]
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
                self._note(Reason.HUGEPAGE_POOL, growth.evidence, plan.numa_node)

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
                self._note_short(found, target)

    def _note_short(self, found: Contiguity, target: int) -> None:
        self._note(Reason.HUGE_PAGES_SPLIT, f"{found.evidence}; the others may be split for the move", target)

    def _note(self, reason: Reason, evidence: str, numa_node: int) -> None:
        self.notes.append(Note(reason=reason, numa_node=numa_node, evidence=evidence, remedy=ADVICE[reason].remedy))


def huge_bytes(survey: Survey, targets: Targets) -> Table[int, int]:
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
