# SPDX-License-Identifier: Apache-2.0
"""What is written fits where it goes: widths, encodings, and names that would steer a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest
import yaml

from numaplacement.cli import __main__ as entry
from numaplacement.cli.exits import Exit
from numaplacement.cli.output import PIPE_WIDTH, Form, cells, console, document_text, rendered, table
from numaplacement.cli.plain import plain
from tests.unit.cli_world import COMMAND_LINE, PID, Desk, Region, World
from tests.unit.cli_world import command as as_command

VM = str(PID)
SIZES = World(regions=[Region(0x10_0000, [0] * 300 + [1] * 800 + [2] * 1200 + [3] * 4000)])
EVIL = "a\x1b[2Jb\x9b31m\rc\nd\u202e"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(root=tmp_path)


def sizes() -> World:
    return dataclasses.replace(SIZES, regions=[dataclasses.replace(SIZES.regions[0], nodes=[*SIZES.regions[0].nodes])])


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_number_of_a_list_is_ever_cut(tmp_path: Path, width: int) -> None:
    desk = Desk(root=tmp_path, world=sizes(), env={"COLUMNS": str(width)})
    desk.files["sys/devices/system/node/online"] = "0-7\n"
    desk.files["sys/devices/system/node/has_memory"] = "0-7\n"
    header, row = desk.run("show").stdout.splitlines()
    assert header.split() == ["PID", "VM", *(word for node in range(8) for word in ("NUMA", str(node))), "TOTAL"]
    assert row.split() == [
        VM, "prod_db", "1.2", "MiB", "3.1", "MiB", "4.7", "MiB", "15.6", "MiB", *"----", "24.6", "MiB",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80])
@pytest.mark.parametrize("command", [["show", VM], ["move", VM, "--to", "0"], ["explain", VM, "--to", "0"]])
def test_no_word_is_ever_broken(desk: Desk, command: list[str], width: int) -> None:
    desk.world.regions[0].refused |= {3}
    broad = desk.run(*command).stdout
    again = Desk(root=desk.root / "again", env={"COLUMNS": str(width)})
    again.world.regions[0].refused |= {3}
    narrow = again.run(*command).stdout
    assert set(broad.split()) == set(narrow.split())
    for line in narrow.splitlines():
        assert len(line) <= max(width, 120)


def test_columns_share_what_room_there_is() -> None:
    made = table("PID", "A", "B", right=("PID",))
    made.add_row(*cells("1234567", "one two three four five six", "one two three"))
    text = rendered(made)
    assert text.splitlines()[1] == "1234567   one two three four five six   one two three"


@pytest.mark.parametrize(("room", "lines"), [(53, 2), (46, 3), (33, 4), (10, 7)])
def test_prose_wraps_between_words(monkeypatch: pytest.MonkeyPatch, room: int, lines: int) -> None:
    monkeypatch.setenv("COLUMNS", str(room))
    made = table("PID", "A", "B", right=("PID",))
    made.add_row(*cells("1234567", "one two three four five six", "one two three"))
    text = rendered(made)
    assert len(text.splitlines()) == lines
    assert set(text.split()) == {"PID", "A", "B", "1234567", "one", "two", "three", "four", "five", "six"}


def test_paths_of_any_length_do_not_make_a_table_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    made = table("PID", "SEEN", right=("PID",))
    made.add_row(*cells("1234567", "/" + "x" * 300))
    text = rendered(made)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("x") == 300


def test_long_names_of_vms_stay_whole(tmp_path: Path) -> None:
    name = "a-very-long-name-of-a-virtual-machine-in-some-namespace_db"
    desk = Desk(root=tmp_path, env={"COLUMNS": "50"})
    desk.world.command_line = COMMAND_LINE.replace("prod_db", name)
    assert name in desk.run("show").stdout
    assert name in desk.run("show", VM).stdout


@pytest.mark.parametrize("columns", ["0", "", "-3", "wide", "080x", "²", "9" * 30])
@pytest.mark.parametrize("command", [["show"], ["show", VM], ["move", VM, "--to", "0"]])
def test_columns_that_are_no_width_are_as_if_unset(desk: Desk, command: list[str], columns: str) -> None:
    desk.env["COLUMNS"] = columns
    result = desk.run(*command)
    assert result.exit_code == 0
    assert result.stdout.splitlines()
    assert "NUMA" in result.stdout
    assert max(map(len, result.stdout.splitlines())) > 50


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["0", "x", "²"])
def test_a_terminal_has_a_width_whatever_columns_says(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    assert console(Terminal()).width == 80
    assert console(io.StringIO()).width == PIPE_WIDTH


def test_text_of_processes_steers_no_terminal() -> None:
    assert plain(EVIL) == "a�[2Jb�31m�c�d�"
    assert plain("prod_db Ä 漢字 é") == "prod_db Ä 漢字 é"
    assert plain("a\nb", keep="\n") == "a\nb"


STEERING = [
    ["show"],
    ["show", VM],
    ["watch", VM],
    ["plan", VM, "--to", "0"],
    ["move", VM, "--to", "0"],
    ["explain", VM, "--to", "0"],
    ["show", "--vm", "xyz"],
    ["show", "--vm", "a"],
    ["show", "--vm", EVIL[:4]],
]


@pytest.mark.parametrize("command", STEERING, ids=lambda command: " ".join(map(ascii, command)))
@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_names_that_would_steer_a_terminal(desk: Desk, command: list[str], form: str) -> None:
    desk.world.command_line = COMMAND_LINE.replace("prod_db", EVIL)
    desk.world.thread_names = (EVIL, f"CPU 0/KVM{EVIL}")
    desk.world.files = ("/dev/vfio/1", f"/dev/vfio/{EVIL}", "anon_inode:kvm-vfio")
    desk.world.locked_kib = 64
    desk.world.policy = 1
    result = desk.run(*command, "-o", form)
    assert {char for char in result.output if not char.isprintable()} <= {"\n"}
    if form == "json" and result.stdout and command[0] == "show":
        document = json.loads(result.stdout)
        assert document.get("guest", EVIL) == EVIL


def test_a_program_that_would_steer_a_terminal(desk: Desk) -> None:
    (desk.kernel.proc / VM / "exe").unlink()
    (desk.kernel.proc / VM / "exe").symlink_to(f"/usr/bin/{EVIL}")
    result = desk.run("move", VM, "--to", "0")
    assert result.exit_code == 2
    assert {char for char in result.output if not char.isprintable()} <= {"\n"}
    assert "is not a QEMU but a�[2J" in " ".join(result.stderr.split())


def test_names_nobody_could_type_are_not_completed(desk: Desk) -> None:
    desk.world.command_line = COMMAND_LINE.replace("prod_db", EVIL)
    assert desk.completed("numaplace show --vm ", "") == set()
    assert desk.completed("numaplace show ", "") == {VM}


@pytest.mark.parametrize(("encoding", "raw"), [("utf-8", True), ("UTF8", True), ("ascii", False), ("latin-1", False)])
@pytest.mark.parametrize("form", [Form.JSON, Form.YAML])
def test_documents_survive_every_encoding(
    monkeypatch: pytest.MonkeyPatch, form: Form, encoding: str, *, raw: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    text = document_text({"guest": "Bär 漢"}, form)
    assert ("Bär 漢" in text) is raw
    assert yaml.safe_load(text) == {"guest": "Bär 漢"}


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize("command", [["show"], ["show", VM], ["watch", VM], ["move", VM, "--to", "0"]])
def test_nothing_is_begun_whose_result_has_nowhere_to_go(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], form: str
) -> None:
    as_command(monkeypatch, desk, *command, "-o", form)
    monkeypatch.setattr(sys, "stdout", None)
    assert entry.main() == Exit.FAULT
    said = capsys.readouterr().err
    assert said == "numaplace: standard output is closed, so nothing was begun; give it a file, a pipe or a terminal\n"
    assert desk.world.calls == []


@pytest.mark.parametrize("command", [["show"], ["move", VM, "--to", "0"], ["move", "77", "--to", "0"], ["move"]])
def test_nobody_to_talk_to(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code = desk.run(*command).exit_code
    again = Desk(root=desk.root / "again")
    as_command(monkeypatch, again, *command)
    monkeypatch.setattr(sys, "stderr", None)
    assert entry.main() == code
    assert bool(capsys.readouterr().out) is (code == 0)


class Gone(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("command", [["show"], ["show", VM, "-o", "json"], ["watch", VM], ["completion", "bash"]])
def test_a_reader_who_has_seen_enough_is_no_fault(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    as_command(monkeypatch, desk, *command)
    monkeypatch.setattr(sys, "stdout", Gone())
    assert entry.main() == Exit.PLACED
    assert "could not be written" not in capsys.readouterr().err
