# SPDX-License-Identifier: Apache-2.0
"""All that is known when one placement is decided, and what was decided, as plain data."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

from numaplacement.api.migration import NumaMigrationSpec
from numaplacement.api.placement import NumaPlacementStatus
from numaplacement.api.resources import (
    Metadata,
    NumaHost,
    NumaMigration,
    NumaPlacement,
    OwnerReference,
    VirtualMachineInstance,
)


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An object that exists and that the models cannot read, as happens when a newer version of us wrote it."""

    metadata: Metadata
    error: str
    """What is wrong with it, in a sentence."""
    status: NumaPlacementStatus = field(default_factory=NumaPlacementStatus)
    """Of a placement: its status as stored, as far as that can be read."""


@dataclass(frozen=True, kw_only=True)
class SeenOrder:
    """An order, and what this process has seen of it. The times guard against clocks that differ between hosts."""

    order: NumaMigration
    first_seen: datetime.datetime
    """When this process first saw the order."""
    changed: datetime.datetime
    """When this process last saw it change."""
    finished: datetime.datetime | None = None
    """When this process first saw it finished."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Everything one placement's decision is made from."""

    placement: NumaPlacement | Unreadable
    now: datetime.datetime
    vmis: tuple[VirtualMachineInstance | Unreadable, ...] = ()
    """The instances it selects, finished ones included."""
    orders: tuple[SeenOrder, ...] = ()
    """The orders it owns, finished ones included."""
    unreadable_orders: tuple[Unreadable, ...] = ()
    """Orders it owns that cannot be read."""
    hosts: Mapping[str, NumaHost | Unreadable] = field(default_factory=dict)
    """The hosts its instances run on, by name, as far as they are known."""
    rivals: tuple[NumaPlacement, ...] = ()
    """The other placements in the namespace that may select one of its VMs."""


@dataclass(frozen=True, kw_only=True)
class NewOrder:
    """An order to be applied."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    owner: OwnerReference
    spec: NumaMigrationSpec


@dataclass(frozen=True, order=True)
class OldOrder:
    """An order to be deleted, if it still is the one with this UID."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is to be done about one placement."""

    apply: tuple[NewOrder, ...] = ()
    delete: tuple[OldOrder, ...] = ()
    status: NumaPlacementStatus | None = None
    """What its status must say; None: leave it as it is."""
    requeue_after: float | None = None
    """Seconds after which time alone may change the decision; None: only an event can."""
