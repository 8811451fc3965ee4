# SPDX-License-Identifier: Apache-2.0
"""Kinds of memory that stay because of what they are, and one that only looks so."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Outcome
from tests.kernel.causes.cause_process import AtVerify, cause_process, status_kib
from tests.kernel.causes.record import Judge
from tests.kernel.memory_process import MIB, PAGE, cgroup, memory_process
from tests.kernel.test_engine_move import asked_residue, move
from tests.kernel.test_engine_refusals import join

pytestmark = pytest.mark.usefixtures("autonuma_off")


@pytest.mark.cause(Reason.UNMIGRATABLE_MAPPING)
def test_what_kvm_maps_for_a_vcpu(judge: Judge) -> None:
    """the pages KVM maps for a vCPU, on NUMA node 1; firmware through /dev/mem beside them"""
    regions = ("base", 4 * MIB, [1]), ("vcpu", 2 * PAGE, [1]), ("firmware", 16 * PAGE, [1])
    with cause_process(*regions) as child:
        verdict = move(child.pid)
        judge(verdict, least=2 * PAGE, most=2 * PAGE)
        assert verdict.outcome is Outcome.PLACED
        assert child.pages(region=1) == {1: 2}
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.UNMIGRATABLE_MAPPING)
def test_the_ring_of_a_packet_socket(judge: Judge) -> None:
    """the receive ring of a packet socket, which is the kernel's own memory"""
    with cause_process(("base", 4 * MIB, [1]), ("packet", 64 * PAGE, [2])) as child:
        verdict = move(child.pid)
        judge(verdict, least=64 * PAGE, most=64 * PAGE)
        assert child.pages(region=1) == {2: 64}
        assert child.pages(region=0) == {0: 4 * MIB // PAGE}


@pytest.mark.cause(Reason.SECRET_MEMORY)
def test_secret_memory(judge: Judge, absent: Callable[[str], None]) -> None:
    """memfd_secret(2), with secretmem.enable=1"""
    if not secret_memory():
        absent("memfd_secret is switched off")
    with cause_process(("base", 4 * MIB, [2]), ("secret", MIB, [1])) as child:
        verdict = move(child.pid)
        judge(verdict, least=MIB, most=MIB)
        assert verdict.outcome is Outcome.RESIDUE
        assert child.pages(region=0) == {0: 4 * MIB // PAGE}
        assert child.pages(region=1) == {1: MIB // PAGE}
        assert child.ask("intact") == "True"


def secret_memory() -> bool:
    setting = Path("/sys/module/secretmem/parameters/enable")
    return setting.exists() and setting.read_text().strip() in ("Y", "1")


@pytest.mark.cause(Reason.FILE_NOT_MIGRATABLE)
def test_dirty_pages_of_a_file_system_that_cannot_move_them(judge: Judge, tmp_path: Path) -> None:
    """a writable mapping of a file on ramfs, which has no way to move a dirty page"""
    subprocess.run(["mount", "-n", "-t", "ramfs", "ram", str(tmp_path)], check=True)
    try:
        regions = ("base", 4 * MIB, [2]), ("file", 32 * PAGE, [1])
        with cause_process(*regions, of_regions={1: {"path": str(tmp_path / "file")}}) as child:
            verdict = move(child.pid)
            judge(verdict, least=32 * PAGE, most=32 * PAGE)
            assert child.pages(region=0) == {0: 4 * MIB // PAGE}
            assert child.pages(region=1) == {1: 32}
            assert child.ask("intact") == "True"
    finally:
        subprocess.run(["umount", "-n", str(tmp_path)], check=True)


@pytest.mark.cause(None)
def test_locked_memory_moves(judge: Judge) -> None:
    """control: mlock(2) holds memory in RAM, not on a NUMA node"""
    with memory_process(("base", 4 * MIB, [1]), lock=True) as child:
        assert status_kib(child.pid, "VmLck") == 4 * 1024
        verdict = move(child.pid)
        judge(verdict, overcome=4 * MIB)
        assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {})
        assert child.pages(region=0) == {0: 4 * MIB // PAGE}
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.VANISHED)
def test_memory_given_back_while_it_was_moved(judge: Judge) -> None:
    """the process unmaps half of its memory while it is moved"""
    with cause_process(("base", 4 * MIB, [1]), ("base", 4 * MIB, [2])) as child:
        first = iter(["unmap 1"])
        verdict = move(child.pid, AtVerify(then=lambda: [child.ask(command) for command in first] and None))
        judge(verdict, least=4 * MIB)
        assert verdict.freed >= 4 * MIB
        assert verdict.outcome is Outcome.PLACED
        assert child.ask("intact") == "True"


@pytest.mark.cause(Reason.KERNEL_MEMORY)
def test_page_tables(judge: Judge) -> None:
    """2.3 MiB of page tables on NUMA node 2, for memory that is scattered"""
    with (
        cgroup("kernel-memory") as group,
        cause_process(("scattered", 600 * PAGE, [2]), prepare=join(group)) as child,
    ):
        verdict = move(child.pid)
        judge(verdict, least=600 * PAGE)
        assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {})
        assert child.ask("intact") == "True"
