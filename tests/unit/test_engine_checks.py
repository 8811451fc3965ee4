# SPDX-License-Identifier: Apache-2.0
"""Realtime VMs are refused, also where QEMU does not say which of its threads run vCPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Allow, Outcome
from tests.unit.engine_world import PID, Region, World, run_in

HEAP = 0x7F0000000000
FIFO = 1
UNNAMED = ("qemu-system-x86", "qemu-system-x86", "qemu-system-x86")


def world(*names: str, realtime: int | None) -> World:
    """A VM with threads of these names, one of them realtime."""

    def stat(thread: int) -> str:
        policy = FIFO if thread == realtime else 0
        return f"{PID} ({names[thread]}) S {'0 ' * 18}777 {'0 ' * 18}{policy} {'0 ' * 10}\n"

    texts = {f"proc/{PID}/task/{PID + thread}/stat": (lambda each=thread: stat(each)) for thread in range(len(names))}
    return World([Region(HEAP, [1] * 64)], thread_names=names, texts=texts)


@pytest.mark.parametrize("realtime", [0, 2])
def test_where_no_thread_is_named_any_may_be_a_vcpu(tmp_path: Path, realtime: int) -> None:
    verdict = run_in(world(*UNNAMED, realtime=realtime), tmp_path)
    assert verdict.outcome is Outcome.REFUSED
    assert verdict.refusals[0].reason is Reason.REALTIME
    assert verdict.refusals[0].evidence == (
        "1 thread with policy FIFO: qemu-system-x86; no thread is named as a vCPU (QEMU does so with -name"
        " debug-threads=on), so each may be one"
    )


def test_where_vcpus_are_named_others_may_be_realtime(tmp_path: Path) -> None:
    assert run_in(world("qemu", "CPU 0/KVM", "IO a", realtime=2), tmp_path).outcome is Outcome.PLACED
    refused = run_in(world("qemu", "CPU 0/KVM", "IO a", realtime=1), tmp_path / "vcpu").refusals[0]
    assert refused.evidence == "1 vCPU thread with policy FIFO: CPU 0/KVM"


def test_realtime_may_be_allowed_and_without_it_nothing_is_refused(tmp_path: Path) -> None:
    allowed = run_in(world(*UNNAMED, realtime=1), tmp_path, allow=frozenset({Allow.REALTIME}))
    assert allowed.outcome is Outcome.PLACED
    assert run_in(world(*UNNAMED, realtime=None), tmp_path / "none").outcome is Outcome.PLACED
