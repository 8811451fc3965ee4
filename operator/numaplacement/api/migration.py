# SPDX-License-Identifier: Apache-2.0
"""NumaMigration: one order to the agent of one host, and that agent's verdict."""

from __future__ import annotations

import datetime
import enum
from typing import Annotated

import pydantic

from .conditions import Conditions
from .placement import (
    CELL_LIST,
    NUMA_NODE_LIMIT,
    ONE_TARGET,
    SET_LIST,
    Allowance,
    Bytes,
    CellTarget,
    Limits,
    Name,
    NumaNode,
    Threads,
)
from .schema import QUANTITY_OR_PERCENT, Model, ObservedModel, rule

Uid = Annotated[str, pydantic.Field(min_length=1, max_length=64)]
"""UID of a Kubernetes object."""


class VmReference(Model):
    """The VM, so exactly that no other can be taken for it."""

    name: Name
    """Name of the VirtualMachineInstance, in the order's namespace."""
    uid: Uid
    """UID of the VirtualMachineInstance."""
    firmware_uuid: Annotated[str, pydantic.Field(max_length=64, alias="firmwareUUID")] = ""
    """The VMI's spec.domain.firmware.uuid, which QEMU carries on its command line; empty when the VMI has none."""


class OrderTarget(Model):
    """Where the memory belongs."""

    model_config = pydantic.ConfigDict(json_schema_extra={"x-kubernetes-validations": [ONE_TARGET]})

    numa_node: NumaNode | None = None
    """NUMA node for all of the VM's memory. Exactly one of numaNode and cells is given."""
    cells: Annotated[tuple[CellTarget, ...] | None, pydantic.Field(json_schema_extra=CELL_LIST)] = None
    """NUMA node for each guest NUMA cell. Exactly one of numaNode and cells is given."""

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """All NUMA nodes memory is to go to, ascending."""
        if self.numa_node is not None:
            return (self.numa_node,)
        return tuple(sorted({each.numa_node for each in self.cells or ()}))

    @property
    def words(self) -> str:
        """The target as messages name it: ``NUMA node 2``, or ``NUMA node 2 (cell 0) and 3 (cell 1)``."""
        if self.numa_node is not None:
            return f"NUMA node {self.numa_node}"
        cells = sorted(self.cells or (), key=lambda each: each.cell)
        parts = [f"{each.numa_node} (cell {each.cell})" for each in cells]
        return "NUMA node " + " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


class NumaMigrationSpec(Model):
    """An order. It never changes: another wish is another order."""

    model_config = pydantic.ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule("self == oldSelf", "an order never changes; delete it and let the operator make another")
            ]
        }
    )

    node_name: Annotated[str, pydantic.Field(min_length=1, max_length=253)]
    """Host whose agent is to carry the order out."""
    vm: VmReference
    """The VM."""
    pod_uid: Annotated[str, pydantic.Field(min_length=1, max_length=64, alias="podUID")]
    """UID of the virt-launcher pod; the agent touches no process outside this pod."""
    target: OrderTarget
    """Where the memory belongs."""
    threads: Threads = Threads.FOLLOW
    """Whether the VM's threads follow the memory."""
    allow: Annotated[tuple[Allowance, ...], pydantic.Field(json_schema_extra=SET_LIST)] = ()
    """What the agent may do that is not harmless."""
    limits: Annotated[Limits, pydantic.Field(json_schema_extra={"default": {}})] = Limits()
    """How hard the move may press."""
    tolerance: Annotated[
        int | str,
        pydantic.Field(json_schema_extra={"x-kubernetes-int-or-string": True, "pattern": QUANTITY_OR_PERCENT}),
    ] = 0
    """Memory that may stay behind and the VM still counts as placed."""
    priority: Annotated[int, pydantic.Field(ge=-1000, le=1000, json_schema_extra={"format": "int32"})] = 0
    """Place in the host's queue: higher goes first."""
    dry_run: bool = False
    """Plan and report, touch nothing."""
    attempt: Annotated[int, pydantic.Field(ge=1, le=100, json_schema_extra={"format": "int32"})] = 1
    """Which try this is, from 1."""


