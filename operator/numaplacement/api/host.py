# SPDX-License-Identifier: Apache-2.0
"""NumaHost: what one host has, as its agent sees it."""

from __future__ import annotations

from typing import Annotated

import pydantic

from .conditions import Conditions
from .placement import Bytes, NumaNode, NumaNodeBytes, by_numa_node
from .schema import ObservedModel


class HugePagePool(ObservedModel):
    """The pool of huge pages of one size on one NUMA node."""

    page_size: Bytes
    """Bytes of one page."""
    total: Bytes
    """Bytes in the pool."""
    free: Bytes
    """Bytes of these that nobody uses."""


class HostNumaNode(ObservedModel):
    """One NUMA node of the host."""

    numa_node: NumaNode
    """Its number."""
    cpus: Annotated[str, pydantic.Field(max_length=4096)] = ""
    """Its CPUs, as a list such as 0-3,8; empty when it has memory only."""
    distances: Annotated[
        tuple[Annotated[int, pydantic.Field(ge=0, le=255)], ...],
        pydantic.Field(json_schema_extra={"x-kubernetes-list-type": "atomic", "maxItems": 1024}),
    ] = ()
    """Distance to each NUMA node, itself included (10 is itself), in the order of this list."""
    total: Bytes = 0
    """Bytes of memory."""
    free: Bytes = 0
    """Bytes that are free."""
    movable: Bytes = 0
    """Bytes that can be moved here without anybody on the host having to give memory back: above every zone's high
    watermark."""
    huge_pages: Annotated[
        tuple[HugePagePool, ...],
        pydantic.Field(
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["pageSize"],
                "maxItems": 16,
            }
        ),
    ] = ()
    """Its pools of huge pages."""


class HostVm(ObservedModel):
    """One VM on the host, and where its memory is."""

    pod_uid: Annotated[str, pydantic.Field(min_length=1, max_length=64, alias="podUID")]
    """UID of its virt-launcher pod."""
    guest: Annotated[str, pydantic.Field(max_length=512)] = ""
    """Its name on QEMU's command line: namespace and name joined by an underscore."""
    bytes: Annotated[tuple[NumaNodeBytes, ...], by_numa_node("Its memory by NUMA node.")] = ()


class NumaHostStatus(ObservedModel):
    """What the agent sees on its host."""

    conditions: Conditions = ()
    """Ready, and one condition for each self-test of the agent."""
    agent_version: Annotated[str, pydantic.Field(max_length=64)] = ""
    """Version of the agent."""
    kernel: Annotated[str, pydantic.Field(max_length=256)] = ""
    """Release of the host's kernel."""
    numa_node_list: Annotated[str, pydantic.Field(max_length=4096)] = ""
    """Numbers of its NUMA nodes, as a list such as 0-3, for people."""
    numa_nodes: Annotated[tuple[HostNumaNode, ...], by_numa_node("Its NUMA nodes.")] = ()
    vms: Annotated[
        tuple[HostVm, ...],
        pydantic.Field(
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["podUID"],
                "maxItems": 4096,
            }
        ),
    ] = ()
    """The VMs on it, and where their memory is."""
