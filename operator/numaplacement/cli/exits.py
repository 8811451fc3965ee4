# SPDX-License-Identifier: Apache-2.0
"""How a command ends: its exit code, and faults as one sentence each."""

from __future__ import annotations

import enum
from typing import IO, Any

import click

from numaplacement.engine.verdict import Outcome, Refusal, Verdict

from .plain import plain


class Exit(enum.IntEnum):
    """Exit codes."""

    PLACED = 0
    FAULT = 1
    USAGE = 2
    RESIDUE = 3
    REFUSED = 4
    CANCELLED = 5


OF_OUTCOME = {
    Outcome.PLACED: Exit.PLACED,
    Outcome.PLANNED: Exit.PLACED,
    Outcome.RESIDUE: Exit.RESIDUE,
    Outcome.REFUSED: Exit.REFUSED,
    Outcome.CANCELLED: Exit.CANCELLED,
    Outcome.DEADLINE: Exit.CANCELLED,
    Outcome.PROCESS_GONE: Exit.FAULT,
}


def exit_of(verdict: Verdict) -> Exit:
    """Return the exit code of a verdict; what was placed and did not stay is off target like any residue."""
    return Exit.RESIDUE if verdict.stayed is False else OF_OUTCOME[verdict.outcome]


class Fault(click.ClickException):
    """Something is missing; the message is one sentence that says what, and how to get it."""

    exit_code = Exit.FAULT

    def show(self, file: IO[Any] | None = None) -> None:
        """Tell the person."""
        click.echo(f"numaplace: {plain(self.format_message())}", file=file, err=file is None)


class Refused(Fault):
    """The same, before anything was touched of what was to be moved; `refusal` says it in parts where that is known."""

    exit_code = Exit.REFUSED

    def __init__(self, message: str, refusal: Refusal | None = None) -> None:
        super().__init__(message)
        self.refusal = refusal