class Result(enum.StrEnum):
    """How an order ended."""

    PLACED = "Placed"
    """All of it is on target, but for the tolerance."""
    RESIDUE = "Residue"
    """It was moved and more than the tolerance stayed behind."""
    REFUSED = "Refused"
    """Nothing was touched; the reason is in the conditions and the residue."""
    PLANNED = "Planned"
    """It was a dry run."""
    CANCELLED = "Cancelled"
    """Deleted or suspended while it ran; what had moved stays moved."""
    DEADLINE = "DeadlineExceeded"
    """limits.deadline ran out; what had moved stays moved."""
    VM_GONE = "VmGone"
    """The VM's process ended or was replaced."""
    FAILED = "Failed"
    """The agent met a fault of its own; the message says which."""


class PageClass(enum.StrEnum):
    """What kind of page the memory is made of."""

    ANON = "Anon"
    """Private anonymous memory in base pages: guest RAM by default, and QEMU's own heap and stacks."""
    ANON_HUGE = "AnonHuge"
    """Private anonymous memory in transparent huge pages."""
    SHMEM = "Shmem"
    """memfd, tmpfs and System V shared memory: guest RAM that is shared with virtiofsd or vhost-user."""
    FILE = "File"
    """Page cache of files, such as QEMU's own program text."""
    HUGETLB = "Hugetlb"
    """Pages of a huge-page pool."""
    SWAPPED = "Swapped"
    """Swapped out: on no NUMA node, -1."""


NO_NUMA_NODE = -1
"""Where memory is that is swapped out, and what a note is about that concerns the whole host."""

ObservedNumaNode = Annotated[
    int, pydantic.Field(ge=NO_NUMA_NODE, le=NUMA_NODE_LIMIT, json_schema_extra={"format": "int32"})
]
"""Number of a NUMA node on a host, or NO_NUMA_NODE."""


class ClassBytes(ObservedModel):
    """Memory of one kind on one NUMA node."""

    numa_node: ObservedNumaNode
    """NUMA node of the host; -1 for memory that is swapped out and on none."""
    page_class: PageClass
    """Anon, AnonHuge, Shmem, File, Hugetlb or Swapped."""
    bytes: Bytes
    """Bytes of that kind there."""


UNCOUNTED = frozenset({"no-cell", "shared-file", "unmigratable-mapping"})
"""Reasons of residue rows that are no fault: memory nothing was asked of, which `asked` does not contain."""

UNTRIED = "not-attempted"
"""Reason of a residue row for memory that was left alone because of what the other rows say."""

WOULD_MOVE = "planned"
"""Reason of a residue row of a dry run: memory that would be moved. What stands under other reasons would stay."""


class Residue(ObservedModel):
    """Memory that is not on target, and why. Every byte off target is in exactly one row."""

    reason: Annotated[str, pydantic.Field(max_length=64)]
    """Why it stayed; docs/reasons.md of the project has a section for each reason."""
    numa_node: ObservedNumaNode
    """NUMA node where it is; -1 for memory that is swapped out and on none."""
    bytes: Bytes
    """Bytes that stayed there for this reason."""
    permanent: bool
    """True: trying again cannot help as long as the cause stands."""
    evidence: Annotated[str, pydantic.Field(max_length=1024)]
    """What the agent saw that proves or suggests the reason."""
    remedy: Annotated[str, pydantic.Field(max_length=1024)]
    """What a person can do about it."""


class Note(ObservedModel):
    """Something to know that is no residue, such as huge pages that were split."""

    reason: Annotated[str, pydantic.Field(max_length=64)]
    """What it is about, in the words of residue."""
    numa_node: ObservedNumaNode
    """NUMA node it is about; -1 for the whole host."""
    bytes: Bytes
    """Bytes it is about; 0 where none are meant."""
    evidence: Annotated[str, pydantic.Field(max_length=1024)]
    """What the agent saw."""
    remedy: Annotated[str, pydantic.Field(max_length=1024)]
    """What a person can do about it."""


