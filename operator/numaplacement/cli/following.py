# SPDX-License-Identifier: Apache-2.0
"""Follows a move on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from numaplacement.api.quantities import format_seconds
from numaplacement.engine.verdict import Progress as Moved
from numaplacement.engine.verdict import Stage
from numaplacement.engine.wording import size_text

from .output import say, to_people

_EVERY = 5.0
"""Seconds between two plain lines."""
_STAGES = {
    Stage.SURVEY: "Looking at the memory",
    Stage.THREADS: "Threads follow",
    Stage.MOVE: "Moving",
    Stage.VERIFY: "Looking again",
    Stage.STAY: "Placed; watching whether AutoNUMA moves it back (Ctrl-C ends that)",
}


class Follower(Protocol):
    """Shows how far a run is; `progressed` may be called from another thread."""

    def __enter__(self) -> Follower:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End, and leave nothing on the screen that is not true any more."""

    def progressed(self, progress: Moved, /) -> None:
        """Show how far the run is."""


def follower(*, clock: Callable[[], float]) -> Follower:
    """Return the follower that fits where standard error goes."""
    screen = to_people()
    return Bar(screen) if screen.is_terminal and not screen.is_dumb_terminal else Lines(clock=clock)


def headline(progress: Moved) -> str:
    """Return what is being done."""
    of_pass = f", pass {progress.pass_number}" if progress.pass_number > 1 else ""
    return f"{_STAGES[progress.stage]}{of_pass}"


def details(progress: Moved) -> str:
    """Return amount, rate, what is left, the p99 of a call and what is waited for, as far as they are known."""
    left = max(0, progress.bytes_total - progress.bytes_done)
    amount = f"{size_text(progress.bytes_done)} of {size_text(progress.bytes_total)}" if progress.bytes_total else ""
    rate = f"{size_text(progress.bytes_per_second)}/s" if progress.bytes_per_second else ""
    rest = f"{format_rest(left / progress.bytes_per_second)} left" if left and progress.bytes_per_second else ""
    p99 = f"p99 {format_seconds(progress.call_p99)}" if progress.call_p99 else ""
    waiting = f"waiting: {progress.waiting}" if progress.waiting else ""
    return ", ".join(filter(None, (amount, rate, rest, p99, waiting)))


def format_rest(seconds: float) -> str:
    """Return how long something will still take, as a person says it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Bar:
    """A live bar."""

    def __init__(self, screen: Console) -> None:
        self._progress = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            console=screen,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(_STAGES[Stage.SURVEY], total=None, details="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def progressed(self, progress: Moved, /) -> None:
        """Show how far the run is."""
        self._progress.update(
            self._task,
            description=headline(progress),
            details=details(progress),
            completed=progress.bytes_done,
            total=progress.bytes_total or None,
        )


class Lines:
    """A line when something else begins to be done, and one every few seconds."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._headline = ""
        self._next = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def progressed(self, progress: Moved, /) -> None:
        """Show how far the run is, unless that was told a moment ago."""
        words, now = headline(progress), self._clock()
        if words == self._headline and now < self._next:
            return
        self._headline, self._next = words, now + _EVERY
        say(": ".join(filter(None, (words, details(progress)))))
