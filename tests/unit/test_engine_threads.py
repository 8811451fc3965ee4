# SPDX-License-Identifier: Apache-2.0
"""Which threads follow the memory, and why others do not."""

from __future__ import annotations

from typing import Any

import pytest

from numaplacement.engine.process import ThreadFacts, cgroup_path
from numaplacement.engine.threads import message, plan_threads

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
        ({"cpuset": frozenset(range(6)), "affinity": frozenset({4, 5})}, TARGET),
    ],
)
def test_follows(facts: dict[str, Any], cpus: set[int]) -> None:
    plan = plan_threads([thread(**facts)], target_cpus=TARGET, numa_node_cpus=NODES)
    assert (plan.change, plan.left, plan.there) == ({1: cpus}, {}, set())


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
    assert (plan.change, plan.there) == ({}, set())
    assert why in plan.left[1]


@pytest.mark.parametrize("affinity", [frozenset({2}), TARGET, frozenset({0, 3})])
@pytest.mark.parametrize("realtime", ["", "FIFO"])
def test_what_is_there_already_is_not_touched(affinity: frozenset[int], realtime: str) -> None:
    plan = plan_threads([thread(affinity=affinity, realtime=realtime)], target_cpus=TARGET, numa_node_cpus=NODES)
    assert (plan.change, plan.left, plan.there) == ({}, {}, {1})


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
