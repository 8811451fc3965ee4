# SPDX-License-Identifier: Apache-2.0
"""What the engine raises. EngineError leaves it; the others end in a verdict."""

from __future__ import annotations

from .reasons import Reason


class EngineError(Exception):
    """The engine cannot even look at the process. The message is one sentence that says what to do about it."""


class ProcessEnded(Exception):
    """The process is no longer there."""


class LocatingRefused(Exception):
    """The kernel refuses to say where pages are, with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stopped(Exception):
    """Nothing more is to be moved: why, and what was seen."""

    def __init__(self, reason: Reason, evidence: str) -> None:
        super().__init__(evidence)
        self.reason = reason
        self.evidence = evidence
