# SPDX-License-Identifier: Apache-2.0
"""Reading /proc: a made-up one for what is hard to bring about, the machine's own for what is not."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from numaplacement.agent.identify import ProcessFacts
from numaplacement.agent.processes import held, processes_in_pods, start_time
from numaplacement.agent.vm_memory import SHARE, VmMemories
from numaplacement.engine.kernel import Kernel

POD = "6e7b6e74-c27a-488b-ac18-c6c49d07c506"
OTHER_POD = "e96ac264-6315-4b6b-9ffd-06ba6ed100d3"
NUMA_MAPS = """\
7f0000000000 default anon=100 dirty=100 N0=60 N1=40 kernelpagesize_kB=4
7f1000000000 bind:1 file=/memfd:ram huge dirty=3 N1=3 kernelpagesize_kB=2048
"""


class Host:
    """A folder that looks like /proc."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "self").mkdir()
        (root / "uptime").write_text("1 1\n")

    def add(self, pid, *, pod=POD, name="qemu-system-x86_64", words=("-name", "guest=prod_db"), start=500):
        entry = self.root / str(pid)
        entry.mkdir()
        (entry / "cgroup").write_text(f"0::/kubepods/pod{pod}/abc\n" if pod else "0::/init.scope\n")
        (entry / "exe").symlink_to(f"/usr/bin/{name}")
        (entry / "cmdline").write_bytes(
            b"\0".join([f"/usr/bin/{name}".encode(), *(word.encode() for word in words)]) + b"\0"
        )
        (entry / "stat").write_text(f"{pid} ({name[:15]}) S 1 1 1 " + "0 " * 15 + f"{start} 0 0\n")
        (entry / "numa_maps").write_text(NUMA_MAPS)
        return entry

    def found(self, *, pod=POD):
        return processes_in_pods(self.root, wanted=lambda uid: uid == pod)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_the_processes_of_one_pod(host):
    host.add(20, name="virt-launcher", words=())
    host.add(9)
    host.add(30, pod=OTHER_POD)
    host.add(1, pod="")
    assert [facts.pid for facts in host.found()] == [9, 20]


def test_what_is_known_of_a_process(host):
    host.add(9, words=("-name", "guest=prod_db", ""), start=777)
    assert host.found() == (
        ProcessFacts(
            pid=9,
            start_time=777,
            cgroup=f"0::/kubepods/pod{POD}/abc\n",
            executable="/usr/bin/qemu-system-x86_64",
            command_line=("/usr/bin/qemu-system-x86_64", "-name", "guest=prod_db"),
        ),
    )


@pytest.mark.parametrize("missing", ["cgroup", "stat", "cmdline"])
def test_a_process_that_ends_meanwhile_is_left_out(host, missing):
    (host.add(9) / missing).unlink()
    host.add(10)
    assert [facts.pid for facts in host.found()] == [10]


def test_a_process_without_a_program(host):
    (host.add(9) / "exe").unlink()
    assert host.found()[0].executable == ""


@pytest.mark.parametrize("name", ["a b", "a) S 1", "((", "x)"])
def test_any_name_leaves_the_start_time_readable(tmp_path, name):
    (tmp_path / "stat").write_text(f"9 ({name}) S 1 1 1 " + "0 " * 15 + "4711 0 0\n")
    assert start_time(tmp_path) == 4711


def test_the_start_time_of_a_real_process():
    stat = Path("/proc/self/stat").read_text()
    assert start_time(Path("/proc/self")) == int(stat[stat.rindex(")") + 2 :].split()[19])


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def open_files():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def facts_of(process):
    return ProcessFacts(
        pid=process.pid,
        start_time=start_time(Path(f"/proc/{process.pid}")),
        cgroup="",
        executable="",
        command_line=(),
    )


def test_a_process_is_held_by_a_pidfd_of_its_own(sleeper):
    before = open_files()
    with held(facts_of(sleeper), Kernel()) as pidfd:
        assert Path(f"/proc/self/fdinfo/{pidfd}").read_text().split("Pid:")[1].split()[0] == str(sleeper.pid)
    assert open_files() == before


def test_a_later_process_of_that_id_is_not_held(sleeper):
    before = open_files()
    facts = facts_of(sleeper)
    with held(replace(facts, start_time=facts.start_time - 1), Kernel()) as pidfd:
        assert pidfd is None
    assert open_files() == before


def test_a_process_that_has_ended_is_not_held(sleeper):
    facts = facts_of(sleeper)
    sleeper.kill()
    sleeper.communicate()
    with held(facts, Kernel()) as pidfd:
        assert pidfd is None


class Clock:
    """Time that passes when it is told to, and a fixed while at each look."""

    def __init__(self, *, step=0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_memory_of_each_vm_by_numa_node(host):
    host.add(9)
    host.add(30, pod=OTHER_POD, words=("-name", "guest=prod_web"))
    host.add(40, pod=OTHER_POD, words=())  # libvirt's probe
    host.add(50, name="virt-launcher")
    memories = VmMemories(Kernel(proc=host.root), clock=Clock()).look()
    assert {(memory.pod_uid, memory.guest) for memory in memories} == {(POD, "prod_db"), (OTHER_POD, "prod_web")}
    assert dict(memories[0].bytes) == {0: 60 * 4096, 1: 40 * 4096 + 3 * 2**21}


def test_a_large_vm_is_looked_at_rarely(host):
    entry = host.add(9)
    clock = Clock(step=0.5)  # reading takes a second in these terms
    memories = VmMemories(Kernel(proc=host.root), clock=clock)
    first = memories.look()
    (entry / "numa_maps").write_text("7f0000000000 default anon=1 N3=1 kernelpagesize_kB=4\n")
    clock.now += 0.9 * 0.5 / SHARE
    assert memories.look() == first
    clock.now += 0.2 * 0.5 / SHARE
    assert dict(memories.look()[0].bytes) == {3: 4096}


def test_a_vm_that_was_moved_is_looked_at_however_large(host):
    entry = host.add(9)
    memories = VmMemories(Kernel(proc=host.root), clock=Clock(step=0.5))
    memories.look()
    (entry / "numa_maps").write_text("7f0000000000 default anon=1 N3=1 kernelpagesize_kB=4\n")
    assert dict(memories.look(fresh=OTHER_POD)[0].bytes) != {3: 4096}
    assert dict(memories.look(fresh=POD)[0].bytes) == {3: 4096}


def test_another_process_of_that_id_is_another_vm(host):
    entry = host.add(9)
    memories = VmMemories(Kernel(proc=host.root), clock=Clock(step=0.5))
    memories.look()
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    host.add(9, start=900, words=("-name", "guest=prod_new"))
    assert [memory.guest for memory in memories.look()] == ["prod_new"]


def test_a_vm_that_ends_while_it_is_read_is_left_out(host):
    (host.add(9) / "numa_maps").unlink()
    assert VmMemories(Kernel(proc=host.root), clock=Clock()).look() == ()
