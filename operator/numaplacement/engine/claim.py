# SPDX-License-Identifier: Apache-2.0
"""What one move is going to take of its targets, and whether that is there beside what other runs count on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .checks import Refused, refusal, weighty
from .facts import Gathered, room
from .host import reading_host
from .kernel import Kernel
from .ledger import Ledger, Place, Reservation, Shortage
from .notes import note
from .pools import PoolPlan, largest_block, plan_pool, read_pools
from .reasons import Reason
from .reclaim import read_offer
from .verdict import Allow, Note

Answer = TypeVar("Answer")


@dataclass(kw_only=True)
class Claim:
    """One move's claim. `plans` say by target and page size what becomes of pools; `notes` are added to."""

    kernel: Kernel
    gathered: Gathered
    allow: frozenset[Allow]
    ledger: Ledger | None
    notes: list[Note]
    plans: dict[tuple[int, int], PoolPlan] = field(init=False)

    def __post_init__(self) -> None:
        self.plans = dict(self.gathered.pools)

    def foresee(self) -> None:
        """Look whether all fits, and reserve nothing. Raises Refused, and EngineError where the host cannot be read."""
        if self.ledger is not None:
            self._plan_around_others(self.ledger)
            self._fit(self.ledger.lacking)

    def reserve(self) -> AbstractContextManager[Reservation] | None:
        """Reserve it, so that no other run counts on it too; None without a ledger. Raises as foresee() does."""
        if self.ledger is None:
            return None
        self._plan_around_others(self.ledger)
        return self._fit(self.ledger.reserve)

    def place(self, target: int, page_size: int) -> Place:
        """Return where the ledger keeps pages of that size on a target."""
        return Place(target, 0 if page_size == self.kernel.page_size else page_size)

    def _fit(self, ask: Callable[[Mapping[Place, int], Callable[[Place], int]], Answer | Shortage]) -> Answer:
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
            others = ledger.held_by_others() if self.plans else {}
            for key, count in self.gathered.facts.needed.items():
                if key not in self.plans or not (held := others.get(self.place(*key), 0)):
                    continue
                plan = self.plans[key] = plan_pool(
                    count,
                    pools=read_pools(self.kernel, key[1]),
                    numa_node=key[0],
                    allowed=Allow.GROW_HUGE_PAGES in self.allow,
                    largest_block=largest_block(self.kernel),
                    held=held,
                )
                if plan.short and weighty(plan, self.gathered.facts.total):
                    raise Refused(refusal(Reason.HUGEPAGE_POOL, plan.evidence))

    def _wanted(self) -> dict[Place, int]:
        """Return what the move is going to take: of pools what they have, and else what they are to be raised by."""
        wanted = {self.place(*key): count for key, count in self.gathered.facts.needed.items() if key not in self.plans}
        for (numa_node, size), plan in self.plans.items():
            wanted[Place(numa_node, size)] = min(plan.need, plan.usable) * size
            wanted[Place(numa_node)] = wanted.get(Place(numa_node), 0) + plan.grow * size
        return wanted

    def _available(self, place: Place) -> int:
        with reading_host():
            there = room(self.kernel, place.numa_node, place.page_size or self.kernel.page_size)
            if not place.page_size and Allow.RECLAIM in self.allow:
                there += read_offer(place.numa_node, self.kernel).reclaimable
        return there

    def _grow_less(self, missing: Shortage) -> bool:
        """Leave pools as they are where there is no room to raise them, and say whether there are such.

        Only those whose pages are so little of the VM that they may stay behind.
        """
        left = {
            key: plan
            for key, plan in self.plans.items()
            if plan.grow and missing.place == Place(plan.numa_node) and not weighty(plan, self.gathered.facts.total)
        }
        for key, plan in left.items():
            self.plans[key] = replace(plan, grow=0)
            self.notes.append(note(Reason.HUGEPAGE_POOL, f"{plan.evidence}; {missing}", numa_node=plan.numa_node))
        return bool(left)
