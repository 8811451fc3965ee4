# SPDX-License-Identifier: Apache-2.0
"""How far a run is, in words. Pure."""

from __future__ import annotations

from numaplacement.api.quantities import format_seconds
from numaplacement.engine.verdict import Progress, Stage
from numaplacement.engine.wording import size_text

_STAGES = {
    Stage.SURVEY: "Looking at the memory",
    Stage.THREADS: "Threads follow",
    Stage.MOVE: "Moving",
    Stage.VERIFY: "Looking again",
    Stage.STAY: "Watching whether AutoNUMA moves it back (Ctrl-C ends that)",
}
_SHORT = {Stage.STAY: "Watching (Ctrl-C ends that)"}
"""What is said where there is no room for the words above."""


def headline(progress: Progress, *, short: bool = False) -> str:
    """Return what is being done."""
    of_pass = f", pass {progress.pass_number}" if progress.pass_number > 1 else ""
    words = _STAGES[progress.stage]
    return f"{_SHORT.get(progress.stage, words) if short else words}{of_pass}"


def known(progress: Progress) -> dict[str, str]:
    """Return amount, rate, what is left, the p99 of a call and what is waited for, as far as they are known."""
    left = max(0, progress.bytes_total - progress.bytes_done)
    rate = progress.bytes_per_second
    found = {
        "amount": f"{size_text(progress.bytes_done)} of {size_text(progress.bytes_total)}"
        if progress.bytes_total
        else "",
        "rate": f"{size_text(rate)}/s" if rate else "",
        "left": f"{format_rest(left / rate)} left" if left and rate else "",
        "p99": f"p99 {format_seconds(progress.call_p99)}" if progress.call_p99 else "",
        "waiting": f"waiting: {progress.waiting}" if progress.waiting else "",
    }
    return {name: text for name, text in found.items() if text}


def details(progress: Progress) -> str:
    """Return all that is known of how far a run is."""
    return ", ".join(known(progress).values())


def percent(progress: Progress) -> str:
    """Return the share that has moved; empty where nothing is counted."""
    if not progress.bytes_total:
        return ""
    return f"{min(100, progress.bytes_done * 100 // progress.bytes_total):3d}%"


def format_rest(seconds: float) -> str:
    """Return how long something will still take, as a person says it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
