# SPDX-License-Identifier: Apache-2.0
"""What the engine raises. EngineError leaves it; the others end in a verdict."""

from __future__ import annotations

import errno

from .reasons import Reason

_REMEDIES = {
    errno.EMFILE: "let this program open more files (ulimit -n)",
    errno.ENFILE: "let the host open more files (fs.file-max)",
    errno.ENOMEM: "see that the host has free memory",
}


class EngineError(Exception):
    """The engine cannot even look at the process. The message is one sentence that says what to do about it."""


class ProcessEnded(Exception):
    """The process is no longer there."""


class LocatingRefused(Exception):
    """The kernel refuses to say where pages are, with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class FramesUnreadable(Exception):
    """What page frames are made of cannot be read; a survey can do without."""


class Stopped(Exception):
    """Nothing more is to be moved: why, and what was seen."""

    def __init__(self, reason: Reason, evidence: str) -> None:
        super().__init__(evidence)
        self.reason = reason
        self.evidence = evidence


class PlaceFull(Stopped):
    """Nothing more is to be moved to one place: there is no room there. Other places may have some."""


def remedy_of(error: OSError, otherwise: str) -> str:
    """Return what to do about an error of the system in general, or `otherwise` where it is not one of these."""
    return _REMEDIES.get(error.errno or 0, otherwise)
