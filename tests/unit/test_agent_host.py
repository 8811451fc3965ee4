# SPDX-License-Identifier: Apache-2.0
import dataclasses
import datetime

import pytest

from numaplacement import __version__
from numaplacement.agent.host import VmMemory, host_status, is_news
from numaplacement.agent.selftest import self_test
from numaplacement.api.conditions import find
from numaplacement.api.resources import to_document
from numaplacement.engine.host import HostFacts, HugePagePool, NumaNodeFacts

EARLY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LATE = EARLY + datetime.timedelta(hours=1)
GIB = 2**30
ALL = frozenset({"CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"})


def numa_node(number, *, free=4 * GIB, safe=3 * GIB, has_memory=True):
    return NumaNodeFacts(
        numa_node=number,
        has_memory=has_memory,
        cpus=frozenset({2 * number, 2 * number + 1}),
        distances=(10, 20) if number == 0 else (20, 10),
        total=8 * GIB,
        free=free,
        safe=safe,
        huge_pages=(HugePagePool(page_size=2**21, total=64 * 2**21, free=3 * 2**21),),
    )


def facts(**fields):
    given = {
        "kernel_release": "6.1.0-test",
        "numa_nodes": (numa_node(0), numa_node(1)),
        "numa_balancing": False,
        "swap_total": 0,
        "mems_allowed": frozenset({0, 1}),
        "move_pages_allowed": True,
        "seccomp_mode": 0,
        "capabilities": ALL,
    }
    return HostFacts(**(given | fields))


PASSED = {
    "Ready": "AllNeededPresent",
    "SyscallsAllowed": "MovePagesWorks",
    "CapabilitiesPresent": "CapabilitiesPresent",
    "CpusetOpen": "AllNumaNodesAllowed",
    "AutoNumaOff": "NumaBalancingOff",
    "SwapOff": "NoSwap",
}


def test_nothing_is_wrong():
    conditions = self_test(facts(), now=EARLY)
    assert {condition.type: condition.reason for condition in conditions} == PASSED
    assert {condition.status for condition in conditions} == {"True"}


