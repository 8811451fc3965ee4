# SPDX-License-Identifier: Apache-2.0
"""NumaPlacement: what a person or a GitOps pipeline writes."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import pydantic

from .conditions import Conditions
from .schema import DURATION, QUANTITY, QUANTITY_OR_PERCENT, Model, ObservedModel, rule

NUMA_NODE_LIMIT = 1023
"""Highest NUMA node number Linux can be built for (CONFIG_NODES_SHIFT is at most 10)."""

NumaNode = Annotated[int, pydantic.Field(ge=0, le=NUMA_NODE_LIMIT, json_schema_extra={"format": "int32"})]
"""Number of a NUMA node on a host."""

Bytes = Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int64"})]
"""A number of bytes."""

Name = Annotated[str, pydantic.Field(min_length=1, max_length=253)]
"""Name of a Kubernetes object."""


class Mode(enum.StrEnum):
    """How long a placement holds."""

    ONCE = "Once"
    KEEP = "Keep"


class Threads(enum.StrEnum):
    """What becomes of the VM's threads."""

    FOLLOW = "Follow"
    LEAVE = "Leave"


class Allowance(enum.StrEnum):
    """One thing that is not harmless and therefore needs a word of permission."""

    RECLAIM = "Reclaim"
    GROW_HUGE_PAGES = "GrowHugePages"
    REBIND_CPUSET = "RebindCpuset"
    STRICT_BINDING = "StrictBinding"
    REALTIME = "Realtime"
    PINNED_PART = "PinnedPart"


class SelectorRequirement(Model):
    """One expression over a label."""

    key: Annotated[str, pydantic.Field(min_length=1, max_length=317)]
    """Label key."""
    operator: Annotated[str, pydantic.Field(json_schema_extra={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]})]
    """In, NotIn, Exists or DoesNotExist."""
    values: Annotated[
        tuple[Annotated[str, pydantic.Field(max_length=63)], ...],
        pydantic.Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Values the operators In and NotIn compare with."""


class LabelSelector(Model):
    """Selects VirtualMachineInstances of the placement's namespace by their labels; all of it has to match."""

    match_labels: Annotated[
        dict[str, Annotated[str, pydantic.Field(max_length=63)]],
        pydantic.Field(default_factory=dict, json_schema_extra={"maxProperties": 32}),
    ]
    """Labels and the values they must have."""
    match_expressions: Annotated[
        tuple[SelectorRequirement, ...],
        pydantic.Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Expressions that must hold."""


class VmSelection(Model):
    """The VM, or the VMs, whose memory is meant."""

    model_config = pydantic.ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule("has(self.name) != has(self.selector)", "give exactly one of name and selector")
            ]
        }
    )

    name: Name | None = None
    """Name of one VirtualMachineInstance in the placement's namespace (a VirtualMachine's instance has the same
    name)."""
    selector: LabelSelector | None = None
    """Selects any number of VirtualMachineInstances in the placement's namespace, coming and going."""


class CellTarget(Model):
    """Where the memory of one guest NUMA cell belongs."""

    cell: Annotated[int, pydantic.Field(ge=0, le=127, json_schema_extra={"format": "int32"})]
    """Number of the guest NUMA cell."""
    numa_node: NumaNode
    """NUMA node of the host where the cell's memory belongs."""


class Limits(Model):
    """How hard a move may press on the VM and its host."""

    bandwidth: Annotated[
        int | str | None, pydantic.Field(json_schema_extra={"x-kubernetes-int-or-string": True, "pattern": QUANTITY})
    ] = None
    """At most so many bytes per second, as a quantity: 500Mi. Not given: as fast as callLatency lets it."""
    call_latency: Annotated[str, pydantic.Field(pattern=DURATION, max_length=32)] = "20ms"
    """Longest that a single kernel call should take (the 99th percentile of them); the VM may wait so long for a
    page."""
    deadline: Annotated[str, pydantic.Field(pattern=DURATION, max_length=32)] = "10m"
    """Longest that one attempt may take; what is left then stays where it is and is reported."""
    attempts: Annotated[int, pydantic.Field(ge=1, le=100, json_schema_extra={"format": "int32"})] = 3
    """How often to try before the placement counts as stalled."""


CELL_LIST: dict[str, Any] = {
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["cell"],
    "minItems": 1,
    "maxItems": 128,
}
SET_LIST: dict[str, Any] = {"x-kubernetes-list-type": "set", "maxItems": len(Allowance)}
ONE_TARGET = rule("has(self.numaNode) != has(self.cells)", "give exactly one of numaNode and cells")


class NumaPlacementSpec(Model):
    """Where the memory of a VM belongs."""

    model_config = pydantic.ConfigDict(json_schema_extra={"x-kubernetes-validations": [ONE_TARGET]})

    vm: VmSelection
    """The VM, by name, or several, by selector."""
    numa_node: NumaNode | None = None
    """NUMA node of the host where all of the VM's memory belongs. Exactly one of numaNode and cells is given."""
    cells: Annotated[tuple[CellTarget, ...] | None, pydantic.Field(json_schema_extra=CELL_LIST)] = None
    """NUMA node for each guest NUMA cell. Exactly one of numaNode and cells is given."""
    mode: Mode = Mode.ONCE
    """Once: once for each instance of the VM, so again after a restart or a live migration. Keep: also repair drift
    later."""
    threads: Threads = Threads.FOLLOW
    """Follow: the VM's threads may run on the CPUs of the NUMA node, set before memory moves. Leave: threads are not
    touched."""
    allow: Annotated[tuple[Allowance, ...], pydantic.Field(json_schema_extra=SET_LIST)] = ()
    """Things it may do that are not harmless, a word each: Reclaim pushes page cache out of the target, GrowHugePages
    changes
    huge-page pools, RebindCpuset writes the container's cpuset.mems, StrictBinding takes VMs whose cells are bound to
    NUMA nodes,
    Realtime takes VMs with FIFO vCPUs, PinnedPart moves what can be moved of a VM with pinned memory."""
    limits: Annotated[Limits, pydantic.Field(json_schema_extra={"default": {}})] = Limits()
    """How hard a move may press on the VM and its host."""
    tolerance: Annotated[
        int | str,
        pydantic.Field(json_schema_extra={"x-kubernetes-int-or-string": True, "pattern": QUANTITY_OR_PERCENT}),
    ] = 0
    """Memory that may stay behind and the VM still counts as placed, as a quantity (64Mi) or a percentage (0.5%)."""
    priority: Annotated[int, pydantic.Field(ge=-1000, le=1000, json_schema_extra={"format": "int32"})] = 0
    """Place in the host's queue of moves: higher goes first."""
    dry_run: bool = False
    """Plan and report, touch nothing."""
    suspend: bool = False
    """Stop acting on this placement: a move under way is ended, none is started."""


class NumaNodeBytes(ObservedModel):
    """Memory on one NUMA node."""

    numa_node: NumaNode
    """NUMA node of the host."""
    bytes: Bytes
    """Bytes of the VM that are there."""


class ReasonBytes(ObservedModel):
    """Memory that stayed behind for one reason."""

    reason: Annotated[str, pydantic.Field(max_length=64)]
    """Why it stayed; each reason is explained in the order's status, with its remedy."""
    bytes: Bytes
    """Bytes that stayed for this reason."""


class VmState(enum.StrEnum):
    """Where one VM of a placement is."""

    PLACED = "Placed"
    MOVING = "Moving"
    WAITING = "Waiting"
    PLANNED = "Planned"
    RESIDUE = "Residue"
    REFUSED = "Refused"
    FAILED = "Failed"


def by_numa_node(description: str) -> Any:  # noqa: ANN401 - pydantic's Field() is typed so
    """Return the field of a list with one row for each NUMA node."""
    return pydantic.Field(
        description=description,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["numaNode"],
            "maxItems": NUMA_NODE_LIMIT + 1,
        },
    )


