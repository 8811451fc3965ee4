# SPDX-License-Identifier: Apache-2.0
"""A queue of keys, as client-go's workqueue has it: a key waits at most once and is never worked on twice at a time.

One added while it is worked on comes again afterwards, so that no change is missed. Clock and chance are passed in.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class WorkQueue(Generic[Key]):
    """Keys that are ready, keys that become ready later, and how often each has failed.

    `clock` gives seconds that never go backwards; `first` and `most` bound the wait after a failure, in seconds; the
    wait doubles each time and is shortened at random by up to half, so that what failed together does not come back
    together.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        first: float = 1.0,
        most: float = 120.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock, self._first, self._most, self._chance = clock, first, most, chance
        self._ready: dict[Key, float] = {}
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._serial = 0
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Return how many keys are ready."""
        self._promote()
        return len(self._ready)

    def add(self, key: Key) -> None:
        """Make `key` ready, unless it is."""
        if key in self._working:
            self._again.add(key)
        else:
            self._ready.setdefault(key, self._clock())
        self._changed.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Make `key` ready in so many seconds; of several such wishes the earliest holds."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._serial += 1
            heapq.heappush(self._heap, (due, self._serial, key))
        self._changed.set()

    def retry(self, key: Key, *, at_least: float = 0.0) -> float:
        """Make `key`, which has failed, ready after a wait that grows with each failure; return the wait in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        longest = min(self._first * 2.0 ** min(failures, 64), self._most)
        wait = max(longest * (1 - self._chance() / 2), at_least)
        self.add_after(key, wait)
        return wait

    def succeeded(self, key: Key) -> None:
        """Forget the failures of `key`."""
        self._failures.pop(key, None)

    def take(self) -> Key | None:
        """Return the key that has been ready longest, now being worked on until `done`, or None when none is ready."""
        self._promote()
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._working.add(key)
        return key

    def done(self, key: Key) -> None:
        """End the work on `key`; it is ready at once when it was added meanwhile."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def get(self) -> Key:
        """Wait until a key is ready, and take it."""
        while True:
            self._changed.clear()
            key = self.take()
            if key is not None:
                return key
            due = self._heap[0][0] - self._clock() if self._heap else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due):
                    await self._changed.wait()

    def oldest(self) -> float:
        """Return the seconds for which the key that has been ready longest has waited, 0 when none is ready."""
        self._promote()
        return self._clock() - next(iter(self._ready.values())) if self._ready else 0.0

    def _promote(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
