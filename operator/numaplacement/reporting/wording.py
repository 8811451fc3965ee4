# SPDX-License-Identifier: Apache-2.0
"""A verdict in one word and in sentences."""

from __future__ import annotations

from collections.abc import Iterable

from numaplacement.api.conditions import State
from numaplacement.engine import verdict as engine
from numaplacement.engine.reasons import ADVICE, NOT_ASKED, Reason

from .books import RESULTS
from .page import more

_DONE = frozenset({engine.Outcome.PLACED, engine.Outcome.PLANNED})
_NAMED_BY_RESIDUE = frozenset({engine.Outcome.RESIDUE, engine.Outcome.REFUSED})
_NAMED_BY_ITSELF = {engine.Outcome.CANCELLED: Reason.CANCELLED, engine.Outcome.DEADLINE: Reason.DEADLINE}
_TO_BE_REMEDIED = _NAMED_BY_RESIDUE | {engine.Outcome.DEADLINE}


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
    """Return the condition message: what the engine says, and where memory stayed what to do and where to read more.

    Memory within the tolerance, and what a dry run says would stay, asks for nothing to be done about it.
    """
    said, reason = sentence(verdict.message), _explained_by(verdict)
    if reason is None:
        return said
    remedies = [refusal.remedy for refusal in verdict.refusals]
    remedies += [row.remedy for row in verdict.residue if row.reason is reason]
    remedies += [note.remedy for note in verdict.notes if note.reason is reason]
    to_be_remedied = verdict.outcome in _TO_BE_REMEDIED or reason is Reason.MOVED_BACK
    remedy = [*remedies, ADVICE[reason].remedy][0] if to_be_remedied else ""
    return " ".join(filter(None, (said, remedy, more(reason))))


def _explained_by(verdict: engine.Verdict) -> Reason | None:
    """Return the reason whose section tells more of a verdict; None when all that was asked is there, or would be."""
    if verdict.refusals:
        return verdict.refusals[0].reason
    if verdict.outcome is engine.Outcome.PLACED and verdict.stayed is False:
        return Reason.MOVED_BACK
    if verdict.outcome in _NAMED_BY_ITSELF:
        return _NAMED_BY_ITSELF[verdict.outcome]
    return dominant(row for row in verdict.residue if row.reason is not Reason.PLANNED)


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
