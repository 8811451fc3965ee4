# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, whatever is under way: exit code 5 or a verdict that stands, and a sentence that is true."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from numaplacement.cli import __main__ as entry
from numaplacement.cli.exits import Exit
from tests.unit.cli_world import PID, Desk, command, interrupt, while_looking

VM = str(PID)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(root=tmp_path)


@pytest.mark.parametrize("arguments", [["plan"], ["explain"], ["move", "--dry-run"]], ids=" ".join)
def test_a_look_is_cancelled_and_nothing_is_said_of_moved_memory(desk: Desk, arguments: list[str]) -> None:
    while_looking(desk, interrupt)
    result = desk.run(*arguments, VM, "--to", "0")
    assert result.exit_code == 5
    assert result.stdout.splitlines()[0].startswith("Cancelled: It was ended by a signal; nothing was touched.")
    assert "Ending; nothing was touched." in result.stderr
    assert "moved" not in result.output


def test_a_look_that_is_cancelled_is_a_document_too(desk: Desk) -> None:
    while_looking(desk, interrupt)
    document = desk.json("plan", VM, "--to", "0")
    assert (document["result"], document["moved"], document["residue"]) == ("Cancelled", 0, [])
    assert {each["type"]: each["status"] for each in document["conditions"]}["Ready"] == "False"


def test_a_move_is_cancelled_before_the_first_page(desk: Desk) -> None:
    while_looking(desk, interrupt)
    result = desk.run("move", VM, "--to", "0")
    assert result.exit_code == 5
    assert "what has moved stays moved" in result.stderr


def test_the_verdict_stands_when_nobody_wants_to_watch(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        desk.world.now += seconds
        if desk.world.calls:
            interrupt()

    monkeypatch.setattr(desk.kernel, "sleep", sleep)
    result = desk.run("move", VM, "--to", "0")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("Placed: 64 KiB of 64 KiB on NUMA node 0.")
    assert "No longer watching; the verdict stands." in result.stderr
    assert "Cancelling" not in result.stderr


def stop(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


def test_show_is_ended(desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    while_looking(desk, stop)
    command(monkeypatch, desk, "show", VM)
    assert entry.main() == Exit.CANCELLED
    captured = capsys.readouterr()
    assert (captured.out, captured.err.strip()) == ("", "")


def test_what_follows_a_look_is_ended(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("numaplacement.cli.commands.causes", stop)
    command(monkeypatch, desk, "explain", VM, "--to", "0")
    assert entry.main() == Exit.CANCELLED
    assert "Aborted" not in capsys.readouterr().err


def test_completion_is_ended(desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, desk)
    monkeypatch.setenv("_NUMAPLACE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "numaplace show --vm ")
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setattr("numaplacement.cli.selection.qemus", stop)
    assert entry.main() == Exit.CANCELLED
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize("name", ["commands", "exits"])
def test_loading_is_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str) -> None:
    real = builtins.__import__

    def load(module: str, *rest: Any) -> Any:
        if module == name:
            raise KeyboardInterrupt
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", load)
    assert entry.main() == Exit.CANCELLED
    monkeypatch.undo()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--help",), (0, "")),
        (("--version",), (0, "")),
        ((), (2, "Move the memory of running VMs")),
        (("nothing",), (2, "No such command 'nothing'")),
        (("move", VM), (2, "Give exactly one of --to N and --cell C=N")),
        (("move", "77", "--to", "0"), (1, "numaplace: there is no process 77 here")),
        (("show", VM), (0, "")),
        (("explain", VM, "--to", "0"), (3, "Looking at the memory")),
    ],
)
def test_exit_codes_of_the_program_itself(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    expected: tuple[int, str],
) -> None:
    command(monkeypatch, desk, *arguments)
    assert entry.main() == expected[0]
    assert expected[1] in capsys.readouterr().err
