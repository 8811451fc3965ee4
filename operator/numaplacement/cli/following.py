# SPDX-License-Identifier: Apache-2.0
"""Follows a move on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from numaplacement.engine.verdict import Progress

from .bar import Bar
from .output import say, to_people
from .progress import details, headline

_EVERY = 5.0
"""Seconds between two plain lines."""


class Follower(Protocol):
    """Shows how far a run is; `progressed` may be called from another thread."""

    def __enter__(self) -> Follower:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End, and leave nothing on the screen that is not true any more."""

    def progressed(self, progress: Progress, /) -> None:
        """Show how far the run is."""


def follower(*, clock: Callable[[], float]) -> Follower:
    """Return the follower that fits where standard error goes."""
    screen = to_people()
    return Bar(screen) if screen.is_terminal and not screen.is_dumb_terminal else Lines(clock=clock)


class Lines:
    """A line when something else begins to be done, one every few seconds, and the last one of what was done."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._headline = ""
        self._next = 0.0
        self._said = ""
        self._held = ""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._catch_up()

    def progressed(self, progress: Progress, /) -> None:
        """Show how far the run is; what was told a moment ago is held until something else begins."""
        words, now = headline(progress), self._clock()
        line = ": ".join(filter(None, (words, details(progress))))
        if words == self._headline and now < self._next:
            self._held = line
            return
        if words != self._headline:
            self._catch_up()
        self._headline, self._next = words, now + _EVERY
        self._say(line)

    def _catch_up(self) -> None:
        """Say what was held: a move of less than a few seconds would end without a word of what has moved."""
        if self._held and self._held != self._said:
            self._say(self._held)

    def _say(self, line: str) -> None:
        self._said, self._held = line, ""
        say(line)
