# SPDX-License-Identifier: Apache-2.0
"""What a test of a cause has found, written down for the matrix of causes and kernels (tests/rig/matrix.py).

A test carries the mark `cause(REASON)`; the first line of its docstring is the recipe. It hands what the engine said
to `judge`. One line of JSON a test goes to the file causes.jsonl in the folder that the emulated host shares with the
machine; a test that fails is written down as well.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Verdict

FILE = "causes.jsonl"
Judge = Callable[..., int]
_SEEN = pytest.StashKey[dict[str, Any]]()


def bytes_of(verdict: Verdict, reason: Reason) -> int:
    """The bytes a verdict puts down to a reason: in its residue, or, where it is one to know only, in its notes."""
    rows = [row.bytes for row in verdict.residue if row.reason is reason]
    return sum(rows) or sum(note.bytes for note in verdict.notes if note.reason is reason)


def says(verdict: Verdict, reason: Reason) -> bool:
    """Whether a verdict names a reason anywhere."""
    return any(each.reason is reason for each in (*verdict.residue, *verdict.refusals, *verdict.notes))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cause(reason): reproduces this reason on a real kernel; goes into the matrix")


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Judge:
    """Checks that a verdict names the marked reason for so many bytes (`least` to `most`) and explains every byte.

    With `overcome=N` the cause was there for N bytes, and the engine is to leave none of them behind.
    """
    mark = request.node.get_closest_marker("cause")
    assert mark, "the test needs the mark cause(REASON)"
    reason: Reason = mark.args[0]
    seen = request.node.stash.setdefault(_SEEN, {})

    def check(verdict: Verdict, *, least: int = 1, most: int | None = None, overcome: int | None = None) -> int:
        found = bytes_of(verdict, reason)
        unexplained = bytes_of(verdict, Reason.UNEXPLAINED)
        seen.update(
            outcome=verdict.outcome.value, bytes=found, unexplained=unexplained, overcome=overcome, says=_words(verdict)
        )
        assert unexplained == 0, verdict
        if overcome is not None:
            assert overcome > 0
            assert found == 0, verdict
        else:
            assert says(verdict, reason), verdict
            assert least <= found <= (found if most is None else most), verdict
        return found

    return check


@pytest.fixture
def absent(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Ends a test whose cause this kernel does not know, and says so in the matrix."""

    def end(why: str) -> None:
        request.node.stash.setdefault(_SEEN, {})["absent"] = why
        pytest.skip(why)

    return end


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    mark = item.get_closest_marker("cause")
    if mark and (report.when == "call" or (report.when == "setup" and not report.passed)):
        _write(item, mark.args[0], report)
    return report


def _write(item: pytest.Item, reason: Reason | None, report: pytest.TestReport) -> None:
    assert isinstance(item, pytest.Function)
    words = (item.function.__doc__ or item.originalname.removeprefix("test_").replace("_", " ")).strip().splitlines()[0]
    line = {
        "cause": reason.value if reason else None,
        "test": item.nodeid,
        "recipe": f"{words} {item.callspec.id}".strip() if hasattr(item, "callspec") else words,
        "kernel": platform.release(),
        "result": report.outcome,
        **item.stash.get(_SEEN, {}),
    }
    with (shared_folder() / FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


def shared_folder() -> Path:
    """The folder that the emulated host shares with the machine."""
    found = re.search(r"\brig\.shared=(\S+)", Path("/proc/cmdline").read_text())
    assert found, "not inside the emulated host"
    return Path(found[1])


def _words(verdict: Verdict) -> dict[str, int]:
    """Every reason a verdict gives, and for how many bytes."""
    given = {each.reason for each in (*verdict.residue, *verdict.refusals, *verdict.notes)}
    return {reason.value: bytes_of(verdict, reason) for reason in sorted(given)}