class Progress(ObservedModel):
    """How far the move is, written at most every two seconds."""

    stage: Annotated[str, pydantic.Field(max_length=32)]
    """Queued, Survey, Threads, Move or Verify."""
    pass_number: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"}, alias="pass")] = 0
    """Pass over the memory, from 1."""
    bytes_done: Bytes = 0
    """Bytes moved so far."""
    bytes_total: Bytes = 0
    """Bytes to move in all, as planned."""
    bytes_per_second: Bytes = 0
    """Rate since the move began."""


class ThreadReport(ObservedModel):
    """What became of the VM's threads."""

    followed: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """Threads that may now run on the target's CPUs and nowhere else."""
    left: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """Threads that were left as they were."""
    cpus: Annotated[str, pydantic.Field(max_length=4096)] = ""
    """CPUs the followers were given, as a list such as 0-3,8."""
    message: Annotated[str, pydantic.Field(max_length=1024)] = ""
    """Why threads were left, where any were."""


class Calls(ObservedModel):
    """Kernel calls that moved memory; the VM waits for a page at most about so long."""

    count: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int64"})] = 0
    """How many."""
    p50: Annotated[str, pydantic.Field(max_length=32)] = "0ms"
    """Median duration of one call."""
    p99: Annotated[str, pydantic.Field(max_length=32)] = "0ms"
    """99th percentile of the duration of one call."""


_ATOMIC_ROWS = {"x-kubernetes-list-type": "atomic", "maxItems": 8192}


class NumaMigrationStatus(ObservedModel):
    """What the agent did and saw.

    The sums close: before - freed + grown = after; every byte of after that is not on target is in one row of residue.
    """

    observed_generation: Annotated[int, pydantic.Field(json_schema_extra={"format": "int64"})] = -1
    """metadata.generation this status is about; -1 until the agent has seen the order."""
    conditions: Conditions = ()
    """Ready, Reconciling and Stalled, by the kstatus rules."""
    result: Result | None = None
    """How it ended; absent while it runs."""
    start_time: datetime.datetime | None = None
    """When the agent took the order up."""
    completion_time: datetime.datetime | None = None
    """When the verdict was reached."""
    progress: Progress | None = None
    """How far it is; absent before and after."""
    before: Annotated[tuple[ClassBytes, ...], pydantic.Field(json_schema_extra=_ATOMIC_ROWS)] = ()
    """The VM's memory by NUMA node and kind before the first page was touched."""
    after: Annotated[tuple[ClassBytes, ...], pydantic.Field(json_schema_extra=_ATOMIC_ROWS)] = ()
    """The VM's memory by NUMA node and kind, read back from the kernel after the last page moved."""
    asked: Bytes = 0
    """Bytes asked to be on target: all of after, but for what stands in residue as no-cell, shared-file or
    unmigratable-mapping."""
    on_target: Bytes = 0
    """Bytes of these that are there."""
    moved: Bytes = 0
    """Bytes that were elsewhere before and are on target after."""
    freed: Bytes = 0
    """Bytes the VM gave back while the move ran."""
    grown: Bytes = 0
    """Bytes the VM took on while the move ran."""
    split: Bytes = 0
    """Bytes that were in transparent huge pages before and are in base pages after."""
    residue: Annotated[tuple[Residue, ...], pydantic.Field(json_schema_extra=_ATOMIC_ROWS)] = ()
    """Every byte that is not on target, by reason and NUMA node, the most first."""
    notes: Annotated[
        tuple[Note, ...], pydantic.Field(json_schema_extra={"x-kubernetes-list-type": "atomic", "maxItems": 256})
    ] = ()
    """What else is to be known: huge pages that were split, what may bring memory back."""
    stayed: bool | None = None
    """Whether the memory was still on target after two scans of AutoNUMA; absent where nobody has looked."""
    threads: ThreadReport | None = None
    """What became of the VM's threads."""
    calls: Calls | None = None
    """How long the kernel calls took."""
    rate: Bytes = 0
    """Bytes moved for each second of moving."""
    seconds: Annotated[float, pydantic.Field(ge=0, json_schema_extra={"format": "double"})] = 0.0
    """Seconds from the first look to the verdict."""
    passes: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """Passes over the memory."""
