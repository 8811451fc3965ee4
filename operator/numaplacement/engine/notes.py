# SPDX-License-Identifier: Apache-2.0
"""Notes that give the advice their reason has."""

from __future__ import annotations

from .reasons import ADVICE, Reason
from .verdict import NO_NUMA_NODE, Note


def note(reason: Reason, evidence: str, *, numa_node: int = NO_NUMA_NODE, count: int = 0) -> Note:
    """Return a note about a NUMA node, or the whole host, and `count` bytes of memory, or none."""
    return Note(reason=reason, numa_node=numa_node, bytes=count, evidence=evidence, remedy=ADVICE[reason].remedy)
