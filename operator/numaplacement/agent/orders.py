# SPDX-License-Identifier: Apache-2.0
"""An order as the agent sees it, and which of those that wait is next."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass

import pydantic

from numaplacement.api.conditions import Condition
from numaplacement.api.migration import NumaMigrationSpec
from numaplacement.api.resources import Document, Metadata

LONG_AGO = datetime.datetime.min.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True, kw_only=True)
class Order:
    """A NumaMigration, as far as it matters here.

    `spec` is None when the order is of a form this version does not know; `problem` says what is strange then.
    `conditions` and `started` are what an earlier run of the agent wrote.
    """

    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    created: datetime.datetime
    node_name: str
    spec: NumaMigrationSpec | None
    problem: str = ""
    finished: bool = False
    deleting: bool = False
    conditions: tuple[Condition, ...] = ()
    started: datetime.datetime | None = None

    @property
    def priority(self) -> int:
        """Return its place in the queue: higher goes first."""
        return self.spec.priority if self.spec is not None else 0


def read_order(document: Document) -> Order:
    """Return the order that `document` is, however strange its spec."""
    metadata = Metadata.model_validate(document["metadata"])
    raw_spec = document.get("spec") or {}
    spec, problem = None, ""
    try:
        spec = NumaMigrationSpec.model_validate(raw_spec)
    except pydantic.ValidationError as error:
        problem = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    earlier = _Earlier.read(document.get("status") or {})
    return Order(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        generation=metadata.generation,
        created=metadata.creation_timestamp or LONG_AGO,
        node_name=str(raw_spec.get("nodeName", "")),
        spec=spec,
        problem=problem,
        finished=bool((document.get("status") or {}).get("result")),
        deleting=metadata.deletion_timestamp is not None,
        conditions=earlier.conditions,
        started=earlier.start_time,
    )


class _Earlier(pydantic.BaseModel):
    """What an earlier run of the agent wrote and this one goes on from."""

    model_config = pydantic.ConfigDict(extra="ignore", frozen=True)

    conditions: tuple[Condition, ...] = ()
    start_time: datetime.datetime | None = pydantic.Field(default=None, alias="startTime")

    @classmethod
    def read(cls, status: Document) -> _Earlier:
        try:
            return cls.model_validate(status)
        except pydantic.ValidationError:
            return cls()


class Queue:
    """The orders of this host that have no verdict yet. No clock, no I/O."""

    def __init__(self) -> None:
        self._waiting: dict[str, Order] = {}
        self._done: set[str] = set()

    def seen(self, order: Order) -> None:
        """Take note of an order as it is now."""
        if order.finished or order.deleting or order.uid in self._done:
            self._waiting.pop(order.uid, None)
        else:
            self._waiting[order.uid] = order

    def gone(self, uid: str) -> None:
        """Forget an order that is no more."""
        self._waiting.pop(uid, None)
        self._done.discard(uid)

    def done(self, uid: str) -> None:
        """Take note that an order has its verdict: an older state of it, told late, does not count."""
        self._waiting.pop(uid, None)
        self._done.add(uid)

    def get(self, uid: str) -> Order | None:
        """Return an order that waits or runs, as last seen."""
        return self._waiting.get(uid)

    def all(self) -> tuple[Order, ...]:
        """Return every order that waits or runs."""
        return tuple(self._waiting.values())

    def next(self) -> Order | None:
        """Return the order to carry out now."""
        return first(self._waiting.values())


def first(orders: Iterable[Order]) -> Order | None:
    """Return the one of highest priority, the oldest of these, the first by name of these."""
    return min(orders, key=lambda order: (-order.priority, order.created, order.namespace, order.name), default=None)
