# SPDX-License-Identifier: Apache-2.0
"""What people install: rights as narrow as the manifests say, examples and a chart that the server takes."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.rig.gotools import tool_path

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "numaplacement"
CONTROLLER = "system:serviceaccount:numaplacement:numaplacement-controller"
AGENT = "system:serviceaccount:numaplacement:numaplacement-agent"


@pytest.fixture(scope="module")
def installed(control_plane):
    control_plane.apply(ROOT / "manifests" / "overlays" / "default")
    return control_plane


def may(control_plane, account, verb, what, *, subresource=None):
    words = ["auth", "can-i", verb, what, "--all-namespaces", f"--as={account}"]
    if subresource is not None:
        words.append(f"--subresource={subresource}")
    return control_plane.kubectl(*words, check=False).stdout.strip() == "yes"


@pytest.mark.parametrize(
    ("account", "verb", "what", "subresource"),
    [
        (CONTROLLER, "create", "numamigrations.numaplacement.io", None),
        (CONTROLLER, "patch", "numaplacements.numaplacement.io", "status"),
        (CONTROLLER, "watch", "virtualmachineinstances.kubevirt.io", None),
        (AGENT, "watch", "numamigrations.numaplacement.io", None),
        (AGENT, "patch", "numamigrations.numaplacement.io", "status"),
        (AGENT, "patch", "numahosts.numaplacement.io", "status"),
        (AGENT, "get", "nodes", None),
    ],
)
def test_what_a_part_needs_it_may(installed, account, verb, what, subresource):
    assert may(installed, account, verb, what, subresource=subresource)


@pytest.mark.parametrize(
    ("account", "verb", "what", "subresource"),
    [
        (CONTROLLER, "patch", "numaplacements.numaplacement.io", None),
        (CONTROLLER, "delete", "numaplacements.numaplacement.io", None),
        (CONTROLLER, "patch", "numamigrations.numaplacement.io", "status"),
        (CONTROLLER, "patch", "virtualmachineinstances.kubevirt.io", None),
        (CONTROLLER, "get", "secrets", None),
        (CONTROLLER, "list", "pods", None),
        (AGENT, "create", "numamigrations.numaplacement.io", None),
        (AGENT, "patch", "numamigrations.numaplacement.io", None),
        (AGENT, "delete", "numamigrations.numaplacement.io", None),
        (AGENT, "get", "numaplacements.numaplacement.io", None),
        (AGENT, "get", "virtualmachineinstances.kubevirt.io", None),
        (AGENT, "get", "secrets", None),
        (AGENT, "create", "pods", "exec"),
        (AGENT, "patch", "nodes", None),
        (AGENT, "list", "nodes", None),
        (AGENT, "create", "serviceaccounts", "token"),
    ],
)
def test_what_a_part_does_not_need_it_may_not(installed, account, verb, what, subresource):
    assert not may(installed, account, verb, what, subresource=subresource)


@pytest.mark.parametrize("path", sorted((ROOT / "manifests" / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_taken(installed, path):
    installed.kubectl("create", "namespace", "prod", check=False)
    installed.kubectl("create", "--dry-run=server", "-f", path)


def helm(*words):
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return subprocess.run([tool_path("helm"), *words], capture_output=True, text=True, check=False, env=env)


def test_the_chart_lints():
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_value_is_refused():
    done = helm("template", "numaplacement", str(CHART), "--set", "agent.tolerationz=1")
    assert done.returncode != 0
    assert "tolerationz" in done.stderr


def test_what_the_chart_makes_is_taken(installed):
    rendered = helm(
        "template", "numaplacement", str(CHART), "--namespace", "numaplacement", "--set", "crds.enabled=false"
    )
    assert rendered.returncode == 0, rendered.stderr
    answer = installed.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "-f",
        "-",
        "-o",
        "json",
        input=rendered.stdout,
    )
    kinds = sorted(item["kind"] for item in json.loads(answer.stdout)["items"])
    assert kinds == sorted(["ServiceAccount", "ClusterRole", "ClusterRoleBinding"] * 2 + ["Deployment", "DaemonSet"])


def test_the_chart_can_leave_the_definitions_out():
    with_them = helm("template", "numaplacement", str(CHART)).stdout
    without = helm("template", "numaplacement", str(CHART), "--set", "crds.enabled=false").stdout
    assert with_them.count("kind: CustomResourceDefinition") == 3
    assert "kind: CustomResourceDefinition" not in without
    assert with_them.count("helm.sh/resource-policy: keep") == 3


def agent_mounts(*words):
    rendered = helm("template", "numaplacement", str(CHART), "-s", "templates/agent-daemonset.yaml", *words)
    assert rendered.returncode == 0, rendered.stderr
    pod = yaml.safe_load(rendered.stdout)["spec"]["template"]["spec"]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: paths[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    assert all(inside == outside for inside, outside in mounts.items())
    return set(mounts)


def test_the_agent_may_write_the_hosts_settings_only_where_asked():
    settings = {"/sys/devices/system/node", "/sys/fs/cgroup"}
    assert agent_mounts() == {"/run/numaplacement"}
    assert agent_mounts("--set", "agent.writeHostSettings=true") == {"/run/numaplacement"} | settings
