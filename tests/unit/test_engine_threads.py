# SPDX-License-Identifier: Apache-2.0
"""Which threads follow the memory, and why others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from numaplacement.engine.cells import Cell
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.process import ThreadFacts, cgroup_path, hold, read_threads
from numaplacement.engine.threads import cpus_by_cell, follow, message, plan_threads, restore
from numaplacement.engine.verdict import ThreadOutcome
from tests.unit.engine_world import PID, SimulatedKernel, World

NODES = [frozenset(range(4 * node, 4 * node + 4)) for node in range(4)]
ALL = frozenset(range(16))
TARGET = NODES[0]


def thread(number: int = 1, **more: Any) -> ThreadFacts:
    facts: dict[str, Any] = {
        "thread_id": number,
        "name": "CPU 0/KVM",
        "affinity": ALL,
        "mems_allowed": frozenset(range(4)),
        "cpuset": ALL,
    }
    return ThreadFacts(**(facts | more))


@pytest.mark.parametrize(
    ("facts", "cpus"),
    [
        ({}, TARGET),
        ({"cpuset": frozenset({2, 3, 4, 5}), "affinity": frozenset({2, 3, 4, 5})}, {2, 3}),
        ({"cpuset": frozenset({2, 3, 4, 5})}, {2, 3}),
        ({"cpuset": None}, TARGET),
        ({"affinity": NODES[2]}, TARGET),
        ({"affinity": NODES[2] | NODES[1]}, TARGET),
        ({"cpuset": frozenset(range(6)), "affinity": frozenset({4, 5})}, TARGET),
    ],
)
def test_follows(facts: dict[str, Any], cpus: set[int]) -> None:
    plan = plan_threads([thread(**facts)], target_cpus=TARGET, numa_node_cpus=NODES)
    assert (plan.change, plan.left, plan.there) == ({1: cpus}, {}, {})


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"affinity": frozenset({5})}, "pinned"),
        ({"affinity": frozenset({0, 5})}, "pinned"),
        ({"affinity": ALL - {3}}, "pinned"),
        ({"cpuset": NODES[1], "affinity": NODES[1]}, "no CPU of the target"),
        ({"realtime": "FIFO"}, "realtime policy FIFO"),
        ({"realtime": "DEADLINE", "affinity": frozenset({5})}, "realtime"),
    ],
)
def test_is_left(facts: dict[str, Any], why: str) -> None:
    plan = plan_threads([thread(**facts)], target_cpus=TARGET, numa_node_cpus=NODES)
    assert (plan.change, plan.there) == ({}, {})
    assert why in plan.left[1]


@pytest.mark.parametrize("affinity", [frozenset({2}), TARGET, frozenset({0, 3})])
@pytest.mark.parametrize("realtime", ["", "FIFO"])
def test_what_is_there_already_is_not_touched(affinity: frozenset[int], realtime: str) -> None:
    plan = plan_threads([thread(affinity=affinity, realtime=realtime)], target_cpus=TARGET, numa_node_cpus=NODES)
    assert (plan.change, plan.left, plan.there) == ({}, {}, {1: TARGET})


def test_without_a_readable_cpuset_the_widest_threads_tell_what_is_allowed() -> None:
    threads = [thread(1, cpuset=None), thread(2, cpuset=None, affinity=frozenset({7}))]
    plan = plan_threads(threads, target_cpus=TARGET, numa_node_cpus=NODES)
    assert set(plan.change) == {1}
    assert set(plan.left) == {2}


def test_a_single_cpu_of_a_small_numa_node_may_be_a_pin() -> None:
    nodes = [frozenset({node}) for node in range(4)]
    plan = plan_threads(
        [thread(affinity=frozenset({2}), cpuset=frozenset(range(4)))], target_cpus=nodes[0], numa_node_cpus=nodes
    )
    assert set(plan.left) == {1}


def test_a_target_without_cpus_leaves_everything() -> None:
    plan = plan_threads([thread()], target_cpus=frozenset(), numa_node_cpus=NODES)
    assert set(plan.left) == {1}
    assert "which has no CPU" in message(plan.left, frozenset())


def test_messages_count() -> None:
    text = message({1: "pinned", 2: "pinned", 3: "odd"}, TARGET)
    assert text == "left as they were: 2 threads pinned; 1 thread odd; CPUs 0-3 wanted"
    assert message({}, TARGET) == ""


@pytest.mark.parametrize(
    ("text", "path"),
    [("0::/kubepods/pod1\n", "/kubepods/pod1"), ("4:cpuset:/x\n0::/y\n", "/y"), ("4:cpuset:/x\n", ""), ("", "")],
)
def test_cgroup_paths(text: str, path: str) -> None:
    assert cgroup_path(text) == path


def test_each_thread_is_bound_by_the_cpuset_of_its_own_cgroup(tmp_path: Path) -> None:
    """KubeVirt puts all threads but the vCPUs' into the threaded child `housekeeping`."""
    for thread_id, name, cgroup in ((7, "qemu", "/c/housekeeping"), (8, "CPU 0/KVM", "/c"), (9, "IO a", "/c/gone")):
        task = tmp_path / "proc/7/task" / str(thread_id)
        task.mkdir(parents=True)
        (task / "stat").write_text(f"{thread_id} ({name}) S {' '.join(['0'] * 49)}\n")
        (task / "status").write_text("Cpus_allowed_list:\t0-15\nMems_allowed_list:\t0-3\n")
        (task / "cgroup").write_text(f"0::{cgroup}\n")
    for cgroup, cpus in (("c", "2-5"), ("c/housekeeping", "1,6,8-9")):
        (tmp_path / "sys/fs/cgroup" / cgroup).mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup" / cgroup / "cpuset.cpus.effective").write_text(cpus + "\n")
    threads = read_threads(7, Kernel(proc=tmp_path / "proc", sys=tmp_path / "sys"))
    plan = plan_threads(threads, target_cpus=NODES[0] | NODES[2], numa_node_cpus=NODES)
    assert plan.change == {7: {1, 8, 9}, 8: {2, 3}, 9: {2, 3}}


