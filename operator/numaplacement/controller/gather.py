# SPDX-License-Identifier: Apache-2.0
"""From all that was seen to what one placement's decision needs."""

from __future__ import annotations

import datetime

from numaplacement.api.resources import NumaHost, NumaPlacement, VirtualMachineInstance

from .shelf import Key
from .situation import Situation, Unreadable
from .store import Store


def gather(store: Store, key: Key, *, now: datetime.datetime) -> Situation | None:
    """Return the situation of the placement `key`, or None when there is no such placement."""
    placement = store.placements.get(key)
    if placement is None:
        return None
    uid = placement.metadata.uid
    orders, unreadable = store.seen_orders(uid), store.unreadable_orders(uid)
    if not isinstance(placement, NumaPlacement):
        return Situation(placement=placement, now=now, orders=orders, unreadable_orders=unreadable)
    vmis = store.selected_vmis(placement)
    return Situation(
        placement=placement,
        now=now,
        vmis=vmis,
        orders=orders,
        unreadable_orders=unreadable,
        hosts=_hosts(store, vmis),
        rivals=store.rivals(placement),
    )


def _hosts(store: Store, vmis: tuple[VirtualMachineInstance | Unreadable, ...]) -> dict[str, NumaHost | Unreadable]:
    names = {vmi.status.node_name for vmi in vmis if isinstance(vmi, VirtualMachineInstance)}
    found = {name: store.hosts.get(("", name)) for name in sorted(names)}
    return {name: host for name, host in found.items() if host is not None}
