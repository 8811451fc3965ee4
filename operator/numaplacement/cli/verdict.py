# SPDX-License-Identifier: Apache-2.0
"""A verdict as the status of an order, and as tables. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from numaplacement.api.conditions import State, state_conditions
from numaplacement.api.migration import (
    NO_NUMA_NODE,
    UNCOUNTED,
    Note,
    NumaMigrationStatus,
    Residue,
    Result,
)
from numaplacement.engine.reasons import ADVICE, Reason
from numaplacement.engine.verdict import Note as EngineNote
from numaplacement.engine.verdict import Outcome, Request, ResidueRow, Verdict
from numaplacement.engine.wording import count_text, size_text
from numaplacement.reporting.books import books
from numaplacement.reporting.page import PAGE, more, without_link
from numaplacement.reporting.wording import (
    condition_reason,
    message_of,
    reason_of,
    sentence,
    state_of,
)

from .exits import Refused
from .output import cells, table
from .plain import plain

_STYLES = {Result.PLACED: "green", Result.PLANNED: "cyan"}
FOOTER = f"What each reason means, and what to do: {PAGE} of this project."
"""What stands below tables that name reasons."""


def with_notes(verdict: Verdict, notes: Iterable[EngineNote]) -> Verdict:
    """Return the verdict with more notes; what it says of a reason already is not said twice."""
    said = {note.reason for note in verdict.notes} | {row.reason for row in verdict.residue}
    return replace(verdict, notes=(*verdict.notes, *(note for note in notes if note.reason not in said)))


@dataclass(frozen=True, kw_only=True)
class Said:
    """What conditions say of a verdict."""

    state: State
    reason: str
    message: str


def said_of(verdict: Verdict) -> Said:
    """Return what an order with this verdict would say; only what did not stay is never ready, as the exit code says.

    An order is: the operator places once, and does not repair what comes after.
    """
    if verdict.stayed is False and verdict.outcome is Outcome.PLACED:
        return Said(state=State.STALLED, reason=condition_reason(Reason.MOVED_BACK), message=message_of(verdict))
    return Said(state=state_of(verdict), reason=reason_of(verdict), message=message_of(verdict))


def status_of(
    verdict: Verdict, *, started: datetime.datetime, now: datetime.datetime, said: Said | None = None
) -> NumaMigrationStatus:
    """Return the status of an order with this verdict; there is no object, so its generation is 0.

    `said` stands in the conditions instead of what an order would say.
    """
    says = said or said_of(verdict)
    return books(verdict).model_copy(
        update={
            "observed_generation": 0,
            "conditions": state_conditions(says.state, reason=says.reason, message=says.message, generation=0, now=now),
            "start_time": started,
            "completion_time": now,
        }
    )


def status_of_refusal(
    refused: Refused, asked: Request, *, started: datetime.datetime, now: datetime.datetime
) -> NumaMigrationStatus:
    """Return the status where nobody came to look at the memory: a row of 0 bytes says why, as an order's would."""
    message, found = f"nothing was touched: {refused.message}", refused.refusal
    rows: tuple[ResidueRow, ...] = ()
    if found is not None:
        row = ResidueRow(
            reason=found.reason,
            numa_node=NO_NUMA_NODE if asked.target is None else asked.target,
            bytes=0,
            permanent=ADVICE[found.reason].permanent,
            evidence=found.evidence,
            remedy=found.remedy,
        )
        rows = (row,)
    said = Said(
        state=State.STALLED,
        reason=condition_reason(found.reason) if found else str(Result.REFUSED),
        message=" ".join(filter(None, (sentence(message), more(found.reason) if found else ""))),
    )
    verdict = Verdict(outcome=Outcome.REFUSED, message=message, residue=rows)
    return status_of(verdict, started=started, now=now, said=said)


def verdict_tables(
    status: NumaMigrationStatus, message: str, *, headline: Text | None = None
) -> Iterator[RenderableType]:
    """Yield what a person is shown of a verdict; `headline` stands above instead of the result and the message."""
    yield headline or _headline(status, message)
    if status.before or status.after:
        yield Text("")
        yield memory_table(status)
    if status.residue:
        yield Text("")
        yield residue_table(status.residue)
    if status.notes:
        yield Text("")
        yield notes_table(status.notes)
    facts = list(_facts(status))
    if facts:
        yield Text("")
        yield from map(Text, facts)
    if status.residue or status.notes:
        yield Text("")
        yield Text(FOOTER)


def _headline(status: NumaMigrationStatus, message: str) -> Text:
    result = status.result or Result.FAILED
    if status.stayed is False and result is Result.PLACED:
        return Text.assemble((f"{result}, but it did not stay: ", "yellow"), message)
    return Text.assemble((f"{result}: ", _STYLES.get(result, "yellow")), message)


def memory_table(status: NumaMigrationStatus) -> Table:
    """Return the bytes on each NUMA node, before and after."""
    made = table("NUMA NODE", "BEFORE", "AFTER", right=("BEFORE", "AFTER"))
    for numa_node in sorted({row.numa_node for row in (*status.before, *status.after)}):
        sums = (sum(row.bytes for row in rows if row.numa_node == numa_node) for rows in (status.before, status.after))
        made.add_row(*cells(numa_node_text(numa_node), *map(size_text, sums)))
    return made


def residue_table(rows: Iterable[Residue]) -> Table:
    """Return what is off target, why, and what can be done."""
    made = table("OFF TARGET", "NUMA NODE", "BYTES", "SEEN, AND WHAT TO DO", right=("BYTES",))
    for row in rows:
        reason = f"{row.reason}, not asked" if row.reason in UNCOUNTED else row.reason
        made.add_row(*cells(reason, numa_node_text(row.numa_node), size_text(row.bytes), _seen_and_to_do(row)))
    return made


def notes_table(notes: Iterable[Note]) -> Table:
    """Return what else is to be known."""
    made = table("NOTE", "NUMA NODE", "BYTES", "SEEN, AND WHAT TO DO", right=("BYTES",))
    for note in notes:
        numa_node = str(note.numa_node) if note.numa_node != NO_NUMA_NODE else ""
        amount = size_text(note.bytes) if note.bytes else ""
        made.add_row(*cells(note.reason, numa_node, amount, _seen_and_to_do(note)))
    return made


def _seen_and_to_do(row: Residue | Note) -> str:
    return f"{plain(row.evidence)}\n{plain(without_link(row.remedy, reason=row.reason))}"


def _facts(status: NumaMigrationStatus) -> Iterator[str]:
    if status.calls is not None and status.calls.count:
        yield (
            f"{size_text(status.moved)} moved at {size_text(status.rate)}/s in {status.seconds:.1f} s:"
            f" {count_text(status.calls.count, 'call')}, p50 {status.calls.p50}, p99 {status.calls.p99}"
        )
    threads = status.threads
    if threads is not None and (threads.followed or threads.left):
        cpus = f" to CPUs {threads.cpus}" if threads.followed and threads.cpus else ""
        why = f"; {threads.message}" if threads.message else ""
        yield f"{count_text(threads.followed, 'thread')} followed{cpus}, {threads.left} left{why}"
    if status.stayed is not None:
        placed = status.result is Result.PLACED
        what, place = ("the memory", "on target") if placed else ("what came on target", "there")
        where = f"still {place}" if status.stayed else f"no longer {place}"
        yield f"looked at again after the verdict, {what} was {where}"


def numa_node_text(numa_node: int) -> str:
    """Return a NUMA node's number, or what is said of memory that is on none."""
    return str(numa_node) if numa_node != NO_NUMA_NODE else "none"
