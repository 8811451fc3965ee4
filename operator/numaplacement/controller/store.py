# SPDX-License-Identifier: Apache-2.0
"""Everything seen of the cluster, and which placements a change concerns. Pure look-ups, no input or output."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pydantic

from numaplacement.api.conditions import find
from numaplacement.api.placement import NumaPlacementStatus
from numaplacement.api.resources import (
    HOSTS,
    MIGRATIONS,
    PLACEMENTS,
    VMIS,
    Document,
    Metadata,
    NumaHost,
    NumaMigration,
    NumaPlacement,
    Resource,
    VirtualMachineInstance,
)

from .orders import is_finished
from .selection import selects
from .shelf import Change, Key, Shelf, metadata_of
from .situation import SeenOrder, Unreadable

WATCHED = (PLACEMENTS, MIGRATIONS, HOSTS, VMIS)
"""The kinds a store holds."""

Model = TypeVar("Model", bound=pydantic.BaseModel)


class Store:
    """All placements, orders, hosts and VMs, as last seen. `now` tells the time at which something is seen."""

    def __init__(self, *, now: Callable[[], datetime.datetime]) -> None:
        self._now = now
        self.placements: Shelf[NumaPlacement] = Shelf(_parse_placement)
        self.orders: Shelf[NumaMigration] = Shelf(_parser(NumaMigration))
        self.hosts: Shelf[NumaHost] = Shelf(_parser(NumaHost))
        self.vmis: Shelf[VirtualMachineInstance] = Shelf(_parser(VirtualMachineInstance))
        self._shelves: dict[Resource, Shelf[Any]] = {
            PLACEMENTS: self.placements, MIGRATIONS: self.orders, HOSTS: self.hosts, VMIS: self.vmis
        }  # fmt: skip
        self._naming: defaultdict[Key, set[Key]] = defaultdict(set)
        self._selecting: defaultdict[str, set[Key]] = defaultdict(set)
        self._owned: defaultdict[str, set[Key]] = defaultdict(set)
        self._in_namespace: defaultdict[str, set[str]] = defaultdict(set)
        self._sightings: dict[str, SeenOrder] = {}

    # What was seen. Each returns the keys of the placements that have to be decided again.

    def put(self, resource: Resource, document: Document) -> set[Key]:
        """Take note of an object that exists."""
        return self._noted(resource, [self._shelves[resource].put(document)])

    def remove(self, resource: Resource, document: Document) -> set[Key]:
        """Take note of an object that was deleted."""
        return self._noted(resource, [self._shelves[resource].remove(document)])

    def forget_order(self, key: Key, *, uid: str) -> None:
        """Take note of an order that we have deleted ourselves."""
        self._noted(MIGRATIONS, [self.orders.forget(key, uid=uid)])

    def replace_all(self, resource: Resource, documents: Iterable[Document], *, resource_version: str) -> set[Key]:
        """Take note of all objects of a kind, as listed at `resource_version`."""
        return self._noted(resource, self._shelves[resource].replace_all(documents, resource_version=resource_version))

    def clear(self, resource: Resource) -> set[Key]:
        """Take note that the server does not know the kind."""
        return self._noted(resource, self._shelves[resource].clear())

    def _noted(self, resource: Resource, changes: Iterable[Change[Any] | None]) -> set[Key]:
        concerned: set[Key] = set()
        for change in changes:
            if change is None:
                continue
            if resource is PLACEMENTS:
                concerned |= self._placement_changed(change)
            elif resource is MIGRATIONS:
                concerned |= self._order_changed(change)
            elif resource is VMIS:
                concerned |= self._vmi_changed(change)
            else:
                concerned |= self._host_changed(change)
        return concerned

    # Look-ups

    def seen_orders(self, placement_uid: str) -> tuple[SeenOrder, ...]:
        """Return the orders a placement owns that can be read, by name."""
        uids = (metadata_of(order).uid for order in self._orders_of(placement_uid))
        return tuple(self._sightings[uid] for uid in uids if uid in self._sightings)

    def unreadable_orders(self, placement_uid: str) -> tuple[Unreadable, ...]:
        """Return the orders a placement owns that cannot be read, by name."""
        return tuple(order for order in self._orders_of(placement_uid) if isinstance(order, Unreadable))

    def selected_vmis(self, placement: NumaPlacement) -> tuple[VirtualMachineInstance | Unreadable, ...]:
        """Return the VMs the placement is about, by name."""
        vm, namespace = placement.spec.vm, placement.metadata.namespace
        if vm.name is not None:
            named = self.vmis.get((namespace, vm.name))
            return () if named is None else (named,)
        found = []
        for name in sorted(self._in_namespace[namespace]):
            vmi = self.vmis.get((namespace, name))
            if vmi is not None and selects(vm, name=name, labels=metadata_of(vmi).labels):
                found.append(vmi)
        return tuple(found)

    def rivals(self, placement: NumaPlacement) -> tuple[NumaPlacement, ...]:
        """Return the other placements that may be about one of its VMs, by name."""
        found = []
        for key in sorted(self._sharing(placement)):
            other = self.placements.get(key)
            if isinstance(other, NumaPlacement) and other.metadata.uid != placement.metadata.uid:
                found.append(other)
        return tuple(found)

    # What a change concerns

    def _placement_changed(self, change: Change[NumaPlacement]) -> set[Key]:
        concerned: set[Key] = set()
        before, after = change.before, change.after
        same = (
            isinstance(before, NumaPlacement) and isinstance(after, NumaPlacement) and _claim(before) == _claim(after)
        )
        for each in (before, after):
            if each is not None:
                concerned.add(metadata_of(each).key)
        if same:
            return concerned
        if isinstance(before, NumaPlacement):
            concerned |= self._sharing(before)
            self._index(before, set.discard)
        if isinstance(after, NumaPlacement):
            self._index(after, set.add)
            concerned |= self._sharing(after)
        return concerned

    def _index(self, placement: NumaPlacement, change: Callable[[set[Key], Key], None]) -> None:
        key, vm = placement.metadata.key, placement.spec.vm
        if vm.name is not None:
            change(self._naming[placement.metadata.namespace, vm.name], key)
        else:
            change(self._selecting[placement.metadata.namespace], key)

    def _sharing(self, placement: NumaPlacement) -> set[Key]:
        namespace, vm = placement.metadata.namespace, placement.spec.vm
        names = [vm.name] if vm.name is not None else [metadata_of(vmi).name for vmi in self.selected_vmis(placement)]
        # One that selects by labels may do so at any time: it is looked at in any case.
        return set(self._selecting[namespace]).union(*(self._naming.get((namespace, name), set()) for name in names))

    def _order_changed(self, change: Change[NumaMigration]) -> set[Key]:
        concerned: set[Key] = set()
        before, after = change.before, change.after
        if before is not None:
            metadata = metadata_of(before)
            for owner in metadata.owner_references:
                self._owned[owner.uid].discard(metadata.key)
                if not self._owned[owner.uid]:
                    del self._owned[owner.uid]
            if after is None or metadata_of(after).uid != metadata.uid:
                self._sightings.pop(metadata.uid, None)
            concerned |= _owners(metadata)
        if after is not None:
            metadata = metadata_of(after)
            for owner in metadata.owner_references:
                if owner.controller:
                    self._owned[owner.uid].add(metadata.key)
            if isinstance(after, NumaMigration):
                self._sight(after)
            else:
                self._sightings.pop(metadata.uid, None)
            concerned |= _owners(metadata)
        return concerned

    def _sight(self, order: NumaMigration) -> None:
        now, known = self._now(), self._sightings.get(order.metadata.uid)
        finished = known.finished if known is not None else None
        self._sightings[order.metadata.uid] = SeenOrder(
            order=order,
            first_seen=known.first_seen if known is not None else now,
            changed=now,
            finished=(finished or now) if is_finished(order) else None,
        )

    def _vmi_changed(self, change: Change[VirtualMachineInstance]) -> set[Key]:
        before, after = change.before, change.after
        for each in (before, after):
            if each is not None:
                metadata = metadata_of(each)
                names = self._in_namespace[metadata.namespace]
                (names.discard if after is None else names.add)(metadata.name)
        if before is not None and after is not None and _matter(before) == _matter(after):
            return set()
        concerned: set[Key] = set()
        for each in (before, after):
            if each is not None:
                concerned |= self._about(metadata_of(each))
        return concerned

    def _about(self, vmi: Metadata) -> set[Key]:
        concerned = set(self._naming.get(vmi.key, set()))
        for key in self._selecting.get(vmi.namespace, set()):
            placement = self.placements.get(key)
            if isinstance(placement, NumaPlacement) and selects(placement.spec.vm, name=vmi.name, labels=vmi.labels):
                concerned.add(key)
        return concerned

    def _host_changed(self, change: Change[NumaHost]) -> set[Key]:
        if change.before is not None and change.after is not None and _face(change.before) == _face(change.after):
            return set()
        names = {metadata_of(each).name for each in (change.before, change.after) if each is not None}
        concerned: set[Key] = set()
        for vmi in self.vmis:
            if isinstance(vmi, VirtualMachineInstance) and vmi.status.node_name in names:
                concerned |= self._about(vmi.metadata)
        return concerned

    def _orders_of(self, placement_uid: str) -> Iterator[NumaMigration | Unreadable]:
        for key in sorted(self._owned.get(placement_uid, set())):
            order = self.orders.get(key)
            if order is not None:
                yield order


def _owners(order: Metadata) -> set[Key]:
    return {(order.namespace, owner.name) for owner in order.owner_references if owner.kind == PLACEMENTS.kind}


def _claim(placement: NumaPlacement) -> object:
    metadata = placement.metadata
    return (metadata.uid, metadata.deletion_timestamp, placement.spec)


def _matter(vmi: VirtualMachineInstance | Unreadable) -> object:
    """Return what of a VM a decision can depend on."""
    metadata = vmi.metadata
    known = (metadata.uid, metadata.deletion_timestamp, metadata.labels)
    return (*known, vmi.error) if isinstance(vmi, Unreadable) else (*known, vmi.spec, vmi.status)


def _face(host: NumaHost | Unreadable) -> object:
    """Return what of a host a decision can depend on."""
    if isinstance(host, Unreadable):
        return host.error
    ready = find(host.status.conditions, "Ready")
    said = (ready.status, ready.reason, ready.message) if ready is not None else None
    return (said, [each.numa_node for each in host.status.numa_nodes])


def _parser(model: type[Model]) -> Callable[[Document], Model | Unreadable]:
    def parse(document: Document) -> Model | Unreadable:
        try:
            return model.model_validate(document)
        except pydantic.ValidationError as error:
            return Unreadable(metadata=Metadata.model_validate(document["metadata"]), error=sentence(error))

    return parse


_placement = _parser(NumaPlacement)


def _parse_placement(document: Document) -> NumaPlacement | Unreadable:
    placement = _placement(document)
    if isinstance(placement, NumaPlacement):
        return placement
    try:
        status = NumaPlacementStatus.model_validate(document.get("status", {}))
    except pydantic.ValidationError:
        status = NumaPlacementStatus()
    return Unreadable(metadata=placement.metadata, error=placement.error, status=status)


def sentence(error: pydantic.ValidationError) -> str:
    """Return the first things that are wrong with a document, in a sentence."""
    faults = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()[:3]]
    more = f" and {error.error_count() - 3} more" if error.error_count() > 3 else ""  # noqa: PLR2004 - as above
    return f"{'; '.join(faults)}{more}."
