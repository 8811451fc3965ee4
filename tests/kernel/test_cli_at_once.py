# SPDX-License-Identifier: Apache-2.0
"""Moves by several `numaplace` at once: no two count on the same memory of a target."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from numaplacement.engine.host import safe_on
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.ledger import Ledger, Place
from tests.kernel.causes.cause_process import setting
from tests.kernel.memory_process import (
    MIB,
    PAGE,
    fill,
    free_above_watermarks,
    memory_process,
    nearly_full,
    reclaim,
    wait_for,
)
from tests.kernel.test_cli import Command, Run, begin, residue, run

__all__ = ["begin", "run"]
pytestmark = pytest.mark.usefixtures("autonuma_off")
SIZE = 24 * MIB
PROCESS = 8 * MIB  # at most, of a process beside its region
FAST = "--call-latency", "5s"
LEFT = 3 * (SIZE + PROCESS)
TOO_LITTLE = SIZE // 2  # beside what the first two are still to take


def pause(command: Command) -> None:
    os.kill(command.pid, signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{command.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


def own_bytes(pid: int) -> int:
    """Bytes of a process without its program's files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


def held_on(numa_node: int) -> int:
    ledger = Ledger()
    try:
        return ledger.held_by_others()[Place(numa_node)]
    finally:
        ledger.close()


def test_the_third_of_three_moves_at_once_finds_no_room_until_there_is_some(begin: Run, run: Run) -> None:
    """The first two are held in the middle, so that the third surely finds them there."""
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(memory_process(("base", SIZE, [numa_node]))) for numa_node in (1, 2, 3)]
        assert max(own_bytes(child.pid) for child in children) <= SIZE + PROCESS
        # or what the first leaves behind stays in lists of its CPU, where it is free for nobody else
        stack.enter_context(setting("/proc/sys/vm/percpu_pagelist_high_fraction", "100000"))
        hog = stack.enter_context(nearly_full(0, leave=LEFT))
        moves = [
            begin("move", "--pid", child.pid, "--to", 0, *FAST, "--bandwidth", "4Mi", "-o", "json")
            for child in children[:2]
        ]
        wait_for(lambda: all("Moving" in each.said() for each in moves))
        for each in moves:
            assert each.out.read_text() == ""  # not yet at its end
            pause(each)
        fill(hog, 0, leave=held_on(0) + TOO_LITTLE)
        before, scanned = children[2].pages(), reclaim()
        assert safe_on(0, Kernel()) >= SIZE + PROCESS, "by itself the third would fit"

        third = run("move", "--pid", children[2].pid, "--to", 0, "-o", "json")

        assert third.wait() == 4, third.said()
        ready = next(each for each in third.json()["conditions"] if each["type"] == "Ready")
        assert "is reserved by other moves" in ready["message"]
        assert third.json()["result"] == "Refused"
        assert residue(third.json())["destination-full"] >= SIZE
        assert children[2].pages() == before
        for each in moves:
            os.kill(each.pid, signal.SIGCONT)
        assert [each.wait() for each in moves] == [0, 0], [each.said() for each in moves]
        assert [child.pages(region=0) for child in children[:2]] == [{0: SIZE // PAGE}] * 2
        assert (reclaim(), free_above_watermarks(0)) == (scanned, True)

        children[0].process.kill()
        children[0].process.wait()
        wait_for(lambda: safe_on(0, Kernel()) >= SIZE + PROCESS)
        again = run("move", "--pid", children[2].pid, "--to", 0, *FAST)
        assert again.wait() == 0, again.said() + again.out.read_text()
        assert children[2].pages(region=0) == {0: SIZE // PAGE}
        assert [child.ask("intact") for child in children[1:]] == ["True", "True"]
