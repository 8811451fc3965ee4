# SPDX-License-Identifier: Apache-2.0
"""The books of a verdict as the status of an order has them."""

from __future__ import annotations

from collections.abc import Iterable

from numaplacement.api.conditions import shortened
from numaplacement.api.migration import (
    Calls,
    ClassBytes,
    Note,
    NumaMigrationStatus,
    PageClass,
    Residue,
    Result,
    ThreadReport,
)
from numaplacement.api.quantities import format_seconds
from numaplacement.engine import verdict as engine
from numaplacement.engine.listformat import format_list

from .page import with_link

RESULTS = {
    engine.Outcome.PLACED: Result.PLACED,
    engine.Outcome.RESIDUE: Result.RESIDUE,
    engine.Outcome.REFUSED: Result.REFUSED,
    engine.Outcome.PLANNED: Result.PLANNED,
    engine.Outcome.CANCELLED: Result.CANCELLED,
    engine.Outcome.DEADLINE: Result.DEADLINE,
    engine.Outcome.PROCESS_GONE: Result.VM_GONE,
}


def books(verdict: engine.Verdict) -> NumaMigrationStatus:
    """Return a status with all the engine found; conditions and times are the caller's to add."""
    return NumaMigrationStatus(
        result=RESULTS[verdict.outcome],
        before=class_bytes(verdict.before),
        after=class_bytes(verdict.after),
        asked=verdict.asked,
        on_target=verdict.on_target,
        moved=verdict.moved,
        freed=verdict.freed,
        grown=verdict.grown,
        split=verdict.split,
        residue=tuple(_residue(row) for row in sorted(verdict.residue, key=lambda row: -row.bytes)),
        notes=tuple(_note(note) for note in verdict.notes),
        stayed=verdict.stayed,
        threads=ThreadReport(
            followed=verdict.threads.followed,
            left=verdict.threads.left,
            cpus=format_list(verdict.threads.cpus),
            message=shortened(verdict.threads.message),
        ),
        calls=Calls(
            count=verdict.calls.count, p50=format_seconds(verdict.calls.p50), p99=format_seconds(verdict.calls.p99)
        ),
        rate=int(verdict.moved / verdict.move_seconds) if verdict.move_seconds > 0 else 0,
        seconds=round(verdict.seconds, 3),
        passes=verdict.passes,
    )


def class_bytes(rows: Iterable[engine.ClassBytes]) -> tuple[ClassBytes, ...]:
    """Return the engine's rows of memory by NUMA node and class as the API has them."""
    return tuple(
        ClassBytes(numa_node=row.numa_node, page_class=PageClass(row.page_class), bytes=row.bytes) for row in rows
    )


def _residue(row: engine.ResidueRow) -> Residue:
    return Residue(
        reason=str(row.reason),
        numa_node=row.numa_node,
        bytes=row.bytes,
        permanent=row.permanent,
        evidence=shortened(row.evidence),
        remedy=shortened(with_link(row.remedy, reason=row.reason)),
    )


def _note(note: engine.Note) -> Note:
    return Note(
        reason=str(note.reason),
        numa_node=note.numa_node,
        bytes=note.bytes,
        evidence=shortened(note.evidence),
        remedy=shortened(with_link(note.remedy, reason=note.reason)),
    )
