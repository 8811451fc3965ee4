# SPDX-License-Identifier: Apache-2.0
"""What `show` and `watch` tell, as data; an order's status has no place for most of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping as Table
from dataclasses import dataclass

from numaplacement.api.migration import ClassBytes
from numaplacement.api.schema import ObservedModel
from numaplacement.engine.host import HostFacts
from numaplacement.engine.listformat import format_list
from numaplacement.engine.mappings import NumaMapsRow
from numaplacement.engine.pins import Pins
from numaplacement.engine.process import ProcessFacts
from numaplacement.engine.survey import Survey
from numaplacement.engine.verdict import Refusal
from numaplacement.reporting.books import class_bytes


class ThreadView(ObservedModel):
    """One thread, the CPUs it may run on and the NUMA nodes these are of."""

    thread_id: int
    name: str
    vcpu: bool
    cpus: str
    numa_nodes: str
    realtime: str


class PinsView(ObservedModel):
    """What speaks for pinned memory, in bytes; `mlocked` is the part of `locked` that mlock(2) explains."""

    devices: tuple[str, ...]
    locked: int
    mlocked: int
    pinned: int


class PolicyView(ObservedModel):
    """A memory policy as numa_maps writes it, and the memory under it."""

    policy: str
    bytes: int


class RiskView(ObservedModel):
    """A refusal of a move to some NUMA nodes."""

    reason: str
    numa_nodes: str
    evidence: str
    remedy: str


class ProcessView(ObservedModel):
    """One process."""

    pid: int
    guest: str
    uuid: str
    memory: tuple[ClassBytes, ...]
    mems_allowed: str
    auto_numa: bool
    threads: tuple[ThreadView, ...]
    pins: PinsView
    policies: tuple[PolicyView, ...]
    risks: tuple[RiskView, ...]


class PlaceBytes(ObservedModel):
    """Memory on one NUMA node; on -1 what is swapped out, and on none."""

    numa_node: int
    bytes: int


class VmRow(ObservedModel):
    """One VM of the host; `bytes` is absent where this user may not look."""

    pid: int
    guest: str
    uuid: str
    bytes: tuple[PlaceBytes, ...] | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All that was gathered of one process; `refusals` with the NUMA node a move to which would be refused."""

    pid: int
    guest: str
    uuid: str
    host: HostFacts
    process: ProcessFacts
    pins: Pins
    survey: Survey
    policies: tuple[NumaMapsRow, ...]
    refusals: tuple[tuple[int, Refusal], ...]


def process_view(seen: Seen) -> ProcessView:
    """Return what is told of a process."""
    allowed = [thread.mems_allowed for thread in seen.process.threads]
    return ProcessView(
        pid=seen.pid,
        guest=seen.guest,
        uuid=seen.uuid,
        memory=class_bytes(seen.survey.rows),
        mems_allowed=format_list(frozenset.intersection(*allowed)) if allowed else "",
        auto_numa=seen.host.numa_balancing,
        threads=tuple(
            ThreadView(
                thread_id=thread.thread_id,
                name=thread.name,
                vcpu=thread.is_vcpu,
                cpus=format_list(thread.affinity),
                numa_nodes=format_list(node.numa_node for node in seen.host.numa_nodes if node.cpus & thread.affinity),
                realtime=thread.realtime,
            )
            for thread in seen.process.threads
        ),
        pins=PinsView(
            devices=seen.pins.devices,
            locked=seen.pins.locked,
            mlocked=seen.pins.mlocked,
            pinned=seen.pins.pinned,
        ),
        policies=_policies(seen.policies),
        risks=_risks(seen.refusals),
    )


def vm_row(pid: int, *, guest: str, uuid: str, count: Table[int, int] | None) -> VmRow:
    """Return the row of a VM; `count` are bytes by NUMA node, None where this user may not look."""
    rows = None if count is None else tuple(PlaceBytes(numa_node=at, bytes=each) for at, each in sorted(count.items()))
    return VmRow(pid=pid, guest=guest, uuid=uuid, bytes=rows)


def _policies(rows: tuple[NumaMapsRow, ...]) -> tuple[PolicyView, ...]:
    sums: dict[str, int] = {}
    for row in rows:
        sums[row.policy] = sums.get(row.policy, 0) + sum(row.bytes_by_numa_node.values())
    ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return tuple(PolicyView(policy=policy, bytes=count) for policy, count in ordered if count)


def _risks(found: tuple[tuple[int, Refusal], ...]) -> tuple[RiskView, ...]:
    """Return the refusals, those to several NUMA nodes that say the same in one row."""
    where: dict[Refusal, set[int]] = {}
    for numa_node, refusal in found:
        where.setdefault(refusal, set()).add(numa_node)
    return tuple(
        RiskView(
            reason=str(refusal.reason),
            numa_nodes=format_list(numa_nodes),
            evidence=refusal.evidence,
            remedy=refusal.remedy,
        )
        for refusal, numa_nodes in where.items()
    )
