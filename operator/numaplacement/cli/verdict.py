# SPDX-License-Identifier: Apache-2.0
"""A verdict as the status of an order, and as tables. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from numaplacement.api.conditions import state_conditions
from numaplacement.api.migration import (
    NO_NUMA_NODE,
    UNCOUNTED,
    Note,
    NumaMigrationStatus,
    Residue,
    Result,
)
from numaplacement.engine.verdict import Note as EngineNote
from numaplacement.engine.verdict import Verdict
from numaplacement.engine.wording import count_text, size_text
from numaplacement.reporting.books import books
from numaplacement.reporting.wording import PAGE, message_of, reason_of, state_of

from .output import cells, table

_STYLES = {Result.PLACED: "green", Result.PLANNED: "cyan"}


def with_notes(verdict: Verdict, notes: Iterable[EngineNote]) -> Verdict:
    """Return the verdict with more notes; what it says of a reason already is not said twice."""
    said = {note.reason for note in verdict.notes}
    return replace(verdict, notes=(*verdict.notes, *(note for note in notes if note.reason not in said)))


def status_of(verdict: Verdict, *, started: datetime.datetime, now: datetime.datetime) -> NumaMigrationStatus:
    """Return the status an order with this verdict would have; there is no object, so its generation is 0."""
    return books(verdict).model_copy(
        update={
            "observed_generation": 0,
            "conditions": state_conditions(
                state_of(verdict), reason=reason_of(verdict), message=message_of(verdict), generation=0, now=now
            ),
            "start_time": started,
            "completion_time": now,
        }
    )


def verdict_tables(status: NumaMigrationStatus, message: str) -> Iterator[RenderableType]:
    """Yield what a person is shown of a verdict."""
    result = status.result or Result.FAILED
    yield Text.assemble((f"{result}: ", _STYLES.get(result, "yellow")), message)
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
        yield Text(f"What each reason means, and what to do: {PAGE} of this project.")


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
        made.add_row(
            *cells(reason, numa_node_text(row.numa_node), size_text(row.bytes), f"{row.evidence}\n{row.remedy}")
        )
    return made


def notes_table(notes: Iterable[Note]) -> Table:
    """Return what else is to be known."""
    made = table("NOTE", "NUMA NODE", "BYTES", "SEEN, AND WHAT TO DO", right=("BYTES",))
    for note in notes:
        numa_node = str(note.numa_node) if note.numa_node != NO_NUMA_NODE else ""
        amount = size_text(note.bytes) if note.bytes else ""
        made.add_row(*cells(note.reason, numa_node, amount, f"{note.evidence}\n{note.remedy}"))
    return made


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
        yield f"looked at again after the verdict, the memory was {'still' if status.stayed else 'no longer'} on target"


def numa_node_text(numa_node: int) -> str:
    """Return a NUMA node's number, or what is said of memory that is on none."""
    return str(numa_node) if numa_node != NO_NUMA_NODE else "none"
