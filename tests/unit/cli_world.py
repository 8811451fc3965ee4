# SPDX-License-Identifier: Apache-2.0
"""`numaplace` run over the simulated host of engine_world.py."""

from __future__ import annotations

import datetime
import functools
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from numaplacement.cli.commands import numaplace
from numaplacement.cli.surroundings import Surroundings
from tests.unit.engine_world import PAGE, PID, Region, SimulatedKernel, World

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
QEMU = "/usr/bin/qemu-system-x86_64"
UUID = "6e7b6e74-c27a-488b-ac18-c6c49d07c506"
COMMAND_LINE = f"{QEMU}\0-name\0guest=prod_db,debug-threads=on\0-uuid\0{UUID}\0"
PLAIN = {"COLUMNS": "400", "NO_COLOR": None, "FORCE_COLOR": None, "TERM": "xterm"}


class Host(SimulatedKernel):
    """The simulated host, with some files that say something else; an exception is raised."""

    def __init__(self, world: World, root: Path, *, program: str, files: Mapping[str, str | Exception]) -> None:
        super().__init__(world, root)
        self.files = files
        if program:
            (self.proc / str(PID) / "exe").symlink_to(program)

    def read(self, path: Path) -> str:
        found = self.files.get(str(path.relative_to(self.proc.parent)))
        if isinstance(found, Exception):
            raise found
        return super().read(path) if found is None else found


@dataclass
class Desk:
    """A person at the simulated host."""

    root: Path
    world: World = field(default_factory=lambda: World(regions=[Region(0x10_0000, [1] * 8 + [2] * 8)]))
    program: str = QEMU
    files: dict[str, str | Exception] = field(default_factory=dict)
    env: dict[str, str | None] = field(default_factory=dict)
    looks: int = 3

    def __post_init__(self) -> None:
        self.ledger = self.root / "ledger"
        self.world.command_line = COMMAND_LINE
        self.kernel = Host(self.world, self.root, program=self.program, files=self.files)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(numaplace, list(arguments), obj=self.surroundings(), env=PLAIN | self.env)

    def surroundings(self) -> Surroundings:
        return Surroundings(
            kernel=self.kernel,
            clock=lambda: self.world.now,
            now=lambda: NOW,
            sleep=self._sleep,
            reservations=self.ledger,
        )

    def completed(self, words: str, current: str) -> set[str]:
        """Return what is offered for the current word behind some words."""
        shell = ShellComplete(numaplace, {"obj": self.surroundings()}, "numaplace", "_NUMAPLACE_COMPLETE")
        return {item.value for item in shell.get_completions(words.split()[1:], current)}

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "-o", "json").stdout)

    def _sleep(self, seconds: float) -> None:
        self.world.now += seconds
        if self.world.now >= self.looks - 0.5:
            self.world.ended = True


def interrupt(number: int = signal.SIGINT) -> None:
    """Do what the interpreter does when a signal has come."""
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


def command(monkeypatch: pytest.MonkeyPatch, desk: Desk, *arguments: str) -> None:
    """Let the program itself (`cli/__main__.py`) be started with these arguments at a desk."""
    monkeypatch.setattr(sys, "argv", ["numaplace", *arguments])
    monkeypatch.setattr("numaplacement.cli.commands.numaplace", functools.partial(numaplace, obj=desk.surroundings()))


def while_looking(desk: Desk, action: Callable[[], object]) -> None:
    """Do something the first time that the mappings of the process are read."""

    def read_on(path: Path) -> str:
        return Host.read(desk.kernel, path)

    def read(path: Path) -> str:
        if path.name == "smaps":
            desk.kernel.read = read_on  # type: ignore[method-assign]
            action()
        return read_on(path)

    desk.kernel.read = read  # type: ignore[method-assign]


__all__ = ["COMMAND_LINE", "NOW", "PAGE", "PID", "QEMU", "UUID", "Desk", "Host", "Region", "World"]
__all__ += ["command", "interrupt", "while_looking"]
