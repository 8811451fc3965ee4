# SPDX-License-Identifier: Apache-2.0
"""Raises the target's pool of huge pages for one move, and gives exactly as much back, whatever way that ends.

Pages that moved free as many in the pools they came from: these pools are lowered by what the target's was raised, and
the target's by what was raised in vain. So the host has as many pages as before. A kubelet counts huge pages at its
start only: it does not see that they are on other NUMA nodes.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from .contiguity import make_contiguous
from .kernel import Kernel
from .ledger import Place, Reservation
from .pools import HostPool, PoolPlan, read_pools
from .wording import count_text, size_text

_IN_THIS_PROCESS = threading.Lock()
"""A pool's size can only be read and then written: two that do so at once would both count the same pages as theirs."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """By how many pages a pool was raised; `evidence` says in one clause why by less than planned, or is empty."""

    numa_node: int
    page_size: int
    pages: int = 0
    evidence: str = ""


@dataclass(frozen=True, kw_only=True)
class GivenBack:
    """What became of the pages a pool was raised by, in pages.

    `unused` were given back where they had been raised, `at_sources` where pages had left, by NUMA node. `kept` are
    those that could not be given back without taking them from somebody; `evidence` says so in one clause.
    """

    numa_node: int
    page_size: int
    unused: int = 0
    at_sources: dict[int, int] = field(default_factory=dict)
    kept: int = 0
    evidence: str = ""


@dataclass(kw_only=True)
class _Owned:
    """Pages that are still ours to give back, of those a target's pool was `raised` by, and what is known of the move.

    `usable` were free for it before, `promised` reserved on the host then; `left` moved here, by NUMA node. Of `unsure`
    pages it is not known whether they were given back: that is not tried again, or others' would be.
    """

    raised: int
    pages: int
    usable: int
    promised: int
    unsure: int = 0
    left: dict[int, int] = field(default_factory=dict)

    def used(self) -> int:
        """Pages of ours that the move needed: those that were free before are counted first."""
        return min(self.pages, max(0, sum(self.left.values()) - self.usable))

    @property
    def kept(self) -> int:
        """Pages that are there still, as far as is known."""
        return self.pages + self.unsure


def releasable(pools: HostPool, numa_node: int, *, promised: int, held: int = 0) -> int:
    """Return by how many pages a NUMA node's pool may be lowered.

    Only free pages, so that none in use becomes surplus; none that was reserved since `promised` pages were, as those
    who did may have counted on it; none of the `held` ones that other moves count on. None at all while there is
    surplus on the host: Linux 6.1 works with the host's sum, and would raise the pool for it (mm/hugetlb.c,
    set_max_huge_pages).
    """
    if pools.surplus:
        return 0
    here = pools.on(numa_node).free - max(0, pools.reserved - promised) - held
    return max(0, min(here, pools.free - pools.reserved))


