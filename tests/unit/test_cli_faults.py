# SPDX-License-Identifier: Apache-2.0
"""Every call of the kernel fails under `numaplace`: one sentence and an exit code, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from numaplacement.cli.exits import Exit
from tests.unit.cli_world import PID, Desk, Region, World
from tests.unit.engine_world_faults import Fault, Faults, put_faults, put_faults_in_files

COMMANDS = {
    "show": ["show", str(PID)],
    "show all": ["show"],
    "plan": ["plan", str(PID), "--to", "0"],
    "move": ["move", str(PID), "--to", "0"],
    "explain": ["explain", str(PID), "--to", "0"],
}


def attempt(command: list[str], root: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None) -> tuple[Faults, str]:
    """Run a command with one fault; return what was called, and what is wrong with how it ended, empty for nothing."""
    root.mkdir()
    faults = Faults(fault)
    desk = Desk(root=root, world=World(regions=[Region(0x10_0000, [1] * 8 + [2] * 8, hidden={3}, refused={5})]))
    put_faults(desk.kernel, faults)
    with monkeypatch.context() as patched:
        put_faults_in_files(patched, faults)
        result = desk.run(*command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return faults, f"{fault}: {result.exception!r}"
    if result.exit_code not in set(Exit) or "Traceback" in result.output:
        return faults, f"{fault}: {result.exit_code} {result.output}"
    if result.exit_code in {Exit.FAULT, Exit.REFUSED} and not result.output.strip():
        return faults, f"{fault}: not a word"
    return faults, ""


@pytest.mark.parametrize("name", COMMANDS)
def test_no_fault_ends_in_a_traceback(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, wrong = attempt(COMMANDS[name], tmp_path / "clean", monkeypatch, None)
    assert wrong == ""
    found = [
        attempt(COMMANDS[name], tmp_path / str(number), monkeypatch, fault)[1]
        for number, fault in enumerate(faults.some())
    ]
    assert "\n".join(filter(None, found)) == ""
