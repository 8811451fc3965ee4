# SPDX-License-Identifier: Apache-2.0
"""Whether a VM runs and where, whether its host can take an order, and who has a VM that two placements want."""

from __future__ import annotations

from typing import Any

import pytest

from numaplacement.api.conditions import State
from numaplacement.api.placement import Allowance
from numaplacement.controller.conflict import winner
from numaplacement.controller.host_state import obstacle, ranges
from numaplacement.controller.situation import Unreadable
from numaplacement.controller.supported import unsupported
from numaplacement.controller.vm_state import NotRunning, Running, examine
from tests.unit.controller_scene import host, placement, vmi

STARTED = {"startTimestamp": "2026-11-23T11:00:00Z"}
ENDED = STARTED | {"endTimestamp": "2026-11-23T11:01:00Z"}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        *[({"phase": phase}, "VmNotRunning") for phase in ("Pending", "Scheduling", "Scheduled")],
        *[({"phase": phase}, "VmNotRunning") for phase in ("Succeeded", "Failed")],
        ({"phase": ""}, "VmNotRunning"),
        ({"phase": "WaitingForSync"}, "VmNotRunning"),
        ({"deleted": True}, "VmNotRunning"),
        ({"pods": {}}, "VmNotRunning"),
        ({"host": ""}, "VmNotRunning"),
        ({"pods": {"a": "h1", "b": "h2"}}, "VmMigrating"),
        ({"pods": {"a": "h1", "b": "h1"}}, "VmMigrating"),
        ({"pods": {"b": "h2"}}, "VmMigrating"),
        ({"migration": STARTED}, "VmMigrating"),
        ({"migration": STARTED | {"completed": True}}, None),
        ({"migration": STARTED | {"failed": True}}, None),
        ({"migration": ENDED}, None),
        ({"migration": {}}, None),
        ({"migration": {"mode": "PreCopy"}}, None),
        ({}, None),
    ],
)
def test_a_vm_runs_only_in_exactly_one_place(facts: dict[str, Any], reason: str | None) -> None:
    found = examine(vmi(**facts))
    if reason is None:
        assert found == Running(pod_uid="pod-of-db", host="h1")
    else:
        assert isinstance(found, NotRunning)
        assert found.reason == reason
        assert "db" in found.message


def test_the_phase_is_named() -> None:
    found = examine(vmi(phase="Scheduling"))
    assert isinstance(found, NotRunning)
    assert "Scheduling" in found.message


@pytest.mark.parametrize(
    ("facts", "targets", "expected"),
    [
        ({}, [0], None),
        ({}, [3], None),
        ({}, [], None),
        ({}, [4], (State.STALLED, "NumaNodeNotFound", "0-3")),
        ({}, [1, 3], None),
        ({}, [0, 5, 4], (State.STALLED, "NumaNodeNotFound", "0-3, and no 4-5")),
        ({}, [9], (State.STALLED, "NumaNodeNotFound", "no 9")),
        ({"numa_nodes": [0]}, [1], (State.STALLED, "NumaNodeNotFound", "NUMA node 0, and no 1")),
        ({"numa_nodes": [0, 2]}, [1], (State.STALLED, "NumaNodeNotFound", "0,2")),
        ({"numa_nodes": []}, [0], (State.WORKING, "AgentNotReady", "not reported its NUMA nodes")),
        ({"ready": "False", "message": "no CAP_SYS_NICE"}, [0], (State.WORKING, "AgentNotReady", "no CAP_SYS_NICE")),
        ({"ready": "False"}, [0], (State.WORKING, "AgentNotReady", "SelfTestFailed")),
        ({"ready": "Unknown", "message": "silent"}, [0], (State.WORKING, "AgentNotReady", "silent")),
        ({"ready": ""}, [0], (State.WORKING, "AgentNotReady", "self-test")),
        ({"ready": "False", "numa_nodes": [0]}, [9], (State.WORKING, "AgentNotReady", "")),
    ],
)
def test_what_keeps_a_host_from_an_order(
    facts: dict[str, Any], targets: list[int], expected: tuple[State, str, str] | None
) -> None:
    found = obstacle(host(**facts), name="h1", numa_nodes=targets)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        state, reason, words = expected
        assert (found.state, found.reason) == (state, reason)
        assert words in found.message
        assert "h1" in found.message


