# SPDX-License-Identifier: Apache-2.0
"""plan, move and explain: exit codes, what is written where, and faults in one sentence."""

from __future__ import annotations

import dataclasses
import io
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from numaplacement.api.migration import NumaMigrationStatus
from numaplacement.cli import __main__ as entry
from numaplacement.cli.exits import Exit, exit_of
from numaplacement.engine.verdict import Outcome, Verdict
from tests.unit.cli_world import PAGE, PID, Desk, Region, World, interrupt

VM = str(PID)
SCHEMA = Path(__file__).parents[2] / "crds/numaplacement.io_numamigrations.yaml"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(root=tmp_path)


def end(desk: Desk) -> None:
    desk.world.ended = True


def forbid(desk: Desk, name: str) -> None:
    desk.files[name] = PermissionError(13, "Permission denied", f"/{name}")


def late(desk: Desk) -> None:
    at_first_of_many(desk, lambda: setattr(desk.world, "now", 1e6))


def at_first_of_many(desk: Desk, action: Callable[[], object]) -> None:
    desk.world.regions[0] = Region(0x10_0000, [1] * 512)
    desk.world.hooks[1] = lambda: action() and None


def busy(desk: Desk) -> None:
    desk.world.regions[0].refused |= {3}


MOVE = ["move", VM, "--to", "0"]
SLOW = [*MOVE, "--bandwidth", "256Ki"]
EXITS: dict[str, tuple[list[str], Callable[[Desk], Any], int, str]] = {
    "placed": (MOVE, lambda _: None, 0, ""),
    "planned": (["plan", VM, "--to", "0"], lambda _: None, 0, ""),
    "a dry run": ([*MOVE, "--dry-run"], lambda _: None, 0, ""),
    "by name": (["move", "--vm", "prod_db", "--to", "0"], lambda _: None, 0, ""),
    "any process": (["move", "--pid", VM, "--to", "0"], lambda _: None, 0, ""),
    "residue": (MOVE, busy, 3, ""),
    "residue within the tolerance": ([*MOVE, "--tolerance", "4Ki"], busy, 0, ""),
    "residue within a share": ([*MOVE, "--tolerance", "10%"], busy, 0, ""),
    "refused": (MOVE, lambda desk: setattr(desk.world, "mems", "1-3"), 4, ""),
    "a plan that is refused": (["plan", VM, "--to", "0"], lambda desk: setattr(desk.world, "mems", "1-3"), 4, ""),
    "no such NUMA node": (["move", VM, "--to", "9"], lambda _: None, 4, ""),
    "Ctrl-C": (SLOW, lambda desk: at_first_of_many(desk, interrupt), 5, "what has moved stays moved"),
    "SIGTERM": (
        SLOW, lambda desk: at_first_of_many(desk, lambda: interrupt(signal.SIGTERM)), 5, "stays moved",
    ),
    "the terminal is closed": (
        SLOW, lambda desk: at_first_of_many(desk, lambda: interrupt(signal.SIGHUP)), 5, "stays moved",
    ),
    "deadline": (SLOW, late, 5, ""),
    "the process ends": (MOVE, lambda desk: desk.world.hooks.__setitem__(1, lambda: end(desk)), 1, ""),
    "explained: off target": (["explain", VM, "--to", "0"], lambda _: None, 3, ""),
    "explained: within the tolerance": (["explain", VM, "--to", "0", "--tolerance", "100%"], lambda _: None, 0, ""),
    "explained: all on target": (
        ["explain", VM, "--to", "1"], lambda desk: desk.world.regions.__setitem__(0, Region(0x1000, [1])), 0, "",
    ),
    "explained: refused": (
        ["explain", VM, "--to", "0"], lambda desk: setattr(desk.world, "mems", "1-3"), 4, "",
    ),
    "no target": (["move", VM], lambda _: None, 2, "Give exactly one of --to N and --cell C=N"),
    "two targets": ([*MOVE, "--cell", "0=1"], lambda _: None, 2, "Give exactly one of --to N and --cell C=N"),
    "a cell twice": (["move", VM, "--cell", "0=1", "--cell", "0=2"], lambda _: None, 2, "Give each guest cell once"),
    "a cell that is none": (["move", VM, "--cell", "one"], lambda _: None, 2, "such as 0=1"),
    "a cell too high": (["move", VM, "--cell", "128=0"], lambda _: None, 2, "such as 0=1"),
    "no process": (["move", "--to", "0"], lambda _: None, 2, "--vm NAME or --pid PID"),
    "two processes": ([*MOVE, "--vm", "db"], lambda _: None, 2, "only one of"),
    "an unknown word": ([*MOVE, "--allow", "Everything"], lambda _: None, 2, "Reclaim"),
    "no bandwidth": ([*MOVE, "--bandwidth", "0"], lambda _: None, 2, "nothing would ever move"),
    "no latency": ([*MOVE, "--call-latency", "0ms"], lambda _: None, 2, "nothing would ever move"),
    "no duration": ([*MOVE, "--deadline", "soon"], lambda _: None, 2, "such as 20ms"),
    "no tolerance": ([*MOVE, "--tolerance", "101%"], lambda _: None, 2, "percentage from 0% to 100%"),
    "no such process": (["move", "77", "--to", "0"], lambda _: None, 1, "no process 77"),
    "no such process for experts": (["move", "--pid", "77", "--to", "0"], lambda _: None, 1, "no process 77"),
    "no such VM": (["move", "--vm", "web", "--to", "0"], lambda _: None, 1, "it runs prod_db (pid 4242)"),
    "not a QEMU": (
        MOVE, lambda desk: setattr(desk.world, "command_line", "/usr/sbin/nginx\0") or unlink(desk), 2,
        "not a QEMU but nginx; give --pid 4242",
    ),
    "a thread": (
        MOVE, lambda desk: desk.files.update({f"proc/{PID}/status": "Name:\tqemu\nTgid:\t4200\nPid:\t4242\n"}), 2,
        "4242 is a thread of process 4200",
    ),
    "a kernel thread": (
        MOVE, lambda desk: desk.files.update({f"proc/{PID}/stat": stat(flags=0x00208040)}), 4, "kernel thread",
    ),
    "a zombie": (MOVE, lambda desk: desk.files.update({f"proc/{PID}/stat": stat(state="Z")}), 1, "has ended already"),
    "one NUMA node": (
        MOVE,
        lambda desk: desk.files.update(
            {"sys/devices/system/node/online": "0\n", "sys/devices/system/node/has_memory": "0\n"}
        ),
        4, "one NUMA node only (0)",
    ),
    "no NUMA at all": (
        MOVE, lambda desk: desk.files.update({"sys/devices/system/node/online": FileNotFoundError(2, "no")}), 4,
        "CONFIG_NUMA",
    ),
    "seccomp": (MOVE, lambda desk: setattr(desk.world, "blocked", True), 4, "seccomp=unconfined"),
    "no such call": (
        MOVE,
        lambda desk: setattr(desk.world, "blocked", True)
        or desk.files.update({"proc/self/status": "Mems_allowed_list:\t0-3\nSeccomp:\t0\nCapEff:\t0\n"}),
        4, "CONFIG_MIGRATION",
    ),
    "no rights": (
        MOVE, lambda desk: forbid(desk, f"proc/{PID}/smaps"), 4,
        "run it as root (sudo numaplace …); in a container give it CAP_SYS_PTRACE and the host's process IDs;",
    ),
    "no /proc": (MOVE, lambda desk: desk.files.update({"proc/meminfo": OSError(5, "I/O error")}), 4, "mount"),
}  # fmt: skip


