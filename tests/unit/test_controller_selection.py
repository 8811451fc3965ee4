# SPDX-License-Identifier: Apache-2.0
"""Which VMs a placement is about."""

from __future__ import annotations

from typing import Any

import pytest

from numaplacement.api.placement import LabelSelector, VmSelection
from numaplacement.controller.selection import describe, matches, selects

LABELS = {"tier": "edge", "app": "web", "empty": ""}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, True),
        ({"matchLabels": {"tier": "edge"}}, True),
        ({"matchLabels": {"tier": "core"}}, False),
        ({"matchLabels": {"tier": "edge", "app": "web"}}, True),
        ({"matchLabels": {"tier": "edge", "app": "db"}}, False),
        ({"matchLabels": {"absent": ""}}, False),
        ({"matchLabels": {"empty": ""}}, True),
        (expression("tier", "In", "core", "edge"), True),
        (expression("tier", "In", "core"), False),
        (expression("tier", "In"), False),
        (expression("absent", "In", "core"), False),
        (expression("tier", "NotIn", "core"), True),
        (expression("tier", "NotIn", "edge"), False),
        (expression("absent", "NotIn", "edge"), True),
        (expression("tier", "Exists"), True),
        (expression("empty", "Exists"), True),
        (expression("absent", "Exists"), False),
        (expression("tier", "DoesNotExist"), False),
        (expression("absent", "DoesNotExist"), True),
        (expression("tier", "Gt", "1"), False),
        ({"matchLabels": {"tier": "edge"}} | expression("app", "NotIn", "web"), False),
        ({"matchLabels": {"tier": "edge"}} | expression("app", "In", "web"), True),
    ],
)
def test_labels_match_as_in_kubernetes(selector: dict[str, Any], expected: bool) -> None:
    assert matches(LabelSelector.model_validate(selector), LABELS) is expected


@pytest.mark.parametrize(
    ("vm", "expected"),
    [
        ({"name": "db"}, True),
        ({"name": "db2"}, False),
        ({"selector": {"matchLabels": {"tier": "edge"}}}, True),
        ({"selector": {"matchLabels": {"tier": "core"}}}, False),
    ],
)
def test_a_name_ignores_labels_and_a_selector_ignores_names(vm: dict[str, Any], expected: bool) -> None:
    assert selects(VmSelection.model_validate(vm), name="db", labels=LABELS) is expected


@pytest.mark.parametrize(
    ("vm", "words"),
    [
        ({"name": "db"}, "VM db"),
        ({"selector": {}}, "all VMs"),
        ({"selector": {"matchLabels": {"b": "2", "a": "1"}}}, "VMs with a=1, b=2"),
        ({"selector": expression("a", "In", "1", "2")}, "VMs with a in (1, 2)"),
        ({"selector": expression("a", "NotIn", "1")}, "VMs with a not in (1)"),
        ({"selector": expression("a", "Exists")}, "VMs with a"),
        ({"selector": expression("a", "DoesNotExist")}, "VMs with !a"),
    ],
)
def test_selection_in_words(vm: dict[str, Any], words: str) -> None:
    assert describe(VmSelection.model_validate(vm)) == words
