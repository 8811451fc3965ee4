# SPDX-License-Identifier: Apache-2.0
"""`explain`: what is off target and why, in its own words, from the verdict of a dry run. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.text import Text

from numaplacement.api.conditions import State
from numaplacement.api.migration import Result
from numaplacement.engine.reasons import ADVICE, NOT_ASKED, Reason
from numaplacement.engine.verdict import Note, Outcome, Request, Verdict
from numaplacement.engine.wording import size_text
from numaplacement.reporting.page import more
from numaplacement.reporting.wording import condition_reason, dominant, reason_of, sentence

from .exits import Exit
from .verdict import Said, with_notes
from .wish import target_of

_STYLES = {Exit.PLACED: "green", Exit.RESIDUE: "yellow", Exit.REFUSED: "yellow"}


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A verdict as `explain` tells it, what conditions say, and the exit code they agree with."""

    verdict: Verdict
    said: Said
    code: Exit

    @property
    def headline(self) -> Text:
        """What stands above the tables."""
        return Text(self.said.message, style=_STYLES[self.code])


def explained(verdict: Verdict, asked: Request, *, causes: Iterable[Note], again: str) -> Explained:
    """Return what is told of a dry run that was planned or refused; `again` is the command that moves the memory."""
    told = with_notes(_with_command(verdict, again), causes)
    if verdict.outcome is Outcome.REFUSED:
        said = Said(state=State.STALLED, reason=reason_of(verdict), message=_refused(verdict, asked))
        return Explained(verdict=told, said=said, code=Exit.REFUSED)
    off = verdict.asked - verdict.on_target
    tolerated = off <= asked.tolerance_bytes + int(asked.tolerance_share * verdict.asked)
    reason = dominant(verdict.residue) if off and not tolerated else None
    said = Said(
        state=State.READY if tolerated else State.STALLED,
        reason=condition_reason(reason) if reason else str(Result.PLANNED),
        message=_planned(verdict, asked, again, tolerated=tolerated),
    )
    return Explained(verdict=told, said=said, code=Exit.PLACED if tolerated else Exit.RESIDUE)


def command_of(asked: Request, process: Iterable[str]) -> str:
    """Return the command that moves what was asked for; `process` are the words that name the process."""
    to = ["--to", str(asked.target)] if asked.target is not None else []
    cells = [word for cell, numa_node in asked.cells.items() for word in ("--cell", f"{cell}={numa_node}")]
    allow = [word for each in sorted(asked.allow) for word in ("--allow", str(each))]
    tolerance = []
    if asked.tolerance_share:
        tolerance = ["--tolerance", f"{asked.tolerance_share * 100:g}%"]
    elif asked.tolerance_bytes:
        tolerance = ["--tolerance", _quantity(asked.tolerance_bytes)]
    return shlex.join(["numaplace", "move", *process, *to, *cells, *allow, *tolerance])


def _quantity(count: int) -> str:
    for unit, size in (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _with_command(verdict: Verdict, again: str) -> Verdict:
    """Return the verdict with what a person can do about memory that nothing keeps where it is."""
    rows = (
        replace(row, evidence="nothing keeps it there", remedy=f"Run {again} to move it.")
        if row.reason is Reason.PLANNED
        else row
        for row in verdict.residue
    )
    return replace(verdict, residue=tuple(rows))


def _refused(verdict: Verdict, asked: Request) -> str:
    first = verdict.refusals[0]
    would = f"a move would be refused: {'; '.join(each.evidence for each in verdict.refusals)}"
    return f"{sentence(f'{_off(verdict, asked)}; {would}')} {first.remedy} {more(first.reason)}"


def _planned(verdict: Verdict, asked: Request, again: str, *, tolerated: bool) -> str:
    if verdict.asked == verdict.on_target:
        return f"All {size_text(verdict.asked)} are on {target_of(asked).words}."
    sums: dict[Reason, int] = {}
    for row in verdict.residue:
        if row.reason not in NOT_ASKED:
            sums[row.reason] = sums.get(row.reason, 0) + row.bytes
    movable = sums.pop(Reason.PLANNED, 0)
    kept = ", ".join(
        f"{size_text(count)} {reason}" for reason, count in sorted(sums.items(), key=lambda item: -item[1])
    )
    off = f"{_off(verdict, asked)}{', which is within the tolerance' if tolerated else ''}"
    most = max(sums, key=lambda reason: sums[reason], default=None)
    if not movable and most is not None:
        return f"{off}: {kept}. {ADVICE[most].remedy} {more(most)}"
    nothing = f"nothing keeps {f'{size_text(movable)} of them' if kept else 'them'} there"
    rest = f"; the rest: {kept}" if kept else ""
    told = f"{off}; {nothing}{rest}. Run {again} to move them."
    return f"{told} {more(most)}" if most is not None else told


def _off(verdict: Verdict, asked: Request) -> str:
    off = verdict.asked - verdict.on_target
    return f"{size_text(off)} of {size_text(verdict.asked)} are off {target_of(asked).words}"
