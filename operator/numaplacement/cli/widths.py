# SPDX-License-Identifier: Apache-2.0
"""How wide the columns of a table are: what may not be broken is never narrower than it is long."""

from __future__ import annotations

from rich.cells import cell_len
from rich.table import Column, Table
from rich.text import Text

_LONGEST_WORD = 40
"""Characters up to which a word of prose is kept whole; a path may be longer than any terminal is wide."""


def fit(table: Table, width: int) -> int:
    """Set the widths of all columns for a page of so many characters, and return how many the table then takes.

    That may be more than there is: numbers, names and words do not become others where a page is narrow.
    """
    widest = [max(map(cell_len, _lines(column))) for column in table.columns]
    least = [
        most if column.no_wrap else min(most, _LONGEST_WORD, _longest_word(column))
        for column, most in zip(table.columns, widest, strict=True)
    ]
    between = sum(_gap(table, number) for number in range(len(table.columns)))
    wide = _shared(least, widest, room=width - between)
    for column, each in zip(table.columns, wide, strict=True):
        column.width = each
    return sum(wide) + between


def _shared(least: list[int], most: list[int], *, room: int) -> list[int]:
    """Return widths between least and most, `room` in all unless that is too little; who wants least is served first.

    So that a column of words is not made narrow for one of sentences.
    """
    found, rest = list(least), max(0, room - sum(least))
    hungry = sorted((number for number in range(len(least))), key=lambda number: most[number] - least[number])
    for served, number in enumerate(hungry):
        more = min(most[number] - least[number], rest // (len(hungry) - served))
        found[number] += more
        rest -= more
    return found


def _gap(table: Table, number: int) -> int:
    _, right, _, left = table.padding
    first, last = number == 0, number == len(table.columns) - 1
    return (0 if last and not table.pad_edge else right) + (0 if first and not table.pad_edge else left)


def _lines(column: Column) -> list[str]:
    texts = (column.header, *column.cells)
    return [line for text in texts for line in (text.plain if isinstance(text, Text) else str(text)).split("\n")]


def _longest_word(column: Column) -> int:
    return max((cell_len(word) for line in _lines(column) for word in line.split()), default=0)
