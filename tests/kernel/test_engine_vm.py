# SPDX-License-Identifier: Apache-2.0
"""The engine and real VMs: QEMU under the emulated host's own KVM."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from numaplacement.engine.reasons import NOT_ASKED, Reason
from numaplacement.engine.verdict import Outcome, PageClass
from tests.kernel.causes.record import Judge
from tests.kernel.memory_process import MIB, PAGE, wait_for
from tests.kernel.test_engine_move import SLOW, asked_residue, by_numa_node, move, residue
from tests.rig.vm import VmSpec, numa_pages, start_vm


def affinities(pid: int) -> dict[int, set[int]]:
    return {int(thread.name): os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()}


def stop(pid: int) -> None:
    """Stop a process and wait until each of its threads is: one in a long kernel call goes on for a while."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_for(lambda: all("State:\tT" in (task / "status").read_text() for task in tasks.iterdir()))


def test_a_running_vm_is_brought_together_without_a_page_going_wrong() -> None:
    vm = start_vm(VmSpec(namespace="prod", name="db", memory=512 * MIB))
    try:
        assert set(numa_pages(vm.pid, vm.ram_address)) == {1, 2, 3}
        verdict = move(vm.pid, call_latency=SLOW)
        assert numa_pages(vm.pid, vm.ram_address) == {0: 512 * MIB // PAGE}
        assert verdict.outcome is Outcome.PLACED, verdict
        assert asked_residue(verdict) == {}
        assert verdict.threads.left == 0
        assert set(map(frozenset, affinities(vm.pid).values())) == {frozenset({0})}
        passes = vm.passes()
        wait_for(lambda: vm.passes() > passes + 1)
        assert vm.errors() == 0
        stop(vm.pid)
        pages = numa_pages(vm.pid)
        again = move(vm.pid)
        assert (again.outcome, by_numa_node(again.before)) == (Outcome.PLACED, pages)
        assert again.before == again.after
    finally:
        vm.stop()


@pytest.mark.cause(Reason.PINNED_BY_DEVICE)
@pytest.mark.usefixtures("autonuma_off")
def test_a_vm_with_a_device_is_refused_before_a_page_is_touched(judge: Judge) -> None:
    """a VM under KVM with a PCI device passed through by VFIO"""
    vm = start_vm(VmSpec(namespace="prod", name="gpu", memory=64 * MIB, numa_nodes=(1,), vfio=True))
    try:
        vm.pause()
        stop(vm.pid)
        before, cpus = numa_pages(vm.pid, vm.ram_address), affinities(vm.pid)
        all_before = numa_pages(vm.pid)
        verdict = move(vm.pid)
        assert verdict.calls.count == 0
        assert (numa_pages(vm.pid, vm.ram_address), affinities(vm.pid)) == (before, cpus)
        assert verdict.outcome is Outcome.REFUSED
        judge(verdict, least=60 * MIB, most=65 * MIB)
        refusal = verdict.refusals[0]
        assert refusal.reason is Reason.PINNED_BY_DEVICE
        assert "/dev/vfio/" in refusal.evidence
        assert "hot-unplug" in refusal.remedy.lower()
        assert by_numa_node(verdict.before) == all_before
        pinned = residue(verdict)[Reason.PINNED_BY_DEVICE]
        assert 60 * MIB <= pinned <= 65 * MIB
        rest = set(residue(verdict)) - {Reason.PINNED_BY_DEVICE} - NOT_ASKED
        assert rest == {Reason.NOT_ATTEMPTED}
        assert all(row.page_class is not PageClass.HUGETLB for row in verdict.after)
    finally:
        vm.stop()
