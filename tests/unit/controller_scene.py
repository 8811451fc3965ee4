# SPDX-License-Identifier: Apache-2.0
"""Objects for the controller's tests, as an API server gives them, each with as little said as the test needs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numaplacement.api.conditions import State, state_conditions
from numaplacement.api.resources import (
    GENERATION_LABEL,
    Document,
    NumaHost,
    NumaMigration,
    NumaPlacement,
    VirtualMachineInstance,
    to_document,
)
from numaplacement.controller.decide import decide
from numaplacement.controller.orders import order_document, wish
from numaplacement.controller.settings import Rules
from numaplacement.controller.situation import Decision, SeenOrder, Situation
from numaplacement.controller.vm_state import Running
from tests.rig.kstatus import kstatus

NOW = datetime.datetime(2026, 11, 23, 12, 0, 0, tzinfo=datetime.UTC)
RULES = Rules()
MI = 2**20


def at(seconds: float) -> datetime.datetime:
    """Return the time so many seconds from NOW."""
    return NOW + datetime.timedelta(seconds=seconds)


def stamp(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def placement_document(
    name: str = "db",
    *,
    uid: str = "",
    generation: int = 1,
    created: float = -3600,
    deleted: bool = False,
    vm: str | Mapping[str, Any] = "db",
    status: Document | None = None,
    version: int = 10,
    **spec: Any,
) -> Document:
    """Return a NumaPlacement; `vm` is a name or a selector, `spec` is in camelCase and wants NUMA node 0."""
    selection = {"name": vm} if isinstance(vm, str) else {"selector": dict(vm)}
    target = {} if "cells" in spec else {"numaNode": 0}
    document: Document = {
        "apiVersion": "numaplacement.io/v1alpha1",
        "kind": "NumaPlacement",
        "metadata": {
            "name": name,
            "namespace": "prod",
            "uid": uid or f"uid-of-{name}",
            "generation": generation,
            "resourceVersion": str(version),
            "creationTimestamp": stamp(at(created)),
        },
        "spec": {"vm": selection} | target | spec,
        "status": status if status is not None else {"observedGeneration": -1},
    }
    if deleted:
        document["metadata"]["deletionTimestamp"] = stamp(NOW)
    return document


def placement(name: str = "db", **facts: Any) -> NumaPlacement:
    return NumaPlacement.model_validate(placement_document(name, **facts))


def vmi_document(
    name: str = "db",
    *,
    phase: str = "Running",
    host: str = "h1",
    pods: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    migration: Document | None = None,
    deleted: bool = False,
    uid: str = "",
    version: int = 10,
) -> Document:
    """Return a VirtualMachineInstance in the shape KubeVirt 1.9 gives it, running in one pod unless said otherwise."""
    status: Document = {"phase": phase, "activePods": {f"pod-of-{name}": host} if pods is None else dict(pods)}
    if host:
        status["nodeName"] = host
    if migration is not None:
        status["migrationState"] = migration
    metadata: Document = {
        "name": name,
        "namespace": "prod",
        "uid": uid or f"vmi-of-{name}",
        "generation": 7,
        "resourceVersion": str(version),
        "labels": dict(labels or {}),
    }
    if deleted:
        metadata["deletionTimestamp"] = stamp(NOW)
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": metadata,
        "spec": {"domain": {"firmware": {"uuid": f"firmware-of-{name}"}, "devices": {}}},
        "status": status,
    }


def vmi(name: str = "db", **facts: Any) -> VirtualMachineInstance:
    return VirtualMachineInstance.model_validate(vmi_document(name, **facts))


def host_document(
    name: str = "h1",
    *,
    numa_nodes: Sequence[int] = (0, 1, 2, 3),
    ready: str = "True",
    message: str = "",
    version: int = 10,
    vms: Sequence[Document] = (),
) -> Document:
    """Return a NumaHost; `ready` is the status of its Ready condition, empty for none."""
    condition = {
        "type": "Ready",
        "status": ready,
        "reason": "SelfTestPassed" if ready == "True" else "SelfTestFailed",
        "message": message,
        "lastTransitionTime": stamp(NOW),
    }
    return {
        "apiVersion": "numaplacement.io/v1alpha1",
        "kind": "NumaHost",
        "metadata": {"name": name, "uid": f"host-{name}", "resourceVersion": str(version)},
        "status": {
            "conditions": [condition] if ready else [],
            "numaNodes": [{"numaNode": number} for number in numa_nodes],
            "vms": list(vms),
        },
    }


def host(name: str = "h1", **facts: Any) -> NumaHost:
    return NumaHost.model_validate(host_document(name, **facts))


def order_for(
    owner: NumaPlacement,
    instance: VirtualMachineInstance,
    *,
    attempt: int = 1,
    created: float = -60,
    deleting: bool = False,
    generation: int | None = None,
    uid: str = "",
    version: int = 10,
    **status: Any,
) -> Document:
    """Return the order that `owner` would have given for `instance`, with the status given in camelCase."""
    [(pod_uid, node)] = instance.status.active_pods.items()
    new = wish(owner, vmi=instance, running=Running(pod_uid=pod_uid, host=node), attempt=attempt)
    document = order_document(new)
    document["metadata"] |= {
        "uid": uid or f"uid-of-{new.name}",
        "generation": 1,
        "resourceVersion": str(version),
        "creationTimestamp": stamp(at(created)),
    }
    if generation is not None:
        document["metadata"]["labels"][GENERATION_LABEL] = str(generation)
    if deleting:
        document["metadata"]["deletionTimestamp"] = stamp(NOW)
    document["status"] = {"observedGeneration": -1} | status
    return document


def taken_up(**status: Any) -> Document:
    """Return the status of an order that its agent is at."""
    return {"observedGeneration": 1, "startTime": stamp(at(-50))} | status


def ended(
    result: str,
    *,
    reason: str = "",
    message: str = "",
    seconds_ago: float = 1000,
    rows: Sequence[Document] = (),
    asked: int = 512 * MI,
    on_target: int | None = None,
    before: Sequence[Document] = ({"numaNode": 1, "pageClass": "Anon", "bytes": 512 * MI},),
) -> Document:
    """Return the status of an order with a verdict `seconds_ago`."""
    state = State.READY if result in ("Placed", "Planned") else State.STALLED
    left = sum(row["bytes"] for row in rows)
    conditions = state_conditions(state, reason=reason or result, message=message, generation=1, now=at(-seconds_ago))
    reached = asked - left if on_target is None else on_target
    return taken_up(
        result=result,
        completionTime=stamp(at(-seconds_ago)),
        conditions=[to_document(condition) for condition in conditions],
        residue=list(rows),
        asked=asked,
        onTarget=reached,
        before=list(before),
        after=[{"numaNode": 0, "pageClass": "Anon", "bytes": reached}],
    )


def residue(reason: str = "Unexplained", *, count: int = MI, permanent: bool = False, numa_node: int = 1) -> Document:
    return {
        "reason": reason,
        "numaNode": numa_node,
        "bytes": count,
        "permanent": permanent,
        "evidence": "seen",
        "remedy": "do",
    }


def seen(
    document: Document, *, first: float | None = None, changed: float = 0.0, finished: float | None = None
) -> SeenOrder:
    """Return an order as this process has seen it, at seconds from NOW; by default since it was made."""
    order = NumaMigration.model_validate(document)
    created = order.metadata.creation_timestamp
    assert created is not None
    done = order.status.completion_time
    return SeenOrder(
        order=order,
        first_seen=created if first is None else at(first),
        changed=at(changed),
        finished=at(finished) if finished is not None else done,
    )


def scene(placement: Any, *vmis: Any, **facts: Any) -> Situation:
    """Return a situation on hosts h1 (four NUMA nodes, ready) unless `hosts` says otherwise."""
    facts.setdefault("hosts", {"h1": host()})
    facts.setdefault("now", NOW)
    return Situation(placement=placement, vmis=tuple(vmis), **facts)


def decided(situation: Situation, **rules: Any) -> Decision:
    return decide(situation, rules=replace(RULES, **rules))


def word(decision: Decision) -> tuple[str, str]:
    """Return which of the three conditions is True (or Idle), and the reason."""
    assert decision.status is not None
    true = [each.type for each in decision.status.conditions if each.status == "True"]
    assert len(true) <= 1
    [reason] = {each.reason for each in decision.status.conditions}
    return (true[0] if true else "Idle", reason)


def message(decision: Decision) -> str:
    assert decision.status is not None
    [text] = {each.message for each in decision.status.conditions}
    return text


def kstatus_of(situation: Situation, decision: Decision) -> str:
    """Return what Flux would make of the placement with the decided status."""
    document = to_document(situation.placement.metadata)
    status = to_document(decision.status) if decision.status is not None else {}
    return kstatus({"metadata": document, "status": status})
