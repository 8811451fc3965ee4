# SPDX-License-Identifier: Apache-2.0
"""Touches what move_pages(2) cannot move as it is: pages that AutoNUMA has marked, and pages that are swapped out.

A read fault takes AutoNUMA's mark from a page. One on a swapped page reads it back to where the reader runs, where the
mapping has no policy of its own (mm/memory.c, do_swap_page): so the reader runs on the target's CPUs.

What is read back takes memory of the target as a move does, and is held to the same pace. It is charged to the VM's
cgroup as well (mm/memcontrol.c, mem_cgroup_swapin_charge_folio): at its limit the kernel would swap other memory of the
VM out for it, so it is left in swap where the cgroup, or one above, has less to give than all of it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .cgroups import NoCgroup, find_container
from .chunks import ChunkSize, TokenBucket
from .errors import EngineError, PlaceFull, Stopped
from .flight import Flight
from .guard import Guard
from .kernel import Kernel
from .plan import MOVABLE_KINDS
from .pressure import Throttle
from .process import HeldProcess
from .reasons import Reason
from .survey import HEAD, HIDDEN, SWAPPED, MappingPages, Pages, Survey
from .targets import Targets
from .verdict import ResidueRow
from .wording import count_text, size_text

_TOUCHES = 1024
"""Addresses touched in one call: IOV_MAX."""
_LIMITS = ("memory.max", "memory.high")
_REMEDY = (
    "Raise the VM's memory limit (memory.max and memory.high of its cgroup and those above), or have the VM give memory"
    " back, and try again: swapped-out memory is read back on the target."
)


@dataclass(frozen=True, kw_only=True)
class Restraint:
    """What holds reading back from swap back, as it does moving.

    `size` are the bytes of the next call, `flight` knows the room on the targets. `landed` hears of a target, the size
    of its pages and the bytes that arrived.
    """

    flight: Flight
    size: ChunkSize
    bucket: TokenBucket
    throttle: Throttle | None
    landed: Callable[[int, int, int], None]
    clock: Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Revealed:
    """What came of it: whether anything was touched, so that a new survey may see more.

    `left` is why memory was left in swap, empty for no reason; `stopped` why nothing more was touched.
    """

    touched: bool = False
    left: str = ""
    stopped: Stopped | None = None

    def __or__(self, other: Revealed) -> Revealed:
        """Return what came of both; the first reasons count."""
        return Revealed(
            touched=self.touched or other.touched,
            left=self.left or other.left,
            stopped=self.stopped or other.stopped,
        )


def reveal(
    survey: Survey, *, targets: Targets, guard: Guard, restraint: Restraint, cpus: Callable[[int], frozenset[int]]
) -> Revealed:
    """Touch what is off target and hides or is swapped out.

    `cpus` are those of a NUMA node; what is swapped stays so where it has none. Raises ProcessEnded.
    """
    found = Revealed()
    for target in targets.numa_nodes:
        parts = _parts(survey, targets, target)
        if not any(_waiting(part, target) for part in parts):
            continue
        toucher = _Toucher(parts=parts, target=target, guard=guard, restraint=restraint)
        with ThreadPoolExecutor(1, thread_name_prefix="toucher") as pool:
            try:
                going = pool.submit(_go_to, cpus(target), guard)
            except RuntimeError:  # the host has no thread left, and this one keeps the CPUs it has
                return found
            there = going.result()
            found |= pool.submit(toucher.touch, swapped=there).result()
        if found.stopped and not isinstance(found.stopped, PlaceFull):
            break
    return found


def explained(rows: Iterable[ResidueRow], left: str) -> tuple[ResidueRow, ...]:
    """Return rows of residue that say why memory was left in swap, where there is a reason."""
    return tuple(
        replace(row, evidence=left, remedy=_REMEDY) if left and row.reason is Reason.SWAPPED else row for row in rows
    )


def _parts(survey: Survey, targets: Targets, target: int) -> Pages:
    """Return the pages that can be moved and were asked to be on a NUMA node."""
    return survey.pages.where(lambda mapping: mapping.kind in MOVABLE_KINDS and targets.of(mapping) == target)


def _waiting(part: MappingPages, target: int) -> bool:
    return bool(((part.numa_node != target) & ((part.flags & (HIDDEN | SWAPPED)) != 0)).any())


def _go_to(cpus: frozenset[int], guard: Guard) -> bool:
    """Let this thread run on these CPUs only, and say whether it does."""
    try:
        if cpus:
            guard.process.kernel.set_own_affinity(cpus)
    except OSError:
        return False
    return bool(cpus)


@dataclass(kw_only=True)
class _Toucher:
    """Touches the pages of one target, in a thread on its CPUs."""

    parts: Pages
    target: int
    guard: Guard
    restraint: Restraint
    _touched: bool = False

    def touch(self, *, swapped: bool) -> Revealed:
        """Touch what hides, and with `swapped` read back what is swapped out. Raises ProcessEnded."""
        left = ""
        try:
            for part in self.parts:
                hiding = (part.numa_node != self.target) & ((part.flags & (HIDDEN | HEAD)) == (HIDDEN | HEAD))
                self._show(part.addresses(np.flatnonzero(hiding)))
            if swapped:
                left = self._read_back(self.parts.where(lambda mapping: mapping.swapped > 0))
        except Stopped as stopped:
            return Revealed(touched=self._touched, left=left, stopped=stopped)
        return Revealed(touched=self._touched, left=left)

    def _show(self, addresses: NDArray[np.uint64]) -> None:
        """Touch pages that hide, by their addresses uint64[n]."""
        process = self.guard.process
        for first in range(0, addresses.size, _TOUCHES):
            self.guard.check()
            if process.kernel.touch(process.pid, addresses[first : first + _TOUCHES]):
                return
            self._touched = True

    def _read_back(self, parts: Pages) -> str:
        """Read back what is swapped out, and return why some was left, if any. Raises Stopped and ProcessEnded."""
        needed = sum(_swapped(part).size * part.mapping.page_size for part in parts)
        cgroups = _cgroups(self.guard.process) if needed else ()
        for part in parts:
            addresses, size = _swapped(part), part.mapping.page_size
            while addresses.size:
                self.guard.check()
                if short := _short(needed, cgroups, self.guard.process.kernel):
                    return short
                count = self._read(addresses, size) or addresses.size  # those the kernel refuses are left
                addresses = addresses[count:]
                needed -= count * size
        return ""

    def _read(self, addresses: NDArray[np.uint64], page_size: int) -> int:
        """Read the first of some swapped-out pages, by their addresses uint64[n], back in one call, as many as fit.

        Return how many, 0 where the kernel refuses. Raises Stopped and ProcessEnded.
        """
        restraint, process = self.restraint, self.guard.process
        share = self._await_pace()
        most = int(min(restraint.size.size, restraint.bucket.most()) * share) // page_size
        chunk = addresses[: max(1, min(most, _TOUCHES))]
        self.guard.wait(restraint.bucket.take(chunk.size * page_size, restraint.clock()))
        sizes = np.full(chunk.size, page_size, dtype=np.int64)
        count = restraint.flight.take(sizes, target=self.target, page_size=page_size)
        began = restraint.clock()
        try:
            with self.guard.watchdog.call(f"reading {count_text(count, 'page')} back from swap"):
                refused = process.kernel.touch(process.pid, chunk[:count])
        finally:
            restraint.flight.landed(count * page_size, target=self.target)
        if refused:
            return 0
        self._touched = True
        restraint.size.observe(seconds=restraint.clock() - began, moved=count * page_size)
        restraint.landed(self.target, page_size, self._arrived(chunk[:count]) * page_size)
        return count

    def _await_pace(self) -> float:
        """Wait for as long as the VM or its neighbours need a rest; return the share of its size for the next call."""
        if self.restraint.throttle is None:
            return 1.0
        while (pace := self.restraint.throttle.pace()).pause > 0:
            self.guard.tell_waiting(pace.reason)
            self.guard.wait(pace.pause)
        return pace.share

    def _arrived(self, addresses: NDArray[np.uint64]) -> int:
        """Return how many pages, by their addresses uint64[n], are on the target; 0 where the kernel does not say."""
        process = self.guard.process
        result = process.kernel.locate_pages(process.pid, addresses)
        return 0 if result.errno else int(np.count_nonzero(result.status == self.target))


def _swapped(part: MappingPages) -> NDArray[np.uint64]:
    """Return the addresses, uint64, of the pages that are swapped out."""
    return part.addresses(np.flatnonzero(part.flags & SWAPPED))


def _cgroups(process: HeldProcess) -> tuple[Path, ...]:
    """Return the directories of a process's cgroup and of all above it; none where it cannot be found."""
    try:
        directory = find_container(process.pid, process.kernel).directory
    except (NoCgroup, EngineError):
        return ()
    root = process.kernel.sys / "fs/cgroup"
    return tuple(each for each in (directory, *directory.parents) if root in each.parents)


def _short(needed: int, cgroups: Iterable[Path], kernel: Kernel) -> str:
    """Return which of some cgroups may take less than the bytes needed, the one that may least; empty for none."""
    rooms = [
        (max(0, limit - current), f"{name} of cgroup {directory.name}")
        for directory in cgroups
        if (current := _number(kernel, directory / "memory.current")) is not None
        for name in _LIMITS
        if (limit := _number(kernel, directory / name)) is not None
    ]
    free, which = min(rooms, default=(needed, ""))
    if free >= needed:
        return ""
    return (
        f"left in swap: {which} leaves room for {size_text(free)}, to read back takes {size_text(needed)}; the kernel"
        " would swap other memory of the VM out for it"
    )


def _number(kernel: Kernel, path: Path) -> int | None:
    """Return the bytes in a file of a cgroup; None where there is none, or no limit ("max")."""
    try:
        text = kernel.read(path).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
