# SPDX-License-Identifier: Apache-2.0
"""One pass after the other over a process's memory, each proved by a survey, until no more is to be had."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from .chunks import ChunkSize
from .collapse import Collapsed, collapse_blocks, split_blocks
from .contiguity import read_blocks
from .errors import PlaceFull, Stopped
from .host import HostFacts
from .kernel import Kernel
from .mover import Mover, Pass
from .plan import touchable_bytes
from .reasons import Reason
from .reveal import Restraint, reveal
from .survey import Survey
from .surveyor import survey
from .verdict import Progress, Stage

_MOST = 4
"""Passes at most: what a VM keeps touching anew is not chased for ever."""
_REST = 0.2
"""Seconds before pages are tried once more that were refused, or where none moved: what holds a page for a moment lets
go of it by then."""


@dataclass(kw_only=True)
class Passes:
    """The passes of one run: how many there were, and why memory was left in swap, empty for no reason."""

    mover: Mover
    host: HostFacts
    clock: Callable[[], float]
    count: int = 0
    left_in_swap: str = ""

    def run(self, before: Survey) -> tuple[Pass, Survey]:
        """Move until nothing movable is left, nothing moves any more, or the run is stopped.

        Return the last pass, and the survey after it. Raises ProcessEnded and LocatingRefused.
        """
        mover = self.mover
        process = mover.guard.process
        last, rested = before, False
        while True:
            self.count += 1
            try:
                seen = self._revealed(last)
            except Stopped as stopped:
                done = Pass(survey=last, stopped=stopped)
                mover.recall(done)
                return done, last
            done = mover.run(seen, number=self.count)
            mover.guard.tell(Progress(stage=Stage.VERIFY, pass_number=self.count, bytes_done=mover.moved))
            after = survey(process.pid, process.kernel)
            if done.stopped or self.count == _MOST or not self._promising(after, done, rested=rested):
                return done, after
            if not done.moved or not mover.left(after, tries=1):
                rested = rested or not done.moved
                with contextlib.suppress(Stopped):  # the next pass is told of it too
                    mover.guard.wait(_REST)
            last = after

    def _promising(self, after: Survey, done: Pass, *, rested: bool) -> bool:
        """Say whether another pass may move more; where this one moved nothing, only once, after a rest."""
        waiting = touchable_bytes(after.pages, targets=self.mover.targets, swapped=not self.left_in_swap)
        return bool(waiting) or bool(self.mover.left(after) and (done.moved or not rested))

    def _revealed(self, last: Survey) -> Survey:
        """Return a survey in which the pages that hid can be seen, as far as they let themselves be. Raises Stopped."""
        mover = self.mover
        process, targets = mover.guard.process, mover.targets
        if not touchable_bytes(last.pages, targets=targets):
            return last
        restraint = Restraint(
            flight=mover.calls.flight,
            size=ChunkSize(target=mover.calls.size.target),
            bucket=mover.calls.bucket,
            throttle=mover.calls.throttle,
            landed=mover.landed,
            clock=self.clock,
        )
        revealed = reveal(
            last, targets=targets, guard=mover.guard, restraint=restraint, cpus=lambda target: _cpus(self.host, target)
        )
        self.left_in_swap = revealed.left
        if revealed.touched:  # where it was stopped too: what was touched is to be seen, and moving stops by itself
            return survey(process.pid, process.kernel)
        if revealed.stopped and not (isinstance(revealed.stopped, PlaceFull) and len(targets.numa_nodes) > 1):
            raise revealed.stopped
        return last


def rebuilt(mover: Mover, *, before: Survey, done: Pass, after: Survey) -> tuple[Collapsed, Survey]:
    """Make huge pages again of those that were split, and look again where that changed anything. Raises ProcessEnded.

    `before` and `after` are the surveys before the first pass and after the last one, `done`.
    """
    guard = mover.guard
    process = guard.process
    if done.stopped and done.stopped.reason in {Reason.CANCELLED, Reason.DEADLINE}:
        return Collapsed(), after
    huge = process.kernel.huge_page_size()
    try:
        collapsed = collapse_blocks(
            process,
            split_blocks(before, after, targets=mover.targets, huge=huge),
            huge=huge,
            room=lambda target: _whole_huge_pages(process.kernel, target, huge),
            check=guard.check,
            clock=mover.clock,
            watched=guard.watchdog.call,
        )
    except Stopped:
        collapsed = Collapsed(rebuilt=1)  # some perhaps: look again
    return collapsed, survey(process.pid, process.kernel) if collapsed.rebuilt else after


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
