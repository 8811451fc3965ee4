# SPDX-License-Identifier: Apache-2.0
"""How amounts read in messages."""

from __future__ import annotations

_STEP = 1024


def size_text(count: int) -> str:
    """Return bytes as a person reads them: exact below one MiB, else with one decimal."""
    if count < _STEP * _STEP:
        return f"{count // _STEP} KiB" if count % _STEP == 0 else f"{count} B"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < _STEP:
            return f"{amount:.1f} {unit}"
        amount /= _STEP
    return f"{amount:.1f} TiB"


def count_text(count: int, noun: str) -> str:
    """Return a number with its noun in the right number: 1 thread, 2 threads."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
