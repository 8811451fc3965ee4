# SPDX-License-Identifier: Apache-2.0
"""explain: its own headline and remedy, and conditions that agree with its exit code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from numaplacement.cli.explaining import command_of
from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Allow, Request
from tests.unit.cli_world import PAGE, PID, Desk, Region, World, while_looking

VM = str(PID)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(root=tmp_path)


def headline(desk: Desk, *arguments: str) -> str:
    return desk.run("explain", *arguments).stdout.splitlines()[0]


def truth(document: Any) -> tuple[str, str, str]:
    of = {each["type"]: each["status"] for each in document["conditions"]}
    return of["Ready"], of["Reconciling"], of["Stalled"]


def condition(document: Any) -> tuple[str, str]:
    ready = next(each for each in document["conditions"] if each["type"] == "Ready")
    return ready["reason"], ready["message"]


NOTHING = "64 KiB of 64 KiB are off NUMA node 0; nothing keeps them there. Run numaplace move"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ((VM, "--to", "0"), "4242 --to 0"),
        (("--vm", "prod_db", "--to", "0"), "--vm prod_db --to 0"),
        (("--pid", VM, "--to", "0", "--tolerance", "4Ki"), "--pid 4242 --to 0 --tolerance 4Ki"),
        (("--to", "0", VM, "--tolerance", "2%"), "4242 --to 0 --tolerance 2%"),
    ],
)
def test_what_nothing_keeps_away_and_the_command_for_it(desk: Desk, arguments: tuple[str, ...], command: str) -> None:
    assert headline(desk, *arguments) == f"{NOTHING} {command} to move them."


def test_a_command_for_cells() -> None:
    asked = Request(
        target=None, cells={0: 1, 1: 0}, allow=frozenset({Allow.RECLAIM, Allow.REALTIME}), tolerance_share=0.005
    )
    assert command_of(asked, ("--vm", "my db")) == (
        "numaplace move --vm 'my db' --cell 0=1 --cell 1=0 --allow Realtime --allow Reclaim --tolerance 0.5%"
    )


def test_off_target_is_3_and_not_ready(desk: Desk) -> None:
    document = desk.json("explain", VM, "--to", "0")
    assert truth(document) == ("False", "False", "True")
    assert condition(document) == ("Planned", f"{NOTHING} 4242 --to 0 to move them.")
    assert document["result"] == "Planned"
    assert {row["evidence"] for row in document["residue"]} == {"nothing keeps it there"}
    assert document["residue"][0]["remedy"].startswith("Run numaplace move 4242 --to 0 to move it. More: ")


def test_all_on_target_is_0_and_ready(tmp_path: Path) -> None:
    desk = Desk(root=tmp_path, world=World(regions=[Region(0x10_0000, [1] * 16)]))
    document = desk.json("explain", VM, "--to", "1")
    assert truth(document) == ("True", "False", "False")
    assert condition(document) == ("Planned", "All 64 KiB are on NUMA node 1.")


def test_within_the_tolerance_is_0_and_ready(desk: Desk) -> None:
    document = desk.json("explain", VM, "--to", "0", "--tolerance", "100%")
    assert truth(document) == ("True", "False", "False")
    assert condition(document)[1].startswith(
        "64 KiB of 64 KiB are off NUMA node 0, which is within the tolerance; nothing keeps them there."
    )


def test_refused_is_4_and_no_reason_is_told_twice(desk: Desk) -> None:
    desk.world.mems = "1-3"
    document = desk.json("explain", VM, "--to", "0")
    assert truth(document) == ("False", "False", "True")
    reason, message = condition(document)
    assert reason == "VmCpuset"
    assert message.startswith(
        "64 KiB of 64 KiB are off NUMA node 0; a move would be refused: 2 threads of 2 may use memory of NUMA nodes"
        " 1-3 only. Allow RebindCpuset"
    )
    assert message.endswith("More: docs/reasons.md#vm-cpuset.")
    assert {row["reason"] for row in document["residue"]} == {"vm-cpuset"}
    assert {note["reason"] for note in document["notes"]} == {"new-on-source"}
    assert headline(desk, VM, "--to", "0") == message


def test_a_target_that_is_none(desk: Desk) -> None:
    assert headline(desk, VM, "--to", "9").startswith(
        "64 KiB of 64 KiB are off NUMA node 9; a move would be refused: NUMA node 9 does not exist on this host"
    )


def test_what_keeps_memory_there_is_named(tmp_path: Path) -> None:
    region = Region(0x10_0000, [1] * 8 + [-1] * 8, swapped={8, 9, 10})
    desk = Desk(root=tmp_path, world=World(regions=[region]))
    assert headline(desk, VM, "--to", "0").startswith(
        "44 KiB of 44 KiB are off NUMA node 0; nothing keeps 32 KiB of them there; the rest: 12 KiB swapped."
        " Run numaplace move 4242 --to 0 to move them."
    )


def test_memory_that_is_all_kept(tmp_path: Path) -> None:
    region = Region(0x10_0000, [0] * 8 + [-1] * 8, swapped={8, 9, 10})
    desk = Desk(root=tmp_path, world=World(regions=[region]))
    document = desk.json("explain", VM, "--to", "0")
    reason, message = condition(document)
    assert reason == "Swapped"
    assert message.startswith("12 KiB of 44 KiB are off NUMA node 0: 12 KiB swapped. Free memory")
    assert message.endswith("More: docs/reasons.md#swapped.")
    assert sum(row["bytes"] for row in document["residue"]) == 3 * PAGE


def test_a_process_that_ends_meanwhile_is_gone(desk: Desk) -> None:
    while_looking(desk, lambda: setattr(desk.world, "ended", True))
    result = desk.run("explain", VM, "--to", "0")
    assert result.exit_code == 1
    assert "Traceback" not in result.output


def test_reasons_that_are_no_residue_are_still_notes(desk: Desk) -> None:
    desk.world.regions[0] = dataclasses.replace(desk.world.regions[0], policy="bind:1")
    desk.files["proc/sys/kernel/numa_balancing"] = "1\n"
    document = desk.json("explain", VM, "--to", "0")
    both = {row["reason"] for row in document["residue"]} & {note["reason"] for note in document["notes"]}
    assert both == set()
    assert str(Reason.AUTO_NUMA) in {note["reason"] for note in document["notes"]}
