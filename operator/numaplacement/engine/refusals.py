# SPDX-License-Identifier: Apache-2.0
"""Move a list of folios although some of them will not go: find these, and move all the others.

move_pages(2) returns a positive count as soon as one folio fails in the copy phase, writes no status for the run it
was in and does not try what comes after (mm/migrate.c, do_pages_move). So where pages are is read back, and what
stayed is divided until each refused folio has been alone in a call.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .kernel import MoveResult
from .plan import Trial

_IN_A_ROW = 64
_PROBES = 8
"""Folios tried alone, evenly spread, before the rest of some that were refused in a row is left."""
_OF_STATUS = {
    -errno.ENOENT: Trial.ABSENT,
    -errno.EFAULT: Trial.ABSENT,
    -errno.EBUSY: Trial.BUSY,
    -errno.EACCES: Trial.SHARED,
}


@dataclass
class Patience:
    """Counts folios of one mapping that were refused one after the other; ends at `limit`."""

    limit: int = _IN_A_ROW
    in_a_row: int = 0

    @property
    def ended(self) -> bool:
        """Whether the mapping is to be given up: what is pinned as a whole is not hammered page by page."""
        return self.in_a_row >= self.limit


def trials_of_status(status: NDArray[np.int32], *, target: int) -> NDArray[np.uint8]:
    """Return what statuses int32[n] of a call that returned 0 mean for each folio: Trial, uint8[n]."""
    trials = np.full(status.size, Trial.UNKNOWN, dtype=np.uint8)
    trials[status == target] = Trial.MOVED
    for value, trial in _OF_STATUS.items():
        trials[status == value] = trial
    return trials


def move_around_refusals(
    count: int,
    *,
    target: int,
    call: Callable[[NDArray[np.int64]], MoveResult],
    locate: Callable[[NDArray[np.int64]], NDArray[np.int32]],
    patience: Patience,
    trials: NDArray[np.uint8],
) -> None:
    """Move `count` folios and write what became of each into `trials`, uint8[count].

    `call` moves and `locate` finds the folios with the indices given; both may raise to end it, and then what was
    reached is written.
    """
    waiting = [np.arange(count)]
    while waiting:
        part = waiting.pop()
        if patience.ended and not _probed(part, target=target, call=call, patience=patience, trials=trials):
            continue
        part = part[trials[part] == Trial.NOT_TRIED]
        if part.size == 0:
            continue
        result = call(part)
        if result.not_moved == 0:
            trials[part] = trials_of_status(result.status, target=target)
        elif part.size == 1:
            trials[part] = Trial.REFUSED
            patience.in_a_row += 1
            continue
        else:
            where = locate(part)
            trials[part[where == target]] = Trial.MOVED
            trials[part[where < 0]] = Trial.ABSENT
            stayed = part[(where >= 0) & (where != target)]
            middle = (stayed.size + 1) // 2
            waiting += [half for half in (stayed[middle:], stayed[:middle]) if half.size]
        if (trials[part] == Trial.MOVED).any():
            patience.in_a_row = 0


def _probed(
    part: NDArray[np.int64],
    *,
    target: int,
    call: Callable[[NDArray[np.int64]], MoveResult],
    patience: Patience,
    trials: NDArray[np.uint8],
) -> bool:
    """Try some folios of a part alone; where none moves give up the others, else go on with them and say so.

    A device holds all of a mapping; what an I/O ring has registered may be a MiB in the middle of it.
    """
    for folio in part[:: -(-part.size // _PROBES)]:
        result = call(np.array([folio]))
        trials[folio] = Trial.REFUSED if result.not_moved else trials_of_status(result.status[:1], target=target)[0]
        if trials[folio] == Trial.MOVED:
            patience.in_a_row = 0
            return True
    rest = part[trials[part] == Trial.NOT_TRIED]
    trials[rest] = Trial.GIVEN_UP
    return False