class GrownPools:
    """The pools one run has raised; as a context it gives them back at its end, also at an error or an interruption.

    For one thread. `reservation` is the run's own in the ledger: what is raised is held there, and the ledger keeps all
    other runs from changing pools meanwhile; without it runs of this process do not meet. A process that is killed
    gives nothing back.
    """

    def __init__(self, kernel: Kernel, *, reservation: Reservation | None = None) -> None:
        self._kernel = kernel
        self._reservation = reservation
        self._owned: dict[tuple[int, int], _Owned] = {}
        self._done: tuple[GivenBack, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.give_back()

    @property
    def given_back(self) -> tuple[GivenBack, ...]:
        """What became of all that was raised; what nobody has given back yet is kept, for now."""
        waiting = (
            GivenBack(
                numa_node=key[0],
                page_size=key[1],
                kept=owned.kept,
                evidence=f"{_text(key, owned)} were not given back",
            )
            for key, owned in self._owned.items()
        )
        return (*self._done, *waiting)

    def grow(self, plan: PoolPlan, *, others: int = 0) -> Growth:
        """Raise a pool as planned, as far as that makes nobody give memory back; compacts the NUMA node if that helps.

        The kernel would reclaim and swap for a page of a pool: so no more are asked for than there are free blocks for
        above the high watermark. `others` are bytes that this move and others are going to take there in pages of no
        pool. Asking for more than can be had is no error to the kernel, so the pool is read back. What cannot be done
        is in the result.
        """
        key = plan.numa_node, plan.page_size
        if not plan.grow:
            return Growth(numa_node=key[0], page_size=key[1], evidence=plan.evidence)
        try:
            found = make_contiguous(
                plan.grow * plan.page_size,
                numa_node=plan.numa_node,
                kernel=self._kernel,
                huge_page_size=plan.page_size,
                others=others,
            )
            asked = min(plan.grow, found.usable // plan.page_size)
            pages, evidence = self._raise(plan, asked) if asked else (0, "")
        except OSError as error:
            return Growth(
                numa_node=key[0],
                page_size=key[1],
                evidence=f"the pool of NUMA node {plan.numa_node} could not be raised ({_name(error)})",
            )
        if not evidence and pages < plan.grow:
            evidence = f"the pool of NUMA node {plan.numa_node} was raised by {pages} of {plan.grow} pages"
            evidence += f": {found.evidence}" if not found.enough else ""
        return Growth(numa_node=key[0], page_size=key[1], pages=pages, evidence=evidence)

    def left(self, *, numa_node: int, page_size: int, by_source: Mapping[int, int]) -> None:
        """Take note of how many pages moved to a NUMA node's pool and are there, by the NUMA node they came from.

        Of a process that has ended none are; this need not be called then.
        """
        owned = self._owned.get((numa_node, page_size))
        if owned is not None:
            owned.left = dict(by_source)

    def give_back(self) -> tuple[GivenBack, ...]:
        """Give back all that was raised, and return what became of it; more than once is once.

        Raises nothing of its own; interrupted, it can be gone on with.
        """
        while self._owned:
            key = next(iter(self._owned))
            self._done += (self._give_back(key, self._owned[key]),)
            del self._owned[key]
        return self.given_back

    def _raise(self, plan: PoolPlan, asked: int) -> tuple[int, str]:
        """Raise a pool and read it back: return the pages it has more, and why none were asked for."""
        numa_node, page_size = key = plan.numa_node, plan.page_size
        with self._locked():
            before = read_pools(self._kernel, page_size)
            if before.surplus:
                return 0, f"the host has surplus pages of {size_text(page_size)} now: the pool is not raised"
            total = before.on(numa_node).total
            pages = 0
            if self._reservation is not None:  # before they are there, so that nobody else ever counts on them
                self._reservation.hold(asked * page_size, Place(*key))
            try:
                self._kernel.write(self._path(numa_node, page_size), str(total + asked))
            finally:  # what was raised is ours even where this is interrupted
                try:
                    after = self._total_or_undone(numa_node, page_size, total, asked=asked)
                    pages = max(0, min(asked, after - total))
                    self._own(plan, pages, promised=before.reserved)
                finally:
                    if self._reservation is not None:
                        self._reservation.used((asked - pages) * page_size, Place(*key))
        return pages, ""

    def _own(self, plan: PoolPlan, pages: int, *, promised: int) -> None:
        key = plan.numa_node, plan.page_size
        if pages and key in self._owned:
            self._owned[key].raised += pages
            self._owned[key].pages += pages
        elif pages:
            self._owned[key] = _Owned(raised=pages, pages=pages, usable=plan.usable, promised=promised)

    def _locked(self) -> AbstractContextManager[object]:
        return _IN_THIS_PROCESS if self._reservation is None else self._reservation.locked()

    def _total_or_undone(self, numa_node: int, page_size: int, before: int, *, asked: int) -> int:
        """Return a pool's size; where it cannot be read, it is put back to what it was. Raises OSError."""
        try:
            return read_pools(self._kernel, page_size).on(numa_node).total
        except OSError as error:
            try:
                self._kernel.write(self._path(numa_node, page_size), str(before))
            except OSError:
                seen = f"the pool of NUMA node {numa_node} may have been raised by {count_text(asked, 'page')}: it can"
                seen += f" neither be read nor put back ({_name(error)})"
                self._done += (GivenBack(numa_node=numa_node, page_size=page_size, kept=asked, evidence=seen),)
            raise

    def _give_back(self, key: tuple[int, int], owned: _Owned) -> GivenBack:
        (numa_node, page_size), trouble = key, ""
        unused, at_sources = 0, dict.fromkeys(owned.left, 0)
        try:
            unused = self._lower(numa_node, page_size, owned.pages - owned.used(), owned)
            for source, pages in owned.left.items():
                at_sources[source] = self._lower(source, page_size, min(owned.pages, pages), owned)
        except OSError as error:
            trouble = f" ({_name(error)})"
        evidence = ""
        if owned.kept:
            evidence = f"{_text(key, owned)} could not be given back without taking them from others{trouble}"
        return GivenBack(
            numa_node=numa_node,
            page_size=page_size,
            unused=unused,
            at_sources={source: pages for source, pages in at_sources.items() if pages},
            kept=owned.kept,
            evidence=evidence,
        )

    def _lower(self, numa_node: int, page_size: int, wanted: int, owned: _Owned) -> int:
        """Lower a pool by so many pages at most, and return by how many it was; they are no more owned then."""
        with self._locked():
            pools = read_pools(self._kernel, page_size)
            held = self._held_by_others(numa_node, page_size)
            pages = min(wanted, releasable(pools, numa_node, promised=owned.promised, held=held))
            if pages <= 0:
                return 0
            path, total = self._path(numa_node, page_size), pools.on(numa_node).total
            owned.pages -= pages
            owned.unsure += pages
            try:
                self._kernel.write(path, str(total - pages))
            finally:  # what was given back is not ours any more even where this is interrupted
                now = read_pools(self._kernel, page_size).on(numa_node)
                lowered = max(0, min(pages, total - now.total))
                owned.pages += pages - lowered
                owned.unsure -= pages
                if now.surplus:  # somebody took a free page in between: it stays in the pool
                    self._kernel.write(path, str(now.total))
            return lowered

    def _held_by_others(self, numa_node: int, page_size: int) -> int:
        """Return how many pages of a pool other moves count on."""
        if self._reservation is None:
            return 0
        return -(-self._reservation.others(Place(numa_node, page_size)) // page_size)

    def _path(self, numa_node: int, page_size: int) -> Path:
        name = f"node{numa_node}/hugepages/hugepages-{page_size // 1024}kB/nr_hugepages"
        return self._kernel.sys / "devices/system/node" / name


def _text(key: tuple[int, int], owned: _Owned) -> str:
    """Name the pages that are there still."""
    return (
        f"{count_text(owned.kept, 'page')} of {size_text(key[1])} of the {owned.raised} that the pool of NUMA node"
        f" {key[0]} was raised by"
    )


def _name(error: OSError) -> str:
    return f"{errno.errorcode.get(error.errno or errno.EIO, 'EIO')}: {error.strerror or error}"
