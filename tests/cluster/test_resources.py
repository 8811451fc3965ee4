# SPDX-License-Identifier: Apache-2.0
"""What the API server itself makes of our resources: refusals, defaults, columns, texts, immutability."""

import json
import re

import pytest

from tests.rig.control_plane import ControlPlane


def placement(**spec):
    return {
        "apiVersion": "numaplacement.io/v1alpha1",
        "kind": "NumaPlacement",
        "metadata": {"name": "db"},
        "spec": {"vm": {"name": "db"}, "numaNode": 0} | spec,
    }


def order(**spec):
    return {
        "apiVersion": "numaplacement.io/v1alpha1",
        "kind": "NumaMigration",
        "metadata": {"name": spec.pop("name", "db-1")},
        "spec": {
            "nodeName": "host-a",
            "vm": {"name": "db", "uid": "u"},
            "podUID": "p",
            "target": {"numaNode": 0},
        }
        | spec,
    }


def tried(control_plane: ControlPlane, namespace: str, document):
    return control_plane.kubectl(
        "create", "-n", namespace, "-o", "json", "-f", "-", input=json.dumps(document), check=False
    )


def without(document, *path):
    *parents, last = path
    node = document
    for key in parents:
        node = node[key]
    del node[last]
    return document


REFUSED = {
    "both targets": (placement(cells=[{"cell": 0, "numaNode": 1}]), "give exactly one of numaNode and cells"),
    "no target": (without(placement(), "spec", "numaNode"), "give exactly one of numaNode and cells"),
    "name and selector": (placement(vm={"name": "db", "selector": {}}), "give exactly one of name and selector"),
    "neither name nor selector": (placement(vm={}), "give exactly one of name and selector"),
    "no vm": (without(placement(), "spec", "vm"), "spec.vm"),
    "no spec": (without(placement(), "spec"), "spec"),
    "negative NUMA node": (placement(numaNode=-1), "should be greater than or equal to 0"),
    "NUMA node beyond Linux": (placement(numaNode=1024), "should be less than or equal to 1023"),
    "NUMA node as text": (placement(numaNode="0"), "numaNode"),
    "unknown mode": (placement(mode="Twice"), "Once"),
    "unknown word of allow": (placement(allow=["Everything"]), "Reclaim"),
    "a word twice": (placement(allow=["Reclaim", "Reclaim"]), "Duplicate value"),
    "a cell twice": (
        without(placement(cells=[{"cell": 0, "numaNode": 1}, {"cell": 0, "numaNode": 2}]), "spec", "numaNode"),
        "Duplicate value",
    ),
    "no quantity": (placement(limits={"bandwidth": "fast"}), "should match"),
    "no duration": (placement(limits={"deadline": "soon"}), "should match"),
    "more than all": (placement(tolerance="101%"), "should match"),
    "no attempts": (placement(limits={"attempts": 0}), "greater than or equal to 1"),
    "misspelt field": (placement(numanode=0), "numanode"),
    "order without a target": (order(target={}), "give exactly one of numaNode and cells"),
    "order without a host": (without(order(), "spec", "nodeName"), "spec.nodeName"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_api_server(control_plane, name):
    document, message = REFUSED[name]
    answer = tried(control_plane, "default", document)
    assert answer.returncode != 0, answer.stdout
    assert message in answer.stderr


@pytest.mark.parametrize("value", [0, "64Mi", "0.5%", "100%", 4096])
def test_tolerance_takes_quantities_and_percentages(control_plane, namespace, value):
    answer = tried(control_plane, namespace, placement(tolerance=value))
    assert answer.returncode == 0, answer.stderr


def test_defaults_are_the_servers(control_plane, namespace):
    spec = json.loads(tried(control_plane, namespace, placement()).stdout)["spec"]
    assert spec == {
        "vm": {"name": "db"},
        "numaNode": 0,
        "mode": "Once",
        "threads": "Follow",
        "allow": [],
        "limits": {"callLatency": "20ms", "deadline": "10m", "attempts": 3},
        "tolerance": 0,
        "priority": 0,
        "dryRun": False,
        "suspend": False,
    }


def test_a_fresh_object_is_not_yet_observed(control_plane, namespace):
    made = json.loads(tried(control_plane, namespace, placement()).stdout)
    assert made["status"] == {"observedGeneration": -1}


def test_an_order_never_changes(control_plane, namespace):
    assert tried(control_plane, namespace, order()).returncode == 0
    answer = control_plane.kubectl(
        "patch",
        "numam",
        "db-1",
        "-n",
        namespace,
        "--type=merge",
        "-p",
        '{"spec":{"target":{"numaNode":1}}}',
        check=False,
    )
    assert answer.returncode != 0
    assert "an order never changes" in answer.stderr


def test_orders_are_selected_by_host(control_plane, namespace):
    for name, host in (("one", "host-a"), ("two", "host-b")):
        assert tried(control_plane, namespace, order(name=name, nodeName=host)).returncode == 0
    answer = control_plane.kubectl(
        "get", "numam", "-n", namespace, "--field-selector=spec.nodeName=host-b", "-o", "name"
    )
    assert answer.stdout.split() == ["numamigration.numaplacement.io/two"]


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("nump", "NAME VM NUMA NODE READY REASON ON TARGET RESIDUE AGE"),
        ("numam", "NAME VM HOST NUMA NODE STAGE RESULT REASON MOVED AGE"),
    ],
)
def test_columns(control_plane, namespace, kind, columns):
    assert tried(control_plane, namespace, placement() if kind == "nump" else order()).returncode == 0
    lines = control_plane.kubectl("get", kind, "-n", namespace).stdout.splitlines()
    assert re.sub(r"  +", " ", lines[0]).strip() == columns


def test_the_category_shows_everything(control_plane, namespace):
    assert tried(control_plane, namespace, placement()).returncode == 0
    assert tried(control_plane, namespace, order()).returncode == 0
    names = control_plane.kubectl("get", "numa", "-n", namespace, "-o", "name").stdout.split()
    assert {"numaplacement.numaplacement.io/db", "numamigration.numaplacement.io/db-1"} <= set(names)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("numaplacement.spec.numaNode", "NUMA node of the host where all of the VM's memory belongs"),
        ("numaplacement.spec.limits.callLatency", "Longest that a single kernel call should take"),
        ("numamigration.status.residue.remedy", "What a person can do about it"),
        ("numahost.status.numaNodes.movable", "without anybody on the host having to give memory back"),
    ],
)
def test_kubectl_explain(control_plane, path, text):
    answer = control_plane.kubectl("explain", path).stdout
    assert text in " ".join(answer.split())
