# SPDX-License-Identifier: Apache-2.0
"""Where the engine refuses, on a real kernel: nothing is touched and the verdict says why."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from numaplacement.engine.errors import EngineError
from numaplacement.engine.host import read_host
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Outcome, Verdict
from tests.kernel.causes.cause_process import setting
from tests.kernel.causes.record import Judge
from tests.kernel.memory_process import (
    MIB,
    PAGE,
    MemoryProcess,
    cgroup,
    in_a_fork,
    memory_process,
)
from tests.kernel.test_engine_move import by_numa_node, move, residue

pytestmark = pytest.mark.usefixtures("autonuma_off")
LIBC = ctypes.CDLL(None, use_errno=True)
CAP_SYS_PTRACE, CAP_SYS_NICE, CAP_SYS_ADMIN = 19, 23, 21
NR_CAPSET, NR_MOVE_PAGES = 126, 279


@contextlib.contextmanager
def untouched(child: MemoryProcess) -> Iterator[None]:
    """Whatever happens inside, the stopped child keeps its pages and its CPUs."""
    child.stop()
    # or khugepaged fills its mappings up; to switch that off whole would change the host's watermarks
    with setting("/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none", "0"):
        before, cpus = placement(child.pid), child.affinity()
        yield
        after = placement(child.pid)
    assert ([row for row in before if row not in after], [row for row in after if row not in before]) == ([], [])
    assert child.affinity() == cpus


def placement(pid: int) -> list[list[str]]:
    """Address, policy and pages by NUMA node of each mapping with memory of its own; files are anybody's to move."""
    lines = Path(f"/proc/{pid}/numa_maps").read_text().splitlines()
    own = [line for line in lines if "anon=" in line or "memfd" in line]
    return [[*line.split()[:2], *re.findall(r" N\d+=\d+", line)] for line in own]


def refused(verdict: Verdict, reason: Reason) -> None:
    assert verdict.outcome is Outcome.REFUSED, verdict
    assert verdict.refusals[0].reason is reason
    assert verdict.before == verdict.after
    assert verdict.calls.count == 0
    assert verdict.refusals[0].evidence in verdict.message


def drop(*numbers: int) -> None:
    """Give up capabilities for good (capset(2))."""
    mask = (1 << 41) - 1
    for number in numbers:
        mask &= ~(1 << number)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(mask & 0xFFFFFFFF, mask & 0xFFFFFFFF, 0, mask >> 32, mask >> 32, 0)
    if LIBC.syscall(NR_CAPSET, header, data):
        raise OSError(ctypes.get_errno(), "capset")