def test_an_unknown_host_has_no_agent() -> None:
    found = obstacle(None, name="h7")
    assert found is not None
    assert (found.state, found.reason) == (State.WORKING, "AgentAbsent")


def test_a_host_that_cannot_be_read_gets_no_order() -> None:
    found = obstacle(Unreadable(metadata=host().metadata, error="vms: bad"), name="h1")
    assert found is not None
    assert (found.state, found.reason) == (State.WORKING, "Unreadable")
    assert "vms: bad" in found.message


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([0], "0"), ([0, 1, 2, 3], "0-3"), ([3, 1, 0], "0-1,3"), ([0, 2, 4], "0,2,4"), ([7, 7, 8], "7-8")],
)
def test_numbers_in_list_form(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, []),
        ({"mode": "Once", "threads": "Leave", "tolerance": "1%", "priority": 5, "dryRun": True, "suspend": True}, []),
        ({"limits": {"bandwidth": "1Gi", "callLatency": "5ms", "deadline": "1h", "attempts": 9}}, []),
        ({"mode": "Keep"}, ["spec.mode", "Keep", "Once"]),
        ({"cells": [{"cell": 0, "numaNode": 1}]}, []),
        *[({"allow": [str(word)]}, []) for word in Allowance],
    ],
)  # fmt: skip
def test_what_this_version_cannot_do_is_said(spec: dict[str, Any], words: list[str]) -> None:
    complaint = unsupported(placement(**spec).spec)
    assert bool(complaint) is bool(words)
    for word in words:
        assert word in complaint


ME: dict[str, Any] = {"name": "me", "created": -100}
FIRST: dict[str, Any] = {"name": "first", "created": -300}
SECOND: dict[str, Any] = {"name": "second", "created": -200}


@pytest.mark.parametrize(
    ("mine", "others", "expected"),
    [
        ({}, [], None),
        # Another target: the older has it.
        ({}, [{"name": "other", "created": -200, "numaNode": 1}], "other"),
        ({}, [{"name": "other", "created": -50, "numaNode": 1}], None),
        # Of the same second: the lower UID, whoever asks.
        ({"uid": "b"}, [{"name": "other", "uid": "a", "created": -100, "numaNode": 1}], "other"),
        ({"uid": "a"}, [{"name": "other", "uid": "b", "created": -100, "numaNode": 1}], None),
        # The same target is no contradiction.
        ({}, [{"name": "other", "created": -200, "numaNode": 0}], None),
        ({}, [{"name": "other", "created": -200, "numaNode": 0, "threads": "Leave", "priority": 9}], None),
        # The oldest counts, not whoever lost to it.
        ({}, [FIRST | {"numaNode": 0}, SECOND | {"numaNode": 1}], None),
        ({}, [FIRST | {"numaNode": 2}, SECOND | {"numaNode": 0}], "first"),
        # Who does not act takes nothing away.
        ({}, [{"name": "other", "created": -200, "numaNode": 1, "suspend": True}], None),
        ({}, [{"name": "other", "created": -200, "numaNode": 1, "dryRun": True}], None),
        ({}, [{"name": "other", "created": -200, "numaNode": 1, "deleted": True}], None),
        ({}, [{"name": "other", "created": -200, "numaNode": 1, "mode": "Keep"}], None),
        ({}, [{"name": "other", "created": -200, "cells": [{"cell": 0, "numaNode": 1}]}], "other"),
        ({"dryRun": True}, [{"name": "other", "created": -200, "numaNode": 1}], None),
        # About another VM.
        ({}, [{"name": "other", "created": -200, "numaNode": 1, "vm": "web"}], None),
        # By selector, either way.
        ({}, [{"name": "other", "created": -200, "numaNode": 1, "vm": {"matchLabels": {"tier": "edge"}}}], "other"),
        ({}, [{"name": "other", "created": -200, "numaNode": 1, "vm": {"matchLabels": {"tier": "core"}}}], None),
        ({"vm": {}}, [{"name": "other", "created": -200, "numaNode": 1}], "other"),
    ],
)  # fmt: skip
def test_the_older_of_two_contradicting_placements_wins(
    mine: dict[str, Any], others: list[dict[str, Any]], expected: str | None
) -> None:
    found = winner(
        placement(**(ME | mine)),
        rivals=[placement(**other) for other in others],
        vm="db",
        labels={"tier": "edge"},
    )
    assert (found.metadata.name if found is not None else None) == expected
