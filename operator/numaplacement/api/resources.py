# SPDX-License-Identifier: Apache-2.0
"""The three resources whole: names, short names, columns, and the objects as they come from an API server."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pydantic

from .host import NumaHostStatus
from .migration import NumaMigrationSpec, NumaMigrationStatus
from .placement import NumaPlacementSpec, NumaPlacementStatus
from .schema import ObservedModel

GROUP = "numaplacement.io"
VERSION = "v1alpha1"
CATEGORY = "numa"

PLACEMENT_LABEL = f"{GROUP}/placement-uid"
"""On an order: UID of the placement it belongs to."""
VM_LABEL = f"{GROUP}/vm-uid"
"""On an order: UID of the VirtualMachineInstance it is about."""
GENERATION_LABEL = f"{GROUP}/placement-generation"
"""On an order: metadata.generation of the placement it was made from, which tells orders of one second apart."""


@dataclass(frozen=True)
class Resource:
    """How a kind is addressed on an API server."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """Return ``group/version``, or the version alone in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version


PLACEMENTS = Resource(group=GROUP, version=VERSION, kind="NumaPlacement", plural="numaplacements", namespaced=True)
MIGRATIONS = Resource(group=GROUP, version=VERSION, kind="NumaMigration", plural="numamigrations", namespaced=True)
HOSTS = Resource(group=GROUP, version=VERSION, kind="NumaHost", plural="numahosts", namespaced=False)
VMIS = Resource(
    group="kubevirt.io",
    version="v1",
    kind="VirtualMachineInstance",
    plural="virtualmachineinstances",
    namespaced=True,
)
NODES = Resource(group="", version="v1", kind="Node", plural="nodes", namespaced=False)


class OwnerReference(ObservedModel):
    """Says which object an object belongs to."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False


class Metadata(ObservedModel):
    """The part of an object's metadata that we read."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: datetime.datetime | None = None
    deletion_timestamp: datetime.datetime | None = None
    labels: dict[str, str] = pydantic.Field(default_factory=dict)
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Return namespace and name."""
        return (self.namespace, self.name)


Spec = TypeVar("Spec", bound=pydantic.BaseModel)
Status = TypeVar("Status", bound=pydantic.BaseModel)


class Object(ObservedModel, Generic[Spec, Status]):
    """An object as it comes from an API server."""

    metadata: Metadata
    spec: Spec
    status: Status


class NumaPlacement(Object[NumaPlacementSpec, NumaPlacementStatus]):
    """Says where the memory of a running KubeVirt VM belongs; the operator makes it so and says what came of it."""

    status: NumaPlacementStatus = NumaPlacementStatus()


class NumaMigration(Object[NumaMigrationSpec, NumaMigrationStatus]):
    """One order of the operator to one host's agent to move the memory of one VM, with the agent's verdict."""

    status: NumaMigrationStatus = NumaMigrationStatus()


class NumaHost(ObservedModel):
    """What one host has: its NUMA nodes, its VMs and whether its agent can do its work. Written by that agent."""

    metadata: Metadata
    status: NumaHostStatus = NumaHostStatus()


class VmiMigrationState(ObservedModel):
    """The part of ``VMI.status.migrationState`` that we read."""

    start_timestamp: str | None = None
    end_timestamp: str | None = None
    completed: bool = False
    failed: bool = False


class VmiFirmware(ObservedModel):
    """The part of ``VMI.spec.domain.firmware`` that we read."""

    uuid: str = ""


class VmiDomain(ObservedModel):
    """The part of ``VMI.spec.domain`` that we read."""

    firmware: VmiFirmware = VmiFirmware()


class VmiSpec(ObservedModel):
    """The part of ``VMI.spec`` that we read."""

    domain: VmiDomain = VmiDomain()


class VmiStatus(ObservedModel):
    """The part of ``VMI.status`` that we read (kubevirt.io/api v1.9, core/v1/types.go)."""

    phase: str = ""
    node_name: str = ""
    active_pods: dict[str, str] = pydantic.Field(default_factory=dict)
    migration_state: VmiMigrationState | None = None


class VirtualMachineInstance(ObservedModel):
    """The part of KubeVirt's VirtualMachineInstance that we read."""

    metadata: Metadata
    spec: VmiSpec = VmiSpec()
    status: VmiStatus = VmiStatus()


Document = dict[str, Any]
"""A Kubernetes object as plain JSON data."""


def to_document(model: pydantic.BaseModel) -> Document:
    """Return `model` as it goes to an API server: camelCase, times in whole seconds of UTC, absent fields left out."""
    document: Document = _plain(model.model_dump(mode="python", by_alias=True, exclude_none=True))
    return document


def _plain(value: Any) -> Any:  # noqa: ANN401 - walks arbitrary JSON data
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return str(value) if isinstance(value, str) else value
