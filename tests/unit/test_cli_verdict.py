# SPDX-License-Identifier: Apache-2.0
"""What a person and a program are told of memory that stayed, or did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from numaplacement.engine.reasons import ADVICE, Reason
from numaplacement.engine.verdict import Note, Outcome, Verdict
from numaplacement.reporting.wording import message_of, state_of
from tests.unit.cli_world import PID, Desk, Region, World

VM = str(PID)


def coming_back(root: Path, pages: int) -> Desk:
    """Return a host on which so many pages come back once they have been moved."""
    desk = Desk(root=root, world=World(regions=[Region(0x10_0000, [1] * 4096)]))

    def sleep(seconds: float) -> None:
        desk.world.now += seconds
        if desk.world.calls:
            desk.world.regions[0].nodes[0:pages] = [1] * pages

    desk.kernel.sleep = sleep  # type: ignore[method-assign]
    return desk


def conditions(document: Any) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in document["conditions"]}


def test_what_did_not_stay_is_no_success(tmp_path: Path) -> None:
    desk = coming_back(tmp_path, 2048)
    desk.env |= {"FORCE_COLOR": "1"}
    result = desk.run("move", VM, "--to", "0")
    assert result.exit_code == 3
    assert "\x1b[33mPlaced, but it did not stay: \x1b[0m" in result.stdout


def test_conditions_agree_with_the_exit_code(tmp_path: Path) -> None:
    document = coming_back(tmp_path, 2048).json("move", VM, "--to", "0")
    assert (document["result"], document["stayed"]) == ("Placed", False)
    assert conditions(document) == {
        "Ready": ("False", "MovedBack"), "Reconciling": ("False", "MovedBack"), "Stalled": ("True", "MovedBack"),
    }  # fmt: skip


def test_what_did_not_stay_is_told_with_a_remedy(tmp_path: Path) -> None:
    document = coming_back(tmp_path, 2048).json("move", VM, "--to", "0")
    ready = next(each for each in document["conditions"] if each["type"] == "Ready")["message"]
    assert "it did not stay: 8.0 MiB more on NUMA node 1; AutoNUMA is off. AutoNUMA is off, so" not in ready
    assert "it did not stay: 8.0 MiB more on NUMA node 1; AutoNUMA is off. " in ready
    assert ready.endswith(" More: docs/reasons.md#moved-back.")
    (note,) = document["notes"]
    for text in (ready, note["remedy"]):
        assert "switch AutoNUMA off" not in text
        assert "Let all threads of the VM follow" in text
    assert note["remedy"].endswith(" More: docs/reasons.md#moved-back.")


def note(evidence: str, reason: Reason = Reason.MOVED_BACK) -> Note:
    return Note(reason=reason, numa_node=1, bytes=1, evidence=evidence, remedy=ADVICE[reason].remedy)


def test_an_order_says_so_too_and_stays_ready() -> None:
    """The operator places once and does not repair drift: the order is done, its message says what became of it."""
    back = note("8 MiB more on NUMA node 1; watched for 120 s with AutoNUMA on")
    verdict = Verdict(outcome=Outcome.PLACED, message="all; it did not stay: 8 MiB", stayed=False, notes=(back,))
    assert str(state_of(verdict)) == "Ready"
    assert message_of(verdict) == f"All; it did not stay: 8 MiB. {back.remedy} More: docs/reasons.md#moved-back."


@pytest.mark.parametrize(
    ("pages", "words"),
    [(0, "it stayed: nothing came back"), (200, "it stayed: 800 KiB more on NUMA node 1, no more than")],
)
def test_a_little_that_came_back_is_not_called_nothing(tmp_path: Path, pages: int, words: str) -> None:
    result = coming_back(tmp_path, pages).run("move", VM, "--to", "0")
    assert result.exit_code == 0
    assert words in result.stdout.splitlines()[0]
    assert result.stdout.splitlines()[-1] == "looked at again after the verdict, the memory was still on target"
