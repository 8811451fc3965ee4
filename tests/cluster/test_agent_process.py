# SPDX-License-Identifier: Apache-2.0
"""The agent as it is installed: a process of its own, with its own service account and the rights of the manifests.

This machine has no pod of any of these orders; what the agent does with a VM is tested where there is one.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from numaplacement import __version__
from numaplacement.api.resources import HOSTS, MIGRATIONS, NODES
from numaplacement.apiserver.connection import connect
from numaplacement.apiserver.errors import NotFound
from tests.cluster.orders import PATIENCE, new_host, order, ready, result_of, status_of, until
from tests.rig.children import Children
from tests.rig.waiting import wait_until

REPOSITORY = Path(__file__).parent.parent.parent
ONLINE = Path("/sys/devices/system/node/online").read_text().strip()
CELLS = {"cells": [{"cell": 0, "numaNode": 0}]}
FAR_CELLS = {"cells": [{"cell": 0, "numaNode": 0}, {"cell": 1, "numaNode": 9}]}


@pytest.fixture(scope="module")
def agents_kubeconfig(control_plane):
    """What the agent's pod would be given: a token of its service account, and no other right than the manifests'."""
    for part in ("namespace", "agent"):
        control_plane.apply(REPOSITORY / "manifests" / "base" / part)
    return control_plane.service_account_kubeconfig("numaplacement", "numaplacement-agent")


class Agents:
    """Starts agents and reads what they say."""

    def __init__(self, children, kubeconfig, folder):
        self._children, self._kubeconfig, self._folder = children, kubeconfig, folder

    def start(self, host, *options, kubeconfig=None):
        words = [sys.executable, "-m", "numaplacement.agent", "--host-interval", "200ms", *options]
        environ = {"NODE_NAME": host, "KUBECONFIG": str(kubeconfig or self._kubeconfig), "PATH": os.environ["PATH"]}
        return self._children.start(f"agent-{host}", words, log=self._folder / f"{host}.log", env=environ)

    def stop(self, agent):
        """End an agent as the kubelet does; return its exit code."""
        self._children.stop(agent)
        return agent.process.returncode


@pytest.fixture
def agents(agents_kubeconfig, tmp_path):
    with Children() as children:
        yield Agents(children, agents_kubeconfig, tmp_path)


def play(control_plane, story):
    async def with_client():
        async with connect({"KUBECONFIG": str(control_plane.admin_kubeconfig)}) as client:
            await story(client, new_host())

    asyncio.run(with_client())


async def host_of(client, host):
    """Wait for a NumaHost with a status, and return it."""

    async def there():
        try:
            found = await client.get(HOSTS, host)
        except NotFound:
            return None
        return found if found.get("status") else None

    return await until(there, what=f"NumaHost {host}")


def test_each_order_ends_in_a_clear_verdict(control_plane, namespace, agents):
    orders = {
        "missing": ({}, "PodNotFound", "belongs to pod 6e7b6e74-c27a-488b-ac18-c6c49d07c506"),
        "dry": ({"dryRun": True}, "PodNotFound", "belongs to pod"),
        "far": ({"target": {"numaNode": 9}}, "NumaNodeNotFound", f"no NUMA node 9; it has {ONLINE}"),
        "cells": ({"target": CELLS}, "PodNotFound", "belongs to pod"),
        "far-cells": ({"target": FAR_CELLS}, "NumaNodeNotFound", f"no NUMA node 9; it has {ONLINE}"),
        "allow": ({"allow": ["Reclaim", "PinnedPart"]}, "PodNotFound", "belongs to pod"),
        "slow": ({"limits": {"bandwidth": 0}}, "InvalidOrder", "limits.bandwidth"),
        "all": (
            {
                "limits": {"bandwidth": "1Gi", "callLatency": "5ms", "deadline": "1m"},
                "tolerance": "1%",
                "threads": "Leave",
            },
            "PodNotFound",
            "belongs to pod",
        ),
    }

    async def story(client, host):
        await client.create(MIGRATIONS, order(namespace, "theirs", host=new_host()))
        for name, (spec, _, _) in orders.items():
            await client.create(MIGRATIONS, order(namespace, name, host=host, **spec))
        agent = agents.start(host)
        for name, (_, reason, words) in orders.items():
            status = await result_of(client, namespace, name)
            assert (status["result"], ready(status)["reason"]) == ("Refused", reason)
            assert words in ready(status)["message"]
            assert {each["type"]: each["status"] for each in status["conditions"]} == {
                "Ready": "False", "Reconciling": "False", "Stalled": "True",
            }  # fmt: skip
            assert (status["moved"], status["before"], status["observedGeneration"]) == (0, [], 1)
        assert await status_of(client, namespace, "theirs") == {"observedGeneration": -1}
        assert agents.stop(agent) == 0
        log = agent.log.read_text()
        assert f"order={namespace}/missing" in log
        assert "forbidden" not in log
        assert "Traceback" not in log
        assert "level=error" not in log

    play(control_plane, story)


def test_orders_that_come_later(control_plane, namespace, agents):
    async def story(client, host):
        agents.start(host)
        await host_of(client, host)
        for name in ("one", "two"):
            await client.create(MIGRATIONS, order(namespace, name, host=host))
            await result_of(client, namespace, name)

    play(control_plane, story)


def test_the_host_is_reported_and_belongs_to_its_node(control_plane, agents):
    async def story(client, host):
        node = await client.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": host}})
        agents.start(host)
        found = await host_of(client, host)
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Node", host, node["metadata"]["uid"])
        status = found["status"]
        assert (status["agentVersion"], status["kernel"]) == (__version__, os.uname().release)
        assert status["numaNodeList"] == ONLINE
        assert all(0 < each["free"] < each["total"] for each in status["numaNodes"] if each["cpus"])
        kinds = {"Ready", "SyscallsAllowed", "CapabilitiesPresent", "CpusetOpen", "AutoNumaOff", "SwapOff"}
        assert {each["type"] for each in status["conditions"]} == kinds
        # It goes with its Node: the garbage collector sees to that.
        await client.delete(NODES, host)

        async def gone():
            try:
                after = await client.get(HOSTS, host)
            except NotFound:
                return True
            return after["metadata"]["uid"] != found["metadata"]["uid"]

        await until(gone, what="NumaHost collected")

    play(control_plane, story)


def test_a_host_without_a_node_is_reported_all_the_same(control_plane, agents):
    async def story(client, host):
        agent = agents.start(host)
        found = await host_of(client, host)
        assert "ownerReferences" not in found["metadata"]
        assert f"there is no Node {host}" in agent.log.read_text()
        await client.delete(HOSTS, host)

    play(control_plane, story)


def test_a_host_is_not_written_without_news(control_plane, agents):
    async def story(client, host):
        agent = agents.start(host, "--log-level", "DEBUG")
        first = await host_of(client, host)
        await until(lambda: agent.log.read_text().count("nothing new on the host") >= 3, what="three more looks")
        again = await client.get(HOSTS, host)
        assert first["status"]["numaNodes"][0]["total"] == again["status"]["numaNodes"][0]["total"]
        writes = agent.log.read_text().count("NumaHost written")
        looks = writes + agent.log.read_text().count("nothing new on the host")
        assert writes < looks
        await client.delete(HOSTS, host)

    play(control_plane, story)


@pytest.mark.parametrize("signal", ["stop", "start again"])
def test_an_agent_ends_in_order(control_plane, namespace, agents, signal):
    async def story(client, host):
        await client.create(MIGRATIONS, order(namespace, "one", host=host))
        agent = agents.start(host)
        await result_of(client, namespace, "one")
        assert agents.stop(agent) == 0
        assert agent.log.read_text().splitlines()[-1].endswith("message=stopped")
        if signal == "start again":
            before = await client.get(MIGRATIONS, "one", namespace=namespace)
            await client.create(MIGRATIONS, order(namespace, "two", host=host))
            agents.start(host)
            await result_of(client, namespace, "two")
            assert await client.get(MIGRATIONS, "one", namespace=namespace) == before

    play(control_plane, story)


def test_an_agent_that_was_killed_is_as_if_it_had_not_been(control_plane, namespace, agents):
    async def story(client, host):
        names = [f"order-{number}" for number in range(12)]
        for name in names:
            await client.create(MIGRATIONS, order(namespace, name, host=host))
        agent = agents.start(host)
        await result_of(client, namespace, names[0])
        agent.process.kill()
        agent.process.wait(PATIENCE)
        agents.start(host)
        for name in names:
            assert ready(await result_of(client, namespace, name))["reason"] == "PodNotFound"

    play(control_plane, story)


def test_an_agent_without_rights_says_so_and_waits(control_plane, agents, namespace):
    stranger = control_plane.service_account_kubeconfig(namespace, "default")
    agent = agents.start(new_host(), kubeconfig=stranger)
    wait_until(lambda: "forbidden" in agent.log.read_text(), what="its complaint", timeout=PATIENCE)
    assert agent.process.poll() is None
    assert agents.stop(agent) == 0


def test_the_rights_are_no_more_than_is_used(control_plane, agents_kubeconfig):
    def may(*words):
        answer = control_plane.kubectl("auth", "can-i", *words, kubeconfig=agents_kubeconfig, check=False)
        return answer.stdout.strip() == "yes"

    used = [
        *(("list", "numamigrations", "-A"), ("watch", "numamigrations", "-A"), ("get", "numamigrations", "-A")),
        *(("patch", "numamigrations", "--subresource=status", "-A"), ("create", "numahosts"), ("patch", "numahosts")),
        *(("patch", "numahosts", "--subresource=status"), ("get", "nodes")),
    ]
    unused = [
        *(("create", "numamigrations", "-A"), ("delete", "numamigrations", "-A"), ("patch", "numamigrations", "-A")),
        *(("patch", "nodes"), ("list", "nodes"), ("get", "pods", "-A"), ("create", "pods/exec", "-A")),
        *(("get", "secrets", "-A"), ("delete", "numahosts"), ("get", "numaplacements", "-A")),
        *(("get", "numahosts"), ("list", "numahosts"), ("watch", "numahosts")),
    ]
    assert [words for words in used if not may(*words)] == []
    assert [words for words in unused if may(*words)] == []


def test_the_console_script_is_the_agent():
    script = Path(sys.executable).parent / "numaplacement-agent"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.strip() == __version__