def forbid_move_pages() -> None:
    """Let a seccomp filter answer EPERM to move_pages, as the default profiles of container runtimes do."""

    class Instruction(ctypes.Structure):
        _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Instruction))]

    code = (Instruction * 4)(
        (0x20, 0, 0, 0), (0x15, 0, 1, NR_MOVE_PAGES), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)
    )
    program = Program(4, code)
    if LIBC.prctl(38, 1, 0, 0, 0) or LIBC.prctl(22, 2, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def join(group: Path) -> Callable[[], None]:
    return lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None


@pytest.mark.cause(Reason.NODE_HAS_NO_MEMORY)
def test_a_numa_node_that_does_not_exist(judge: Judge) -> None:
    """a NUMA node this host does not have"""
    with memory_process(("base", MIB, [1])) as child, untouched(child):
        verdict = move(child.pid, target=9)
        refused(verdict, Reason.NODE_HAS_NO_MEMORY)
        judge(verdict, least=MIB)
        assert [refusal.reason for refusal in verdict.refusals] == [Reason.NODE_HAS_NO_MEMORY]


@pytest.mark.cause(Reason.SYSCALL_BLOCKED)
def test_seccomp_forbids_the_call_and_the_bytes_are_still_told(judge: Judge) -> None:
    """a seccomp filter on the agent that forbids move_pages(2)"""
    with memory_process(("base", MIB, [1]), ("memfd", MIB, [2])) as child, untouched(child):
        verdict = in_a_fork(forbid_move_pages, lambda: move(child.pid))
        refused(verdict, Reason.SYSCALL_BLOCKED)
        judge(verdict, least=2 * MIB)
        assert by_numa_node(verdict.before) == child.pages()


def test_without_the_right_to_look_there_is_no_verdict() -> None:
    with memory_process(("base", MIB, [1])) as child, untouched(child):
        result = in_a_fork(lambda: drop(CAP_SYS_PTRACE), lambda: move(child.pid))
        assert isinstance(result, EngineError)
        assert "CAP_SYS_PTRACE" in str(result)


@pytest.mark.cause(Reason.SHARED_WITHOUT_PRIVILEGE)
def test_without_cap_sys_nice_what_is_shared_stays_and_is_named(judge: Judge) -> None:
    """pages shared with a child by fork(2), without CAP_SYS_NICE"""
    with memory_process(("base", 3 * MIB, [1]), ("base", 2 * MIB, [2]), share=True) as child:
        assert child.ask(f"more {MIB} 3") == "done"
        verdict: Any = in_a_fork(lambda: drop(CAP_SYS_NICE), lambda: move(child.pid))
        assert isinstance(verdict, Verdict), verdict
        judge(verdict, least=5 * MIB)
        assert verdict.outcome is Outcome.RESIDUE
        assert residue(verdict)[Reason.SHARED_WITHOUT_PRIVILEGE] >= 5 * MIB
        assert child.pages(region=0) == {1: 3 * MIB // PAGE}
        assert Reason.UNEXPLAINED not in residue(verdict)


def test_without_cap_sys_admin_huge_pages_still_move_whole() -> None:
    with memory_process(("thp", 16 * MIB, [1, 2]), ("base", 2 * MIB, [3])) as child:
        child.stop()
        verdict: Any = in_a_fork(lambda: drop(CAP_SYS_ADMIN), lambda: move(child.pid))
        assert verdict.outcome is Outcome.PLACED, verdict
        assert verdict.split == 0
        assert child.pages(region=0) == {0: 16 * MIB // PAGE}


@pytest.mark.cause(Reason.VM_CPUSET)
def test_the_cpuset_of_the_vm_keeps_it_off_the_target(judge: Judge) -> None:
    """cpuset.mems of the VM's cgroup without the target"""
    with (
        cgroup("vm-cpuset", cpuset_mems="1-3") as group,
        memory_process(("base", MIB, [1]), prepare=join(group)) as child,
        untouched(child),
    ):
        verdict = move(child.pid)
        refused(verdict, Reason.VM_CPUSET)
        judge(verdict, least=MIB)


@pytest.mark.cause(Reason.AGENT_CPUSET)
def test_the_cpuset_of_the_agent_keeps_it_off_the_target(judge: Judge) -> None:
    """cpuset.mems of the agent's own cgroup without the target"""
    with (
        cgroup("agent-cpuset", cpuset_mems="2-3") as group,
        memory_process(("base", MIB, [1])) as child,
    ):
        verdict = in_a_fork(join(group), lambda: move(child.pid))
        refused(verdict, Reason.AGENT_CPUSET)
        judge(verdict, least=MIB)
        assert "2-3" in verdict.refusals[0].evidence
        assert child.pages(region=0) == {1: MIB // PAGE}  # the cpuset itself moves what the copy shares with others
        assert child.affinity() == {0, 1, 2, 3}


def test_threads_keep_to_their_cpuset() -> None:
    with (
        cgroup("vm-cpus", cpuset_cpus="1-2") as group,
        memory_process(("base", MIB, [1]), prepare=join(group)) as child,
    ):
        verdict = move(child.pid)
        assert verdict.outcome is Outcome.PLACED
        assert (verdict.threads.followed, verdict.threads.left) == (0, 1)
        assert "no CPU of the target" in verdict.threads.message
        assert child.affinity() == {1, 2}


@pytest.mark.cause(Reason.REALTIME)
def test_realtime_vcpus_are_refused(judge: Judge) -> None:
    """a vCPU thread with policy FIFO"""
    with memory_process(("base", MIB, [1]), name="CPU 0/KVM") as child:
        os.sched_setscheduler(child.pid, os.SCHED_FIFO, os.sched_param(1))
        with untouched(child):
            verdict = move(child.pid)
            refused(verdict, Reason.REALTIME)
            judge(verdict, least=MIB)


def test_the_host_as_it_is() -> None:
    host = read_host(Kernel())
    assert [node.numa_node for node in host.numa_nodes] == [0, 1, 2, 3]
    assert [node.cpus for node in host.numa_nodes] == [{0}, {1}, {2}, {3}]
    assert all(node.has_memory and 0 < node.safe < node.free < node.total for node in host.numa_nodes)
    assert host.numa_nodes[2].distances[2] == 10
    assert host.move_pages_allowed
    assert host.mems_allowed == {0, 1, 2, 3}
    assert host.capabilities == {"CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"}


@pytest.mark.parametrize("gone", [True, False])
def test_a_process_that_is_not_there(gone: bool) -> None:
    with memory_process(("base", MIB, [1])) as child:
        child.process.kill()
        if gone:
            child.process.wait()
        assert move(child.pid).outcome is Outcome.PROCESS_GONE