CELLS = (
    Cell(number=0, vcpus=frozenset({0, 1})),
    Cell(number=1, vcpus=frozenset({2, 12})),
    Cell(number=2, vcpus=frozenset({3})),
)
BY_NUMA_NODE = dict(enumerate(NODES))


@pytest.mark.parametrize(
    ("name", "cpus"),
    [
        ("CPU 0/KVM", NODES[3]),
        ("CPU 1/TCG", NODES[3]),
        ("CPU 12/KVM", NODES[1]),
        ("CPU 3/KVM", None),
        ("CPU 9/KVM", NODES[1] | NODES[3]),
        ("IO iothread1", NODES[1] | NODES[3]),
        ("worker", NODES[1] | NODES[3]),
        ("my CPU 3/KVM", NODES[1] | NODES[3]),
    ],
)
def test_vcpus_follow_their_cell_and_the_others_may_go_to_all_targets(name: str, cpus: frozenset[int] | None) -> None:
    assert cpus_by_cell(CELLS, {0: 3, 1: 1}, BY_NUMA_NODE)(thread(name=name)) == cpus


def test_a_vcpu_whose_cell_stays_is_let_alone_and_a_cpuset_binds_the_others() -> None:
    threads = [
        thread(1, name="CPU 0/KVM", cpuset=frozenset({3, 4, 12, 13}), affinity=frozenset({3, 4, 12, 13})),
        thread(2, name="CPU 3/KVM"),
        thread(3, name="emulator", cpuset=frozenset({4, 5, 12}), affinity=frozenset({4, 5, 12})),
    ]
    plan = plan_threads(threads, target_cpus=cpus_by_cell(CELLS, {0: 3}, BY_NUMA_NODE), numa_node_cpus=NODES)
    assert (plan.change, plan.alone, plan.left, plan.there) == ({1: {12, 13}, 3: {12}}, {2}, {}, {})


TWO_CPUS_EACH = [frozenset({2 * node, 2 * node + 1}) for node in range(4)]


def following(world: World, root: Path, **how: Any) -> tuple[ThreadOutcome, SimulatedKernel]:
    kernel = SimulatedKernel(world, root)
    for thread_id, cpus in how.pop("affinity", {}).items():
        world.affinity[thread_id] = cpus
    with hold(PID, kernel, None) as process:
        return follow(process, numa_node_cpus=TWO_CPUS_EACH, **how), kernel


def test_threads_follow_by_cell_and_what_they_had_is_kept(tmp_path: Path) -> None:
    world = World(regions=[], thread_names=("qemu", "CPU 0/KVM", "CPU 2/KVM", "CPU 3/KVM", "IO a"))
    wanted = cpus_by_cell(CELLS, {0: 1, 1: 2}, dict(enumerate(TWO_CPUS_EACH)))
    outcome, _ = following(world, tmp_path, target_cpus=wanted, affinity={PID + 2: {7}, PID + 4: {2, 5}})
    assert world.affinity == {
        PID: {2, 3, 4, 5},
        PID + 1: {2, 3},
        PID + 2: {7},
        PID + 3: set(range(8)),
        PID + 4: {2, 5},
    }
    assert (outcome.followed, outcome.left, outcome.cpus) == (3, 1, {2, 3, 4, 5})
    assert outcome.earlier == ((PID, frozenset(range(8))), (PID + 1, frozenset(range(8))))
    assert outcome.message == "left as they were: 1 thread pinned to CPUs by whoever runs the process; CPUs 4-5 wanted"


def test_threads_go_back_to_what_they_had_unless_somebody_else_changed_it(tmp_path: Path) -> None:
    world = World(regions=[], thread_names=("qemu", "CPU 0/KVM", "CPU 1/KVM", "IO a"))
    outcome, kernel = following(world, tmp_path, target_cpus=TWO_CPUS_EACH[0], affinity={PID + 1: {2, 3}, PID + 3: {1}})
    assert (outcome.followed, outcome.cpus) == (4, {0, 1})
    world.affinity[PID + 2] = {6}
    with hold(PID, kernel, None) as process:
        back = restore(process, outcome)
    assert world.affinity == {PID: set(range(8)), PID + 1: {2, 3}, PID + 2: {6}, PID + 3: {1}}
    assert (back.followed, back.earlier) == (2, ())
    assert back.message == "2 threads put back on the CPUs had before, since nothing moved"


def test_threads_that_all_went_back_follow_nothing(tmp_path: Path) -> None:
    world = World(regions=[])
    outcome, kernel = following(world, tmp_path, target_cpus=TWO_CPUS_EACH[0])
    with hold(PID, kernel, None) as process:
        back = restore(process, outcome)
        again = restore(process, back)
    assert (back.followed, back.cpus, again) == (0, frozenset(), back)
