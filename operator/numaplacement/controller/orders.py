# SPDX-License-Identifier: Apache-2.0
"""Orders: what the present wish asks for, which existing order answers it, and which are history."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable

from numaplacement.api.migration import NumaMigrationSpec, OrderTarget, VmReference
from numaplacement.api.placement import Limits
from numaplacement.api.resources import (
    GENERATION_LABEL,
    PLACEMENT_LABEL,
    PLACEMENTS,
    VM_LABEL,
    Document,
    NumaMigration,
    NumaPlacement,
    OwnerReference,
    VirtualMachineInstance,
    to_document,
)

from .situation import NewOrder, OldOrder, SeenOrder
from .vm_state import Running

NAME_PART = 40
"""Characters of the placement's name that begin the order's."""
_BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)


def wish(placement: NumaPlacement, *, vmi: VirtualMachineInstance, running: Running, attempt: int = 1) -> NewOrder:
    """Return the order that carries out `placement` for one instance of a VM.

    Its name follows from what it is made from: whoever decides the same, decides the same name, so that an order can be
    given twice and exist once.
    """
    spec = placement.spec
    order = NumaMigrationSpec(
        node_name=running.host,
        vm=VmReference(name=vmi.metadata.name, uid=vmi.metadata.uid, firmware_uuid=vmi.spec.domain.firmware.uuid),
        pod_uid=running.pod_uid,
        target=OrderTarget(numa_node=spec.numa_node, cells=spec.cells),
        threads=spec.threads,
        allow=spec.allow,
        limits=spec.limits,
        tolerance=spec.tolerance,
        priority=spec.priority,
        dry_run=spec.dry_run,
        attempt=attempt,
    )
    metadata = placement.metadata
    return NewOrder(
        name=_name(placement, order),
        namespace=metadata.namespace,
        labels={
            PLACEMENT_LABEL: metadata.uid,
            VM_LABEL: vmi.metadata.uid,
            GENERATION_LABEL: str(metadata.generation),
        },
        owner=OwnerReference(
            api_version=PLACEMENTS.api_version,
            kind=PLACEMENTS.kind,
            name=metadata.name,
            uid=metadata.uid,
            controller=True,
        ),
        spec=order,
    )


def _name(placement: NumaPlacement, spec: NumaMigrationSpec) -> str:
    metadata = placement.metadata
    facts = [metadata.uid, metadata.generation, to_document(spec.model_copy(update={"attempt": 1}))]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
    return f"{metadata.name[:NAME_PART].rstrip('-.')}-{digest}-{spec.attempt}"


def order_document(new: NewOrder) -> Document:
    """Return what is applied for an order."""
    # blockOwnerDeletion stays out: it would take the right to set finalizers of placements.
    return {
        "metadata": {
            "name": new.name,
            "namespace": new.namespace,
            "labels": dict(new.labels),
            "ownerReferences": [to_document(new.owner)],
        },
        "spec": to_document(new.spec),
    }


def same_order(one: NumaMigrationSpec, other: NumaMigrationSpec) -> bool:
    """Say whether two orders are attempts at the very same thing in the same manner."""
    return _comparable(one) == _comparable(other)


def _comparable(spec: NumaMigrationSpec) -> NumaMigrationSpec:
    # How many attempts there may be is for the operator, not for the agent: it changes nothing about an order.
    limits = spec.limits.model_copy(update={"attempts": 1})
    return spec.model_copy(update={"attempt": 1, "limits": limits})


def same_goal(one: NumaMigrationSpec, other: NumaMigrationSpec) -> bool:
    """Say whether two orders want the same end, in whatever manner: what one has reached the other need not do."""
    return _goal(one) == _goal(other)


def _goal(spec: NumaMigrationSpec) -> NumaMigrationSpec:
    return _comparable(spec).model_copy(update={"limits": Limits(), "priority": 0})


def newest_of_instance(orders: Iterable[SeenOrder], *, vmi_uid: str, pod_uid: str) -> tuple[SeenOrder, ...]:
    """Return the orders about one VM instance in one pod, those being deleted left out, newest first.

    The placement's generation comes before the creation time, which has whole seconds only.
    """
    mine = [
        seen
        for seen in orders
        if seen.order.spec.vm.uid == vmi_uid
        and seen.order.spec.pod_uid == pod_uid
        and seen.order.metadata.deletion_timestamp is None
    ]
    return tuple(
        sorted(
            mine,
            key=lambda seen: (_generation(seen.order), _created(seen.order), seen.order.spec.attempt),
            reverse=True,
        )
    )


def is_finished(order: NumaMigration) -> bool:
    """Say whether the agent has reached a verdict."""
    return order.status.result is not None


def is_taken_up(order: NumaMigration) -> bool:
    """Say whether the agent has noticed the order."""
    status = order.status
    return status.observed_generation >= 0 or bool(status.conditions) or status.start_time is not None


def unfinished(orders: Iterable[SeenOrder], *, keep: Iterable[str]) -> tuple[OldOrder, ...]:
    """Return the unfinished orders that nobody wants any more: all but those whose UIDs are in `keep`."""
    kept = frozenset(keep)
    return tuple(
        sorted(
            old(seen.order)
            for seen in orders
            if not is_finished(seen.order)
            and seen.order.metadata.uid not in kept
            and seen.order.metadata.deletion_timestamp is None
        )
    )


def outdated(
    orders: Iterable[SeenOrder], *, current_vms: Iterable[str], keep: Iterable[str], history: int
) -> tuple[OldOrder, ...]:
    """Return the finished orders beyond the `history` newest of each VM.

    VMs that the placement is no longer about share one history; UIDs in `keep` are never returned.
    """
    kept, current = frozenset(keep), frozenset(current_vms)
    histories: dict[str, list[NumaMigration]] = {}
    for seen in orders:
        order = seen.order
        if is_finished(order) and order.metadata.deletion_timestamp is None:
            vm = order.spec.vm.name
            histories.setdefault(vm if vm in current else "", []).append(order)
    surplus: list[OldOrder] = []
    for past in histories.values():
        past.sort(key=lambda order: (_created(order), _generation(order), order.spec.attempt), reverse=True)
        surplus += [old(order) for order in past[history:] if order.metadata.uid not in kept]
    return tuple(sorted(surplus))


def old(order: NumaMigration) -> OldOrder:
    """Return what it takes to delete the order."""
    return OldOrder(namespace=order.metadata.namespace, name=order.metadata.name, uid=order.metadata.uid)


def _created(order: NumaMigration) -> datetime.datetime:
    return order.metadata.creation_timestamp or _BEGINNING


def _generation(order: NumaMigration) -> int:
    text = order.metadata.labels.get(GENERATION_LABEL, "")
    return int(text) if text.isdecimal() else 0
