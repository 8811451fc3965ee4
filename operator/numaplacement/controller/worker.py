# SPDX-License-Identifier: Apache-2.0
"""One placement at a time: gather, decide, apply."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from numaplacement.api.placement import NumaPlacementStatus
from numaplacement.api.resources import MIGRATIONS, PLACEMENTS, Document, Resource
from numaplacement.apiserver.errors import ApiError, Conflict, Forbidden, Invalid, NotFound

from .decide import decide
from .gather import gather
from .orders import order_document
from .settings import Rules
from .shelf import Key
from .situation import NewOrder, OldOrder, Situation
from .status import not_accepted, only_progress, same_status, status_document
from .store import Store
from .workqueue import WorkQueue

MANAGER = "numaplacement-controller"
"""Field manager of all we apply."""

CONFLICT_WAIT = 1.0
"""Seconds after which a placement that changed while it was decided is decided again, should no event come."""

_log = logging.getLogger(__name__)


class Api(Protocol):
    """The verbs of an API server that a worker needs; `numaplacement.apiserver.client.Client` has them."""

    async def apply(
        self, resource: Resource, document: Document, *, manager: str, force: bool = True, subresource: str = ""
    ) -> Document:
        """Apply from the server's side."""

    async def delete(
        self, resource: Resource, name: str, *, namespace: str = "", uid: str = "", propagation: str = "Background"
    ) -> None:
        """Delete that very object."""


class OrderNotAccepted(Exception):
    """The API server will not have an order as it was meant; the message says why."""


@dataclass(frozen=True)
class _Refusal:
    """Why an order was not accepted, and until when (by the worker's clock) it is not given again."""

    words: str
    until: float


class Worker:
    """Works off a queue of placements."""

    def __init__(
        self,
        *,
        api: Api,
        store: Store,
        queue: WorkQueue[Key],
        rules: Rules,
        status_interval: float,
        now: Callable[[], datetime.datetime],
        clock: Callable[[], float],
    ) -> None:
        self._api, self._store, self._queue, self._rules = api, store, queue, rules
        self._status_interval, self._now, self._clock = status_interval, now, clock
        self._written: dict[Key, float] = {}
        self._refused: dict[Key, dict[str, _Refusal]] = {}

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            key = await self._queue.get()
            try:
                await self.attend(key)
            finally:
                self._queue.done(key)

    async def attend(self, key: Key) -> None:
        """Decide placement `key` once and do what was decided; a failure is logged and tried again later."""
        try:
            wait = await self._reconcile(key)
        except ApiError as error:
            at_least = getattr(error, "retry_after", 0.0)
            pause = self._queue.retry(key, at_least=at_least)
            _log.warning("%s/%s: %s; trying again in %.1f s", *key, error, pause)
        except Exception:  # noqa: BLE001 - one placement that cannot be worked on must not stop all the others
            pause = self._queue.retry(key)
            _log.exception("%s/%s: a fault of the operator's own; trying again in %.1f s", *key, pause)
        else:
            if key not in self._refused:
                self._queue.succeeded(key)
            if wait is not None:
                self._queue.add_after(key, wait)

    async def _reconcile(self, key: Key) -> float | None:
        situation = gather(self._store, key, now=self._now())
        if situation is None:
            self._written.pop(key, None)
            self._refused.pop(key, None)
            return None
        decision = decide(situation, rules=self._rules)
        for old in decision.delete:
            await self._delete(old)
        refused = await self._give_all(key, decision.apply)
        status = decision.status
        if status is not None and refused:
            words = {name: refusal.words for name, refusal in refused.items()}
            status = not_accepted(status, refused=words, now=situation.now)
        waits = [decision.requeue_after, *(refusal.until - self._clock() for refusal in refused.values())]
        if status is not None:
            waits.append(await self._report(key, situation, status))
        return min((wait for wait in waits if wait is not None), default=None)

    async def _give_all(self, key: Key, orders: tuple[NewOrder, ...]) -> dict[str, _Refusal]:
        """Give the orders and return those that are not accepted, by name.

        One that was not accepted is not given again before its time: our own attempt is an event that leads here.
        """
        before = self._refused.pop(key, {})
        refused: dict[str, _Refusal] = {}
        words: dict[str, str] = {}
        for new in orders:
            held = before.get(new.name)
            if held is not None and held.until > self._clock():
                refused[new.name] = held
                continue
            try:
                await self._give(new)
            except OrderNotAccepted as error:
                words[new.name] = str(error)
        if words:
            pause = self._queue.retry(key)
            _log.warning("%s/%s: %s; trying again in %.1f s", *key, next(iter(words.values())), pause)
            until = self._clock() + pause
            refused |= {name: _Refusal(words=each, until=until) for name, each in words.items()}
        if refused:
            self._refused[key] = refused
        return refused

    async def _give(self, new: NewOrder) -> None:
        wanted = order_document(new)
        try:
            stored = await self._api.apply(MIGRATIONS, wanted, manager=MANAGER)
        except (Forbidden, Invalid) as error:
            raise OrderNotAccepted(str(error)) from error
        self._store.put(MIGRATIONS, stored)
        if stored["spec"] != wanted["spec"]:
            # A definition older than this operator drops fields it does not know: the agent would do something else.
            uid = stored["metadata"]["uid"]
            await self._delete(OldOrder(namespace=new.namespace, name=new.name, uid=uid))
            raise OrderNotAccepted(
                f"order {new.name} was not stored as it was given: install the custom resource definitions of this "
                "version of the operator"
            )
        _log.info("%s/%s: order %s to host %s", new.namespace, new.owner.name, new.name, new.spec.node_name)

    async def _delete(self, old: OldOrder) -> None:
        try:
            await self._api.delete(MIGRATIONS, old.name, namespace=old.namespace, uid=old.uid)
        except (NotFound, Conflict) as error:
            _log.debug("%s/%s: gone already: %s", old.namespace, old.name, error)
        else:
            _log.info("%s/%s: order deleted", old.namespace, old.name)
        self._store.forget_order((old.namespace, old.name), uid=old.uid)

    async def _report(self, key: Key, situation: Situation, wanted: NumaPlacementStatus) -> float | None:
        """Write the status where it says something new; return the seconds to wait where that has to wait."""
        placement = situation.placement
        if same_status(placement.status, wanted):
            return None
        wait = self._status_wait(key, placement.status, wanted)
        if wait > 0:
            return wait
        document = status_document(placement.metadata, wanted)
        try:
            stored = await self._api.apply(PLACEMENTS, document, manager=MANAGER, subresource="status")
        except NotFound as error:
            _log.debug("%s/%s: gone: %s", *key, error)
            return None
        except Conflict as error:
            _log.debug("%s/%s: decided from what is old by now: %s", *key, error)
            return CONFLICT_WAIT
        self._written[key] = self._clock()
        self._store.put(PLACEMENTS, stored)
        return None

    def _status_wait(self, key: Key, stored: NumaPlacementStatus, wanted: NumaPlacementStatus) -> float:
        if not only_progress(stored, wanted) or key not in self._written:
            return 0.0
        return self._written[key] + self._status_interval - self._clock()
