# SPDX-License-Identifier: Apache-2.0
"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Waits that double from `first` to `most` seconds.

    Each is shortened at random by up to half, so that many who failed at the same moment do not come back at the same
    moment.
    """

    def __init__(self, *, first: float = 0.5, most: float = 30.0, chance: Callable[[], float] = random.random) -> None:
        self._first = first
        self._most = most
        self._chance = chance
        self._next = first

    def delay(self, *, at_least: float = 0.0) -> float:
        """Return the seconds to wait now, never less than `at_least` (a server's Retry-After)."""
        wait = self._next * (1 - self._chance() / 2)
        self._next = min(self._next * 2, self._most)
        return max(wait, at_least)

    def reset(self) -> None:
        """Begin again: something worked."""
        self._next = self._first