class VmStatus(ObservedModel):
    """What is known of one VM of the placement; the whole verdict is in its order."""

    name: Name
    """Name of the VirtualMachineInstance."""
    state: VmState
    """Placed, Moving, Waiting, Planned, Residue, Refused or Failed."""
    reason: Annotated[str, pydantic.Field(max_length=128)] = ""
    """One word for programs that says why it is in that state."""
    message: Annotated[str, pydantic.Field(max_length=1024)] = ""
    """A sentence for people that says why, and what to do about it."""
    uid: Annotated[str, pydantic.Field(max_length=64)] = ""
    """UID of the VirtualMachineInstance."""
    pod_uid: Annotated[str, pydantic.Field(max_length=64, alias="podUID")] = ""
    """UID of the virt-launcher pod the VM runs in."""
    node_name: Annotated[str, pydantic.Field(max_length=253)] = ""
    """Host the VM runs on."""
    order: Annotated[str, pydantic.Field(max_length=253)] = ""
    """Name of the NumaMigration in the same namespace that holds the whole verdict."""
    asked: Bytes = 0
    """Bytes that were asked to be on the target."""
    on_target: Bytes = 0
    """Bytes of these that are there."""
    before: Annotated[tuple[NumaNodeBytes, ...], by_numa_node("Bytes by NUMA node before the move.")] = ()
    after: Annotated[tuple[NumaNodeBytes, ...], by_numa_node("Bytes by NUMA node after the move.")] = ()
    residue: Annotated[
        tuple[ReasonBytes, ...],
        pydantic.Field(
            description="Bytes that stayed behind, by reason.",
            json_schema_extra={
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["reason"], "maxItems": 64,
            },
        ),
    ] = ()  # fmt: skip


class Summary(ObservedModel):
    """All VMs of the placement in a few numbers."""

    vms: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """VMs the placement is about."""
    placed: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """VMs whose memory is where it belongs."""
    moving: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """VMs being moved now, or waiting for it."""
    residue: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """VMs of which more than the tolerance stayed behind."""
    refused: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """VMs that were not touched, for a reason given in their row."""
    failed: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """VMs whose order came to no verdict, because the VM went away or the agent met a fault."""
    bytes_asked: Bytes = 0
    """Bytes asked to be on their target, of all VMs together."""
    bytes_on_target: Bytes = 0
    """Bytes of these that are there."""
    on_target: Annotated[str, pydantic.Field(max_length=16)] = ""
    """Share of the bytes that are on target, for people; 100% means every one."""
    left: Annotated[str, pydantic.Field(max_length=32)] = ""
    """Bytes that are not, for people."""


VM_ROWS = 64
"""Most rows in status.vms; the worst come first."""


class NumaPlacementStatus(ObservedModel):
    """What came of it."""

    observed_generation: Annotated[int, pydantic.Field(json_schema_extra={"format": "int64"})] = -1
    """metadata.generation this status is about; -1 until the operator has seen the object."""
    conditions: Conditions = ()
    """Ready, Reconciling and Stalled, by the kstatus rules."""
    summary: Summary = Summary()
    """All VMs of the placement in a few numbers."""
    vms: Annotated[
        tuple[VmStatus, ...],
        pydantic.Field(
            json_schema_extra={
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "maxItems": VM_ROWS,
            }
        ),
    ] = ()  # fmt: skip
    """The VMs, worst first, at most 64 of them."""
