# SPDX-License-Identifier: Apache-2.0
"""The kernel's format for sets of numbers, such as 0-3,8 (cpuset(7), "List format")."""

from __future__ import annotations

from collections.abc import Iterable


def parse_list(text: str) -> frozenset[int]:
    """Return the numbers of a list; an empty text is the empty set. Raises ValueError for anything else."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def format_list(numbers: Iterable[int]) -> str:
    """Return numbers as the kernel would write them."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
