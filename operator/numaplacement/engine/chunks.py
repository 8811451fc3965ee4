# SPDX-License-Identifier: Apache-2.0
"""How much to move in one call, and when the next one may start. Pure: time comes in as numbers."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1 << 20
LEAST = 64 << 10
"""Below this the fixed cost of a call (mm/migrate.c drains every CPU's lists first) outweighs the pages in it."""
START = 2 * _MIB
MOST = 128 * _MIB


@dataclass
class ChunkSize:
    """Bytes of the next call, so that calls stay below `target` seconds.

    Grows twofold while calls take less than a quarter of the target and none has overshot yet, and by an eighth below
    one half of it; shrinks by an eighth above three quarters, and to half above the target. A folio is never divided:
    the mover takes one at least.
    """

    target: float
    size: int = START
    overshot: bool = False

    def observe(self, *, seconds: float, moved: int) -> None:
        """Take note of a call over `moved` bytes. One over much less than `size` says nothing about growing."""
        if seconds > self.target:
            self.overshot = True
            self.size = max(LEAST, min(self.size, moved) // 2)
        elif seconds > self.target * 3 / 4:
            self.size = max(LEAST, self.size - self.size // 8)
        elif moved * 2 < self.size or seconds > self.target / 2:
            return
        elif not self.overshot and seconds < self.target / 4:
            self.size = min(MOST, self.size * 2)
        else:
            self.size = min(MOST, self.size + max(LEAST, self.size // 8))


@dataclass
class TokenBucket:
    """Keeps the bytes moved at or below `rate` bytes per second, or does nothing when that is None."""

    rate: int | None
    _free_at: float = 0.0

    def wait(self, now: float) -> float:
        """Return the seconds to wait before anything may be moved."""
        return 0.0 if self.rate is None else max(0.0, self._free_at - now)

    def take(self, count: int, now: float) -> None:
        """Take note that `count` bytes are moved from now on."""
        if self.rate is not None:
            self._free_at = max(now, self._free_at) + count / self.rate

    def most(self) -> int:
        """Return the most bytes to move at once, so that the rate holds over a quarter of a second too."""
        return MOST if self.rate is None else max(LEAST, self.rate // 4)
