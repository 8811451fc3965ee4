# SPDX-License-Identifier: Apache-2.0
"""A verdict in one word and in sentences."""

from __future__ import annotations

from collections.abc import Iterable

from numaplacement.api.conditions import State
from numaplacement.engine import verdict as engine
from numaplacement.engine.reasons import NOT_ASKED, Reason

from .books import RESULTS

_DONE = frozenset({engine.Outcome.PLACED, engine.Outcome.PLANNED})
_NAMED_BY_RESIDUE = frozenset({engine.Outcome.RESIDUE, engine.Outcome.REFUSED})
PAGE = "docs/reasons.md"
"""The page of this project with a section for each reason, by its name."""


def state_of(verdict: engine.Verdict) -> State:
    """Return the state of an order with this verdict."""
    return State.READY if verdict.outcome in _DONE else State.STALLED


def reason_of(verdict: engine.Verdict) -> str:
    """Return the condition reason: the result, or why most of what stayed behind stayed, PinnedByDevice for example."""
    if verdict.outcome in _NAMED_BY_RESIDUE:
        first = verdict.refusals[0].reason if verdict.refusals else dominant(verdict.residue)
        if first is not None:
            return condition_reason(first)
    return str(RESULTS[verdict.outcome])


def message_of(verdict: engine.Verdict) -> str:
    """Return the condition message: what the engine says, and where memory stayed what to do and where to read more."""
    reason, remedy = None, ""
    if verdict.refusals:
        reason, remedy = verdict.refusals[0].reason, verdict.refusals[0].remedy
    elif verdict.outcome in _NAMED_BY_RESIDUE:
        reason = dominant(verdict.residue)
        remedy = next((row.remedy for row in verdict.residue if row.reason is reason), "")
    more = f"More: {PAGE}#{reason}." if reason is not None else ""
    return " ".join(filter(None, (sentence(verdict.message), remedy, more)))


def dominant(rows: Iterable[engine.ResidueRow]) -> Reason | None:
    """Return the reason of most bytes, of what was asked to move; None when all of that is on target."""
    sums: dict[Reason, int] = {}
    for row in rows:
        if row.reason not in NOT_ASKED:
            sums[row.reason] = sums.get(row.reason, 0) + row.bytes
    return max(sums, key=lambda reason: sums[reason], default=None)


def sentence(text: str) -> str:
    """Return the engine's clauses as a sentence: with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def condition_reason(reason: Reason) -> str:
    """Return a reason as conditions spell it: ``pinned-by-device`` as ``PinnedByDevice``."""
    if reason is Reason.NODE_HAS_NO_MEMORY:
        return "NumaNodeHasNoMemory"  # on an API whose nodes are hosts
    return "".join(word.capitalize() for word in reason.split("-"))
