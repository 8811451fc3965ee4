# SPDX-License-Identifier: Apache-2.0
"""What the movers are to do, handed out chunk by chunk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from .refusals import Patience
from .work import BlockKey, Work, WorkPlace


@dataclass(frozen=True, kw_only=True)
class Job:
    """One chunk of some work, and the patience with that work's mappings."""

    work: Work
    chunk: slice
    patience: Patience


class Jobs:
    """Hands chunks to the movers, one after the other; none any more once a mover has failed.

    `full` are places that take no more: what is for them is passed over. It grows while the movers work.
    """

    def __init__(
        self,
        works: Iterator[Work],
        *,
        most: Callable[[], int],
        given_up: set[BlockKey],
        full: Container[WorkPlace],
    ) -> None:
        self._given_up = given_up
        self._full = full
        self._patience: list[tuple[Patience, set[BlockKey]]] = []
        self._jobs = self._all(works, most)
        self._lock = threading.Lock()
        self._failed = False

    def take_note(self) -> None:
        """Write down which blocks patience has ended with by now."""
        self._given_up |= {block for patience, blocks in self._patience if patience.ended for block in blocks}

    def next(self) -> Job | None:
        """Return the next chunk to move; None when there is no more."""
        with self._lock:
            return None if self._failed else next(self._jobs, None)

    def ending(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return `work`, such that its failing ends the handing out."""

        def guarded() -> None:
            try:
                work()
            except BaseException:
                self._failed = True
                raise

        return guarded

    def _all(self, works: Iterator[Work], most: Callable[[], int]) -> Iterator[Job]:
        for work in works:
            if work.place in self._full:
                continue
            self.take_note()
            patience = Patience()
            self._patience.append((patience, work.blocks()))
            for chunk in work.chunks(most):
                if work.place in self._full:
                    break
                yield Job(work=work, chunk=chunk, patience=patience)