BLOCKED = {"move_pages_allowed": False}
NO_PTRACE, NO_RIGHT = {"capabilities": ALL - {"CAP_SYS_PTRACE"}}, {"capabilities": frozenset()}
WRONG = {
    "seccomp": (BLOCKED | {"seccomp_mode": 2}, "SyscallsAllowed", ["a seccomp filter is in force"], False),
    "no call": (BLOCKED, "SyscallsAllowed", ["no seccomp filter"], False),
    "no ptrace": (NO_PTRACE, "CapabilitiesPresent", ["lacks CAP_SYS_PTRACE."], False),
    "no rights": (NO_RIGHT, "CapabilitiesPresent", ["CAP_SYS_NICE and CAP_SYS_PTRACE", "securityContext"], False),
    "cpuset": ({"mems_allowed": frozenset({0})}, "CpusetOpen", ["leaves out NUMA nodes 1"], True),
    "balancing": ({"numa_balancing": True}, "AutoNumaOff", ["kernel.numa_balancing"], True),
    "swap": ({"swap_total": 2 * GIB}, "SwapOff", ["2Gi"], True),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    fields, kind, words, still_ready = WRONG[name]
    conditions = self_test(facts(**fields), now=EARLY)
    failed = [condition.type for condition in conditions if condition.status == "False"]
    assert failed == ([kind] if still_ready else ["Ready", kind])
    for word in words:
        assert word in find(conditions, kind).message
    assert still_ready or find(conditions, "Ready").message == find(conditions, kind).message


def test_all_that_is_missing_is_in_ready():
    conditions = self_test(facts(move_pages_allowed=False, capabilities=frozenset()), now=EARLY)
    ready = find(conditions, "Ready")
    assert ready.reason == "MovePagesBlocked"
    assert "seccomp" in ready.message
    assert "CAP_SYS_NICE" in ready.message


def test_a_right_that_only_helps_is_mentioned():
    capabilities = find(self_test(facts(capabilities=ALL - {"CAP_SYS_ADMIN"}), now=EARLY), "CapabilitiesPresent")
    assert capabilities.status == "True"
    assert "Without CAP_SYS_ADMIN" in capabilities.message


def test_a_numa_node_without_memory_need_not_be_allowed():
    nodes = (numa_node(0), numa_node(1, has_memory=False))
    conditions = self_test(facts(numa_nodes=nodes, mems_allowed=frozenset({0})), now=EARLY)
    assert find(conditions, "CpusetOpen").status == "True"


VM = VmMemory(pod_uid="p1", guest="prod_db", bytes={1: GIB, 0: 3 * GIB})
OTHER = VmMemory(pod_uid="p0", guest="prod_web", bytes={0: GIB})


def status(found=None, *, vms=(VM, OTHER), now=EARLY, previous=None):
    return host_status(found or facts(), vms, now=now, previous=previous)


def test_the_whole_status():
    document = to_document(status())
    del document["conditions"]
    pools = [{"pageSize": 2**21, "total": 64 * 2**21, "free": 3 * 2**21}]
    node = {"total": 8 * GIB, "free": 4 * GIB, "movable": 3 * GIB, "hugePages": pools}
    assert document == {
        "agentVersion": __version__,
        "kernel": "6.1.0-test",
        "numaNodeList": "0-1",
        "numaNodes": [
            {"numaNode": 0, "cpus": "0-1", "distances": [10, 20]} | node,
            {"numaNode": 1, "cpus": "2-3", "distances": [20, 10]} | node,
        ],
        "vms": [
            {"podUID": "p0", "guest": "prod_web", "bytes": [{"numaNode": 0, "bytes": GIB}]},
            {
                "podUID": "p1",
                "guest": "prod_db",
                "bytes": [{"numaNode": 0, "bytes": 3 * GIB}, {"numaNode": 1, "bytes": GIB}],
            },
        ],
    }


def moved_vm(count):
    return VmMemory(pod_uid="p1", guest="prod_db", bytes={0: 3 * GIB + count, 1: GIB - count})


def with_free(change):
    return facts(numa_nodes=(numa_node(0, free=4 * GIB + change), numa_node(1)))


PERCENT_OF_NODE, PERCENT_OF_VM = 8 * GIB // 100, 4 * GIB // 100
CHANGES = {
    "nothing": (status(), False),
    "time": (status(now=LATE), False),
    "a little free memory": (status(with_free(PERCENT_OF_NODE)), False),
    "a little less": (status(with_free(-PERCENT_OF_NODE)), False),
    "much free memory": (status(with_free(3 * PERCENT_OF_NODE)), True),
    "much less": (status(with_free(-3 * PERCENT_OF_NODE)), True),
    "a little of what can be moved there": (
        status(facts(numa_nodes=(numa_node(0, safe=3 * GIB + PERCENT_OF_NODE), numa_node(1)))), False,
    ),
    "what can be moved there": (status(facts(numa_nodes=(numa_node(0, safe=GIB), numa_node(1)))), True),
    "a little of a VM": (status(vms=(moved_vm(PERCENT_OF_VM), OTHER)), False),
    "much of a VM": (status(vms=(moved_vm(3 * PERCENT_OF_VM), OTHER)), True),
    "a VM more": (status(vms=(VM, OTHER, dataclasses.replace(VM, pod_uid="p2"))), True),
    "a VM less": (status(vms=(VM,)), True),
    "another VM": (status(vms=(dataclasses.replace(VM, pod_uid="p2"), OTHER)), True),
    "a VM on another NUMA node": (status(vms=(VM, dataclasses.replace(OTHER, bytes={1: GIB}))), True),
    "kernel": (status(facts(kernel_release="7.0")), True),
    "self-test": (status(facts(numa_balancing=True)), True),
    "NUMA node": (status(facts(numa_nodes=(numa_node(0),))), True),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_news(name):
    current, expected = CHANGES[name]
    previous = status()
    # Conditions are made from those before, so that time alone changes nothing.
    current = current.model_copy(
        update={"conditions": status(previous=previous).conditions if name == "time" else current.conditions}
    )
    assert is_news(previous, current) is expected


def test_the_first_is_news():
    assert is_news(None, status())


def test_a_pool_of_huge_pages_is_news():
    pool = HugePagePool(page_size=2**21, total=64 * 2**21, free=2 * 2**21)
    changed = dataclasses.replace(numa_node(0), huge_pages=(pool,))
    assert is_news(status(), status(facts(numa_nodes=(changed, numa_node(1)))))


def test_transition_times_go_on():
    previous = status()
    later = status(facts(numa_balancing=True), now=LATE, previous=previous)
    assert find(later.conditions, "AutoNumaOff").last_transition_time == LATE
    assert find(later.conditions, "Ready").last_transition_time == EARLY
    assert not is_news(previous, status(now=LATE, previous=previous))
