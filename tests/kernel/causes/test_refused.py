# SPDX-License-Identifier: Apache-2.0
"""What keeps the whole of a process where it is; the other refusals are in test_engine_refusals.py."""

from __future__ import annotations

import os

import pytest

from numaplacement.engine.reasons import Reason
from tests.kernel.causes.cause_process import cause_process
from tests.kernel.causes.record import Judge
from tests.kernel.memory_process import MIB, in_a_fork
from tests.kernel.test_engine_move import by_numa_node, move
from tests.kernel.test_engine_refusals import refused, untouched

pytestmark = pytest.mark.usefixtures("autonuma_off")


@pytest.mark.cause(Reason.NO_ACCESS)
def test_files_may_be_read_and_pages_not(judge: Judge) -> None:
    """an agent of the VM's effective user id and another real one, without CAP_SYS_PTRACE"""
    with cause_process(("base", MIB, [1])) as child:
        assert child.ask("become 1001") == "done"
        with untouched(child):
            verdict = in_a_fork(lambda: os.setresuid(1002, 1001, 1001), lambda: move(child.pid))
        refused(verdict, Reason.NO_ACCESS)
        judge(verdict, least=MIB)
        assert by_numa_node(verdict.before) == child.pages()


@pytest.mark.cause(Reason.STRICT_BINDING)
def test_memory_bound_to_its_numa_node(judge: Judge) -> None:
    """mbind(2) to NUMA node 1, as QEMU does for guestMappingPassthrough"""
    with cause_process(("bound", 16 * MIB, [1])) as child, untouched(child):
        verdict = move(child.pid)
        refused(verdict, Reason.STRICT_BINDING)
        judge(verdict, least=16 * MIB)
