# SPDX-License-Identifier: Apache-2.0
"""How far a move is, in words and as a bar."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from numaplacement.cli.bar import Bar, Line, fitted
from numaplacement.cli.following import Lines, follower
from numaplacement.cli.output import PIPE_WIDTH, console
from numaplacement.cli.progress import details, format_rest, headline
from numaplacement.engine.verdict import Progress, Stage

MIB = 1 << 20
HALF = Progress(
    stage=Stage.MOVE, pass_number=2, bytes_done=256 * MIB, bytes_total=512 * MIB, bytes_per_second=64 * MIB,
    call_p99=0.0183, waiting="memory pressure",
)  # fmt: skip


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (Progress(stage=Stage.SURVEY), ""),
        (HALF, "256.0 MiB of 512.0 MiB, 64.0 MiB/s, 4s left, p99 18.3ms, waiting: memory pressure"),
        (Progress(stage=Stage.MOVE, bytes_total=MIB), "0 KiB of 1.0 MiB"),
        (
            Progress(stage=Stage.MOVE, bytes_total=MIB, bytes_done=2 * MIB, bytes_per_second=1),
            "2.0 MiB of 1.0 MiB, 1 B/s",
        ),
    ],
)
def test_details(progress: Progress, words: str) -> None:
    assert details(progress) == words


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_has_a_headline(stage: Stage) -> None:
    assert headline(Progress(stage=stage))
    assert headline(Progress(stage=stage, pass_number=3)).endswith(", pass 3")


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0s"), (59.4, "59s"), (60, "1m00s"), (3725, "62m05s")])
def test_rest(seconds: float, words: str) -> None:
    assert format_rest(seconds) == words


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with Lines(clock=lambda: now[0]) as lines:
        for now[0] in (0.0, 1.0, 4.9, 5.0, 6.0):
            lines.progressed(HALF)
        lines.progressed(Progress(stage=Stage.VERIFY))
    captured = capsys.readouterr()
    assert [line.split(":")[0] for line in captured.err.splitlines()] == [
        "Moving, pass 2", "Moving, pass 2", "Looking again",
    ]  # fmt: skip
    assert captured.out == ""


def moved(mib: int) -> Progress:
    rate = 64 * MIB if mib else 0
    return Progress(stage=Stage.MOVE, pass_number=1, bytes_done=mib * MIB, bytes_total=9 * MIB, bytes_per_second=rate)


def test_a_move_that_is_over_in_no_time_says_what_it_moved(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(clock=lambda: 0.0) as lines:
        for progress in (moved(0), moved(3), moved(9), Progress(stage=Stage.VERIFY)):
            lines.progressed(progress)
    assert capsys.readouterr().err.splitlines() == [
        "Moving: 0 KiB of 9.0 MiB",
        "Moving: 9.0 MiB of 9.0 MiB, 64.0 MiB/s",
        "Looking again",
    ]


def test_a_move_that_breaks_off_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(clock=lambda: 0.0) as lines:
        for progress in (moved(0), moved(3)):
            lines.progressed(progress)
    assert capsys.readouterr().err.splitlines()[-1] == "Moving: 3.0 MiB of 9.0 MiB, 64.0 MiB/s, 0s left"


SOME = Progress(
    stage=Stage.MOVE, pass_number=1, bytes_done=3 << 30, bytes_total=64 << 30, bytes_per_second=1 << 30,
    call_p99=0.0183,
)  # fmt: skip


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (120, "- Moving [24]   4% 3.0 GiB of 64.0 GiB, 1.0 GiB/s, 1m01s left, p99 18.3ms"),
        (93, "- Moving [24]   4% 3.0 GiB of 64.0 GiB, 1.0 GiB/s, 1m01s left, p99 18.3ms"),
        (92, "- Moving   4% 3.0 GiB of 64.0 GiB, 1.0 GiB/s, 1m01s left, p99 18.3ms"),
        (58, "- Moving   4% 1.0 GiB/s, 1m01s left, p99 18.3ms"),
        (40, "- Moving   4% 1.0 GiB/s, 1m01s left"),
        (34, "- Moving   4% 1m01s left"),
        (20, "- Moving 1m01s left"),
        (10, "- Moving"),
    ],
)
def test_a_narrow_terminal_is_told_what_matters_most(width: int, text: str) -> None:
    assert words_of(fitted(SOME, width)) == text


def words_of(line: Line) -> str:
    parts = ["-", line.headline, "[24]" if line.bar else "", line.percent, line.details]
    return " ".join(filter(None, parts))


@pytest.mark.parametrize("width", range(1, 160))
@pytest.mark.parametrize("progress", [SOME, HALF, Progress(stage=Stage.STAY), Progress(stage=Stage.SURVEY)])
def test_a_line_is_never_wider_than_the_terminal(progress: Progress, width: int) -> None:
    line = fitted(progress, width)
    assert line.width <= width or not (line.bar or line.percent or line.details)
    screen = Terminal()
    console_of = Console(file=screen, width=width, force_terminal=True, color_system=None)
    bar = Bar(console_of)
    bar.progressed(progress)
    with console_of.capture() as capture:
        console_of.print(bar.line())
    (only,) = capture.get().splitlines()
    assert len(only.rstrip()) <= width


@pytest.mark.parametrize("stage", [Stage.SURVEY, Stage.THREADS, Stage.VERIFY, Stage.STAY])
def test_no_percentage_where_nothing_is_counted(stage: Stage) -> None:
    bar = Bar(Console(file=Terminal(), width=120))
    bar.progressed(SOME)
    bar.progressed(Progress(stage=stage, bytes_done=3))
    line = fitted(Progress(stage=stage, bytes_done=3), 120)
    assert (line.bar, line.percent) == (False, "")


def test_what_can_be_ended_is_said_on_narrow_terminals_too() -> None:
    assert "Ctrl-C ends" in fitted(Progress(stage=Stage.STAY), 40).headline
    assert "AutoNUMA moves it back" in fitted(Progress(stage=Stage.STAY), 80).headline


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [(Terminal(), "xterm", Bar), (Terminal(), "dumb", Lines), (io.StringIO(), "xterm", Lines)],
    ids=["terminal", "dumb", "pipe"],
)
def test_a_bar_only_where_it_can_be_seen(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, term: str, kind: type
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", stream)
    assert isinstance(follower(clock=lambda: 0.0), kind)


def test_the_bar_shows_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", screen)
    with follower(clock=lambda: 0.0) as bar:
        bar.progressed(HALF)
        wait_for(lambda: "50%" in screen.getvalue())
        assert "waiting: memory pressure" in screen.getvalue()
    assert screen.getvalue().rstrip("\r\n").endswith("\x1b[2K")


class Gone(Terminal):
    def write(self, _text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_move_goes_on_when_nobody_looks_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Gone())
    with follower(clock=lambda: 0.0) as shown:
        shown.progressed(HALF)
    monkeypatch.setenv("TERM", "dumb")
    with follower(clock=lambda: 0.0) as shown:
        shown.progressed(HALF)


@pytest.mark.parametrize(("columns", "width"), [(None, PIPE_WIDTH), ("77", 77)])
def test_width_of_a_pipe(monkeypatch: pytest.MonkeyPatch, columns: str | None, width: int) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert console(io.StringIO()).width == width
