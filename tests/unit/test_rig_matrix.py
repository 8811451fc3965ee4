# SPDX-License-Identifier: Apache-2.0
"""The table of causes and kernels: what a cell says, what order rows have, and that no reason is missing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rig.matrix import BEGIN, END, PAGE, MatrixError, cell, releases_of, rows_of, table, unnamed, with_table


def record(**changes: Any) -> dict[str, Any]:
    seen = {"outcome": "Residue", "bytes": 4096, "unexplained": 0, "overcome": None, "says": {"busy": 4096}}
    return {"cause": "busy", "test": "t", "recipe": "r", "kernel": "6.1.0-1", "result": "passed", **seen, **changes}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "4 KiB"),
        ({"bytes": 3 << 19}, "1.5 MiB"),
        ({"outcome": "Refused", "bytes": 16 << 20}, "refused, 16 MiB"),
        ({"outcome": "Placed"}, "placed, 4 KiB"),
        ({"outcome": "Refused", "bytes": 0}, "refused"),
        ({"outcome": "Placed", "bytes": 0}, "placed, noted"),
        ({"bytes": 0, "overcome": 8 << 20}, "all 8 MiB moved"),
        ({"absent": "no such call", "result": "skipped"}, "not on this kernel: no such call"),
        ({"result": "failed"}, "**not as it should be**: busy 4 KiB"),
        ({"result": "failed", "overcome": 4096}, "**not as it should be**: busy 4 KiB"),
    ],
)
def test_what_a_cell_says(changes: dict[str, Any], text: str) -> None:
    assert cell(record(**changes)) == text


def test_a_test_that_came_to_no_verdict_is_no_success() -> None:
    bare = {"cause": "busy", "test": "t", "recipe": "r", "kernel": "6.1.0-1", "result": "failed"}
    assert cell(bare) == "**not as it should be**"


def test_rows_are_in_the_engines_order_and_columns_in_that_of_the_kernels() -> None:
    records = [
        record(cause=None, test="c", recipe="control", overcome=4096, kernel="10.2.13+deb14-amd64"),
        record(kernel="6.12.117+deb13-amd64"),
        record(kernel="6.1.0-56-amd64"),
        record(cause="syscall-blocked", test="s", kernel="6.1.0-56-amd64"),
    ]
    releases = releases_of(records)
    assert releases == ["6.1.0-56-amd64", "6.12.117+deb13-amd64", "10.2.13+deb14-amd64"]
    lines = table(rows_of(records), releases).splitlines()
    assert lines[2] == "| `syscall-blocked` | r | 4 KiB | not tried | not tried |"
    assert "| `busy` | r | 4 KiB | 4 KiB | not tried |" in lines
    assert "| `encrypted-guest` | TDX | decision only | decision only | decision only |" in lines
    assert lines.index("| (none) | control | not tried | not tried | all 4 KiB moved |") > lines.index(
        "| `busy` | r | 4 KiB | 4 KiB | not tried |"
    )


def test_the_table_is_put_between_its_markers() -> None:
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb\n", "new") == f"a\n{BEGIN}\nnew\n{END}\nb\n"
    with pytest.raises(MatrixError, match="has no lines"):
        with_table("a\n", "new")


def test_the_page_has_a_row_for_every_reason() -> None:
    assert unnamed(PAGE.read_text()) == []


def test_every_cause_on_the_page_is_as_it_should_be() -> None:
    made = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert [line for line in made.splitlines() if "not as it should be" in line] == []
