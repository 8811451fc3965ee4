# SPDX-License-Identifier: Apache-2.0
"""`numaplace` on a real kernel: exit codes, what it writes, and where the memory is afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from numaplacement.cli.__main__ import main
from numaplacement.cli.commands import numaplace as loaded
from tests.kernel.memory_process import MIB, PAGE, MemoryProcess, memory_process, wait_for
from tests.kernel.test_engine_refusals import forbid_move_pages
from tests.rig.vm import RunningVm, VmSpec, numa_pages

pytestmark = pytest.mark.usefixtures("autonuma_off")
NOBODY = 65534
assert loaded.name == "numaplace"  # loaded here once, and not in each copy of this process


@dataclass
class Command:
    """A running numaplace."""

    pid: int
    out: Path
    err: Path
    ended: int | None = None

    def wait(self) -> int:
        if self.ended is None:
            self.ended = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.ended

    def said(self) -> str:
        return " ".join(self.err.read_text().split())

    def json(self) -> Any:
        return json.loads(self.out.read_text())


Run = Callable[..., Command]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Run]:
    """Starts commands in copies of this process, which has loaded all they need; nothing else is shared."""
    commands: list[Command] = []

    def begin_one(*arguments: object, prepare: Callable[[], object] = lambda: None, stdout: str = "") -> Command:
        out, err = (tmp_path / f"{len(commands)}.{name}" for name in ("out", "err"))
        out.touch()
        err.touch()
        pid = os.fork()
        if pid == 0:
            code = 99
            with contextlib.suppress(BaseException):
                code = _numaplace(arguments, Path(stdout) if stdout else out, err, prepare)
            os._exit(code)
        commands.append(Command(pid, out, err))
        return commands[-1]

    yield begin_one
    for command in commands:
        if command.ended is None:
            os.kill(command.pid, signal.SIGKILL)
            command.wait()


def _numaplace(arguments: tuple[object, ...], out: Path, err: Path, prepare: Callable[[], object]) -> int:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8", buffering=1)
    sys.argv = ["numaplace", *map(str, arguments)]
    prepare()
    code = main()
    sys.stdout.flush()
    return int(code)


@pytest.fixture
def run(begin: Run) -> Run:
    """Runs a command to its end."""

    def run_one(*arguments: object, **how: Any) -> Command:
        command = begin(*arguments, **how)
        command.wait()
        assert "Traceback" not in command.said()
        return command

    return run_one


def residue(status: dict[str, Any]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for row in status["residue"]:
        sums[row["reason"]] = sums.get(row["reason"], 0) + row["bytes"]
    return sums


def test_a_move_by_the_program_itself() -> None:
    with memory_process(("base", 8 * MIB, [1, 2]), ("thp", 8 * MIB, [3])) as child:
        done = subprocess.run(
            [sys.executable, "-m", "numaplacement.cli", "move", "--pid", str(child.pid), "--to", "0", "-o", "json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        status = json.loads(done.stdout)
        assert child.pages(region=0) == {0: 8 * MIB // PAGE}
        assert child.pages(region=1) == {0: 8 * MIB // PAGE}
        assert (status["result"], child.ask("intact")) == ("Placed", "True")
        sums = {key: sum(row["bytes"] for row in status[key]) for key in ("before", "after", "residue")}
        assert sums["before"] - status["freed"] + status["grown"] == sums["after"]
        assert sums["residue"] + status["onTarget"] == sums["after"]
        assert status["moved"] >= 16 * MIB
        assert "Moving" in done.stderr
        assert child.affinity() == {0}


def test_residue_ends_with_3_and_is_named(run: Run) -> None:
    with memory_process(("base", 4 * MIB, [1]), hold=5) as child:
        done = run("move", "--pid", child.pid, "--to", 0, "-o", "json")
        assert done.wait() == 3, done.said()
        assert residue(done.json())["extra-reference"] == 5 * PAGE
        table = run("move", "--pid", child.pid, "--to", 0)
        assert table.wait() == 3
        assert any(
            line.startswith("extra-reference") and "20 KiB" in line for line in table.out.read_text().splitlines()
        )
        assert run("move", "--pid", child.pid, "--to", 0, "--tolerance", 5 * PAGE).wait() == 0


@pytest.mark.parametrize("command", ["plan", "explain"])
def test_a_plan_touches_nothing(run: Run, command: str) -> None:
    with memory_process(("base", 4 * MIB, [1, 2])) as child:
        child.stop()
        before, affinity = child.pages(), child.affinity()
        done = run(command, "--pid", child.pid, "--to", 0, "-o", "json")
        assert done.wait() == {"plan": 0, "explain": 3}[command], done.said()
        status = done.json()
        assert (status["result"], status["moved"]) == ("Planned", 0)
        assert residue(status)["planned"] >= 4 * MIB
        assert (child.pages(), child.affinity()) == (before, affinity)
        if command == "explain":
            assert "new-on-source" in {note["reason"] for note in status["notes"]}


def test_a_refusal_ends_with_4_and_nothing_is_touched(run: Run) -> None:
    with memory_process(("base", MIB, [1])) as child:
        child.stop()
        before = child.pages()
        done = run("move", "--pid", child.pid, "--to", 9, "-o", "json")
        assert (done.wait(), done.json()["result"]) == (4, "Refused")
        ready = next(each for each in done.json()["conditions"] if each["type"] == "Ready")
        assert "NUMA node 9 does not exist" in ready["message"]
        assert child.pages() == before


def test_usage_ends_with_2(run: Run) -> None:
    with memory_process(("base", MIB, [1])) as child:
        assert run("move", "--pid", child.pid).wait() == 2
        done = run("move", child.pid, "--to", 0)
        assert done.wait() == 2
        assert f"give --pid {child.pid} if you mean it" in done.said()
        assert child.pages(region=0) == {1: MIB // PAGE}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_move_with_5(begin: Run, number: signal.Signals) -> None:
    with memory_process(("base", 32 * MIB, [1, 2, 3])) as child:
        command = begin("move", "--pid", child.pid, "--to", 0, "--bandwidth", "1Mi", "-o", "json")
        wait_for(lambda: "Moving" in command.said())
        os.kill(command.pid, number)
        assert command.wait() == 5, command.said()
        status = command.json()
        assert status["result"] == "Cancelled"
        assert residue(status)["cancelled"] > 0
        assert "what has moved stays moved" in command.said()
        assert child.pages(region=0).get(0, 0) * PAGE < 32 * MIB
        assert child.ask("intact") == "True"


def test_the_deadline_ends_a_move_with_5(run: Run) -> None:
    with memory_process(("base", 32 * MIB, [1, 2, 3])) as child:
        done = run("move", "--pid", child.pid, "--to", 0, "--deadline", "1ms", "-o", "json")
        assert (done.wait(), done.json()["result"]) == (5, "DeadlineExceeded")


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


@pytest.mark.parametrize(
    ("arguments", "prepare", "code", "words"),
    [
        (("move", "--to", 0), become_nobody, 4, "run it as root (sudo numaplace"),
        (("explain", "--to", 0), become_nobody, 4, "run it as root (sudo numaplace"),
        (("show",), become_nobody, 1, "run it as root (sudo numaplace"),
        (("watch",), become_nobody, 1, "run it as root (sudo numaplace"),
        (("move", "--to", 0), forbid_move_pages, 4, "--security-opt seccomp=unconfined"),
        (("plan", "--to", 0), forbid_move_pages, 4, "--security-opt seccomp=unconfined"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else getattr(value, "__name__", None),
)
def test_what_is_missing_is_said_in_one_sentence(
    run: Run, arguments: tuple[object, ...], prepare: Callable[[], None], code: int, words: str
) -> None:
    with memory_process(("base", MIB, [1])) as child:
        child.stop()
        before = child.pages(), child.affinity()
        done = run(arguments[0], "--pid", child.pid, *arguments[1:], prepare=prepare)
        assert done.wait() == code, done.said()
        assert words in done.said()
        assert [line for line in done.err.read_text().splitlines() if line.startswith("numaplace: ")]
        assert done.out.read_text() == ""
        assert (child.pages(), child.affinity()) == before


@pytest.mark.parametrize(
    ("pid", "code", "words"), [(2, 4, "kernel thread"), (1 << 22, 1, "there is no process 4194304")]
)
def test_processes_that_are_none(run: Run, pid: int, code: int, words: str) -> None:
    done = run("move", "--pid", pid, "--to", 0)
    assert (done.wait(), done.out.read_text()) == (code, "")
    assert words in done.said()


def test_a_full_disk_loses_no_verdict(run: Run) -> None:
    with memory_process(("base", MIB, [1])) as child:
        done = run("move", "--pid", child.pid, "--to", 0, stdout="/dev/full")
        assert done.wait() == 1
        assert "No space left on device" in done.said()
        assert "it was: Placed" in done.said()
        assert child.pages(region=0) == {0: MIB // PAGE}


def test_the_process_ends_while_it_is_moved(begin: Run) -> None:
    with memory_process(("base", 32 * MIB, [1, 2, 3])) as child:
        command = begin("move", "--pid", child.pid, "--to", 0, "--bandwidth", "1Mi", "-o", "json")
        wait_for(lambda: "Moving" in command.said())
        end(child)
        assert command.wait() == 1
        assert command.json()["result"] == "VmGone"


def end(child: MemoryProcess) -> None:
    child.process.kill()
    child.process.wait()


def test_watch_ends_with_the_process(begin: Run) -> None:
    with memory_process(("base", 4 * MIB, [1, 3])) as child:
        command = begin("watch", "--pid", child.pid, "--every", "50ms", "-o", "json")
        wait_for(lambda: command.out.read_text().count("\n") >= 2)
        end(child)
        assert command.wait() == 0, command.said()
        assert "has ended" in command.said()
        looks = [json.loads(line) for line in command.out.read_text().splitlines()]
        on = {row["numaNode"]: row["bytes"] for row in looks[0]["bytes"]}
        assert on[1] >= 2 * MIB
        assert on[3] >= 2 * MIB


def test_a_vm_by_its_name(run: Run, start: Callable[[VmSpec], RunningVm]) -> None:
    vm = start(VmSpec(namespace="prod", name="db", memory=64 * MIB, numa_nodes=(1, 2)))
    everything = run("show", "-o", "json").json()
    assert [(each["pid"], each["guest"], each["uuid"]) for each in everything["vms"]] == [(vm.pid, "prod_db", vm.uuid)]
    vm.pause()
    os.kill(vm.pid, signal.SIGSTOP)
    pages = numa_pages(vm.pid)
    seen = run("show", "--vm", "db", "-o", "json").json()
    os.kill(vm.pid, signal.SIGCONT)
    by_numa_node: dict[int, int] = {}
    for row in seen["memory"]:
        by_numa_node[row["numaNode"]] = by_numa_node.get(row["numaNode"], 0) + row["bytes"] // PAGE
    assert by_numa_node == pages
    assert [thread["name"] for thread in seen["threads"] if thread["vcpu"]] == ["CPU 0/KVM"]
    assert seen["risks"] == []
    done = run("move", "--vm", "prod/db", "--to", 0)
    assert done.wait() == 0, done.said()
    assert numa_pages(vm.pid, vm.ram_address) == {0: 64 * MIB // PAGE}
    assert done.out.read_text().startswith("Placed: ")