def unlink(desk: Desk) -> None:
    (desk.kernel.proc / VM / "exe").unlink()
    (desk.kernel.proc / VM / "exe").symlink_to("/usr/sbin/nginx")


def stat(*, state: str = "S", flags: int = 0) -> str:
    fields = [state, *["0"] * 5, str(flags), *["0"] * 12, "777", *["0"] * 30]
    return f"{PID} (kswapd0) {' '.join(fields)}\n"


@pytest.mark.parametrize("name", EXITS)
def test_exit_codes(desk: Desk, name: str) -> None:
    arguments, prepare, code, words = EXITS[name]
    prepare(desk)
    result = desk.run(*arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert (code in {1, 2, 4} and bool(words)) is not bool(result.stdout)


BEFOREHAND: dict[str, tuple[str, int | None, str]] = {
    "one NUMA node": ("NumaNodeHasNoMemory", 0, "memory on one NUMA node only (0)"),
    "no NUMA at all": ("NumaNodeHasNoMemory", 0, "this kernel shows no NUMA nodes"),
    "seccomp": ("SyscallBlocked", 0, "seccomp=unconfined"),
    "no such call": ("SyscallBlocked", 0, "CONFIG_MIGRATION"),
    "no rights": ("NoAccessToProcess", 0, "run it as root"),
    "a kernel thread": ("Refused", None, "is a kernel thread"),
    "no /proc": ("Refused", None, "cannot read the host's facts"),
}


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize("command", ["plan", "move", "explain"])
@pytest.mark.parametrize("name", BEFOREHAND)
def test_what_is_refused_before_a_look_is_a_document_too(desk: Desk, name: str, command: str, form: str) -> None:
    _, prepare, code, words = EXITS[name]
    reason, numa_node, said = BEFOREHAND[name]
    prepare(desk)
    result = desk.run(command, VM, "--to", "0", "-o", form)
    assert result.exit_code == code
    document = yaml.safe_load(result.stdout)
    fits(document, status_schema())
    assert document["result"] == "Refused"
    ready = next(each for each in document["conditions"] if each["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", reason)
    assert ready["message"].startswith("Nothing was touched: ")
    assert said in ready["message"]
    assert words in ready["message"]
    assert [(row["numaNode"], row["bytes"]) for row in document["residue"]] == ([(0, 0)] if numa_node == 0 else [])
    assert all(row["remedy"].endswith(f"More: docs/reasons.md#{row['reason']}.") for row in document["residue"])
    assert set(document) == set(yaml.safe_load(desk_of("refused", desk.root / "other").run(*MOVE, "-o", form).stdout))


def desk_of(name: str, root: Path) -> Desk:
    desk = Desk(root=root)
    EXITS[name][1](desk)
    return desk


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_an_exit_code(outcome: Outcome) -> None:
    assert exit_of(Verdict(outcome=outcome, message="")) in Exit


def test_what_did_not_stay_is_residue() -> None:
    placed = Verdict(outcome=Outcome.PLACED, message="", stayed=False)
    assert [exit_of(placed), exit_of(dataclasses.replace(placed, stayed=True))] == [3, 0]


def test_a_move_looks_whether_it_stays_and_a_plan_has_nothing_to_look_at(desk: Desk) -> None:
    assert desk.json(*MOVE)["stayed"] is True
    assert "stayed" not in desk.json("plan", VM, "--to", "0")
    assert desk.ledger.is_dir()


def test_reservations_nobody_can_make_are_told(desk: Desk) -> None:
    desk.ledger.touch()
    result = desk.run(*MOVE)
    assert result.exit_code == 0
    assert "moves by other processes are not taken into account" in result.stderr


def test_a_second_interruption_is_explained(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    told = threading.Event()

    def again() -> None:
        interrupt()
        assert told.wait(10)
        interrupt()
        told.clear()
        assert told.wait(10)

    at_first_of_many(desk, again)
    monkeypatch.setattr("numaplacement.cli.running.say", lambda text: said.append(text) or told.set())
    assert desk.run(*SLOW).exit_code == 5
    assert "what has moved stays moved" in said[0]
    assert "cannot be interrupted" in said[1]
    assert len(said) == 2


def test_handlers_are_as_they_were(desk: Desk) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    desk.run(*MOVE)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_signals_that_were_to_be_ignored_are(desk: Desk) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        seen: list[object] = []
        at_first_of_many(desk, lambda: seen.append(signal.getsignal(signal.SIGHUP)))
        desk.run(*SLOW)
        assert seen == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_plan_and_explain_touch_nothing(desk: Desk) -> None:
    for command in ("plan", "explain"):
        desk.run(command, VM, "--to", "0")
    assert desk.world.calls == []
    assert set(desk.world.affinity[PID]) == set(range(8))


def test_threads_are_left_when_asked(desk: Desk) -> None:
    assert desk.json(*MOVE, "--threads", "leave")["threads"]["followed"] == 0
    assert set(desk.world.affinity[PID]) == set(range(8))


def fits(value: Any, schema: dict[str, Any], path: str = "status") -> None:
    """Fail unless a value is what a structural schema says."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    assert isinstance(value, kinds[schema["type"]]), path
    assert isinstance(value, bool) is (schema["type"] == "boolean"), path
    if "enum" in schema:
        assert value in schema["enum"], path
    if "minimum" in schema:
        assert value >= schema["minimum"], path
    for key in schema.get("required", ()):
        assert key in value, f"{path}.{key}"
    if schema["type"] == "object":
        for key, item in value.items():
            fits(item, schema["properties"][key], f"{path}.{key}")
    if schema["type"] == "array":
        for item in value:
            fits(item, schema["items"], f"{path}[]")


def status_schema() -> dict[str, Any]:
    version = yaml.safe_load(SCHEMA.read_text())["spec"]["versions"][0]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    return found


DOCUMENTS: dict[str, tuple[list[str], Callable[[Desk], Any]]] = {
    "placed": (MOVE, lambda _: None),
    "residue": (MOVE, busy),
    "planned": (["plan", VM, "--to", "0"], lambda _: None),
    "explained": (
        ["explain", VM, "--to", "0"],
        lambda desk: desk.files.update({"proc/sys/kernel/numa_balancing": "1"}),
    ),
    "refused": (MOVE, lambda desk: setattr(desk.world, "mems", "1-3")),
    "cancelled": (SLOW, lambda desk: at_first_of_many(desk, interrupt)),
    "gone": (MOVE, lambda desk: desk.world.hooks.__setitem__(1, lambda: end(desk))),
}


@pytest.mark.parametrize("form", ["json", "yaml"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_the_status_of_an_order(desk: Desk, name: str, form: str) -> None:
    arguments, prepare = DOCUMENTS[name]
    prepare(desk)
    document = yaml.safe_load(desk.run(*arguments, "-o", form).stdout)
    fits(document, status_schema())
    status = NumaMigrationStatus.model_validate(document)
    assert status.start_time is not None
    assert {condition.type for condition in status.conditions} == {"Ready", "Reconciling", "Stalled"}
    assert status.result is not None


def test_the_books_of_a_move_are_told(desk: Desk) -> None:
    busy(desk)
    document = desk.json(*MOVE)
    assert document["result"] == "Residue"
    assert document["moved"] == 15 * PAGE
    assert sum(row["bytes"] for row in document["after"] if row["numaNode"] == 0) == 15 * PAGE
    assert [(row["reason"], row["numaNode"], row["bytes"]) for row in document["residue"]] == [
        ("extra-reference", 1, PAGE)
    ]
    assert document["calls"]["count"] > 0


def test_a_table_for_a_person(desk: Desk) -> None:
    busy(desk)
    result = desk.run(*MOVE)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Residue: 60 KiB of 64 KiB on NUMA node 0")
    assert any(line.split() == ["0", "0", "KiB", "60", "KiB"] for line in lines)
    assert any(line.startswith("extra-reference") and "4 KiB" in line for line in lines)
    assert "Try again" in result.stdout
    assert "\x1b" not in result.output
    assert result.stderr.splitlines()[0] == "Looking at the memory"


def test_reasons_for_where_memory_is(desk: Desk) -> None:
    desk.files["proc/sys/kernel/numa_balancing"] = "1\n"
    desk.world.regions[0] = dataclasses.replace(desk.world.regions[0], policy="bind:1")
    document = desk.json("explain", VM, "--to", "0")
    notes = {note["reason"]: note["evidence"] for note in document["notes"]}
    assert "bind:1" in next(row["evidence"] for row in document["residue"] if row["reason"] == "strict-binding")
    assert "1 vCPU thread and 1 other may run on CPUs 0-7 of NUMA nodes 0-3" in notes["new-on-source"]
    assert "numa_balancing is on" in notes["auto-numa"]


@pytest.mark.parametrize("width", [60, 100])
def test_tables_keep_to_the_width(desk: Desk, width: int) -> None:
    busy(desk)
    desk.env["COLUMNS"] = str(width)
    lines = desk.run(*MOVE).stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "references" not in lines[0]


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_colours(desk: Desk, env: dict[str, str | None], coloured: bool) -> None:
    desk.env |= {"FORCE_COLOR": "1", **env}
    assert ("\x1b[32mPlaced" in desk.run(*MOVE).stdout) is coloured


class Full(io.TextIOBase):
    """A standard output that takes nothing."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def write(self, _text: str) -> int:
        raise self._error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("I/O operation on closed file."), "closed file"),
    ],
    ids=["pipe", "disk", "closed"],
)
@pytest.mark.parametrize("form", ["json", "table"])
def test_a_result_that_cannot_be_written_is_not_lost(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, form: str
) -> None:
    def full() -> None:
        monkeypatch.setattr(sys, "stdout", Full(error))

    desk.world.hooks[1] = full
    result = desk.run(*MOVE, "-o", form)
    monkeypatch.undo()
    assert result.exit_code == 1
    said = result.stderr.splitlines()[-1]
    assert words in said
    assert "it was: Placed: 64 KiB of 64 KiB on NUMA node 0; it stayed: nothing came back" in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(5, "Input/output error", "/proc/1"), "Input/output error (/proc/1)"),
        (ZeroDivisionError("by nothing"), "ZeroDivisionError: by nothing; report it"),
    ],
    ids=["system", "ours"],
)
def test_a_fault_nobody_thought_of_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("numaplacement.cli.commands.numaplace", fail)
    assert entry.main() == 1
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_world_of_nothing_but_a_process(tmp_path: Path) -> None:
    desk = Desk(root=tmp_path, world=World(regions=[Region(0x1000, [-1])]))
    result = desk.run(*MOVE)
    assert (result.exit_code, result.stdout.splitlines()[0][:6]) == (0, "Placed")


def test_where_a_reason_is_named_so_is_the_page_that_explains_it(desk: Desk) -> None:
    page = "What each reason means, and what to do: docs/reasons.md of this project."
    assert page not in desk.run(*MOVE).stdout
    desk.world.mems = "1-3"
    told = desk.run("move", VM, "--to", "2").stdout
    assert page not in told
    refused = desk.run(*MOVE).stdout
    assert refused.count("More: docs/reasons.md#vm-cpuset.") == 1
    assert refused.splitlines()[-1] == page
    assert desk.json(*MOVE)["residue"][0]["remedy"].endswith(" More: docs/reasons.md#vm-cpuset.")
