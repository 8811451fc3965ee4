# SPDX-License-Identifier: Apache-2.0
"""Nothing the rig starts on a leash outlives its session or its time limit."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rig import leash

LEASH = [sys.executable, "-I", leash.__file__]


def start(*words: str, seconds: float = 60) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([*LEASH, str(seconds), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout as stdout:
        return process, int(stdout.readline())


def is_gone(pid: int, seconds: float = 10) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(handle)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)])
def test_exit_status_comes_back(script: str, status: int) -> None:
    process, _ = start("sh", "-c", script)
    with process:
        assert process.wait(10) == status


def test_time_limit_ends_the_command_and_its_children(tmp_path: Path) -> None:
    begin = time.monotonic()
    process, pid = start("sh", "-c", f"sleep 60 & echo $! >{tmp_path}/child; wait", seconds=1.5)
    with process:
        assert process.wait(10) == leash.TIME_LIMIT_STATUS
    assert 1.5 <= time.monotonic() - begin < 10
    assert is_gone(pid)
    assert is_gone(int((tmp_path / "child").read_text()))


def test_letting_go_ends_the_command() -> None:
    process, pid = start("sleep", "60")
    with process:
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == leash.LET_GO_STATUS
    assert is_gone(pid)


def test_a_killed_session_takes_the_command_with_it() -> None:
    code = (
        "import subprocess, sys, time\n"
        f"leash = subprocess.Popen({[*LEASH, '60', 'sleep', '60']!r}, stdin=subprocess.PIPE)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout
        pid = int(session.stdout.readline())
        os.kill(pid, 0)
        session.send_signal(signal.SIGKILL)
    assert is_gone(pid)


def test_a_killed_leash_takes_the_command_with_it() -> None:
    process, pid = start("sleep", "60")
    with process:
        process.kill()
    assert is_gone(pid)
