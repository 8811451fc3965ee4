# SPDX-License-Identifier: Apache-2.0
"""What the benches found, as a page."""

from __future__ import annotations

from typing import Any

from tests.bench.report import document


def case(name: str, **figures: float | None) -> dict[str, Any]:
    usual = {
        "ratio": 1.25, "call p99 ms": 12.5, "stall p99 us ours": 0.0, "stall p99 us theirs": 0.0, "pairs": 5,
        "split unreported": 0, "verdict s": 0.5,
    }  # fmt: skip
    return {"case": name, **usual, **figures}


RESULT = {
    "kernel": "6.1.0-56-amd64",
    "size MiB": 512,
    "movers": 2,
    "facts": {"two calls of move_pages at the same time against one": 1.28},
    "cases": [
        case("4 KiB, idle, flat out, against migratepages"),
        case("4 KiB, idle, flat out, against loop in C", ratio=1.5),
        case(
            "4 KiB, written to, 20 ms, against migratepages",
            **{"ratio": 1.5, "stall p99 us ours": 4.0, "stall p99 us theirs": 8.0},
        ),
    ],
}


def test_a_line_for_each_case_with_a_ratio_for_each_rival() -> None:
    lines = document([RESULT]).splitlines()
    assert "| case | times migratepages | times loop in C | 99 of 100 calls below | stall |" in lines
    assert "| 4 KiB, idle, flat out | 1.25 | 1.5 | 12.5 ms |  |" in lines
    assert "| 4 KiB, written to, 20 ms | 1.5 |  | 12.5 ms | 0.5 |" in lines
    assert "- two calls of move_pages at the same time against one: 1.28" in lines


def test_what_was_wanted_and_missed_is_said() -> None:
    lines = document([RESULT]).splitlines()
    assert "| 4 KiB, idle, flat out: times as fast as migratepages | >= 2.0 | 1.25 | **no** |" in lines
    assert "| 4 KiB, written to, 20 ms: times as fast as migratepages | >= 1.0 | 1.5 | yes |" in lines


def test_a_rival_that_moves_nothing_is_said_to() -> None:
    still = RESULT | {"cases": [case("hugetlb, idle, flat out, against DAMON", ratio=None)]}
    assert "| hugetlb, idle, flat out | it moves nothing | 12.5 ms |  |" in document([still]).splitlines()


def test_what_guests_noticed_has_a_table_where_they_were_asked() -> None:
    guest = {
        "kernel": "6.1", "backing": "thp", "accel": "kvm", "moves": 40, "passes": 7, "errors": 0,
        "longest_pause_moving_ms": 52.7, "longest_pause_at_rest_ms": 13.6, "call_p99_ms": 522.2,
    }  # fmt: skip
    assert "| 6.1 | thp | kvm | 40 | 7 | 0 | 52.7 | 13.6 | 522.2 |" in document([RESULT], [guest]).splitlines()
    assert "write to all" not in document([RESULT])
