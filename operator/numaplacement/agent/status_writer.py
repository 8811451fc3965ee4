# SPDX-License-Identifier: Apache-2.0
"""Writes the status of orders: server-side apply, the whole of what the agent wants each time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from numaplacement.api.migration import NumaMigrationStatus
from numaplacement.api.resources import MIGRATIONS, Document, to_document
from numaplacement.apiserver.backoff import Backoff
from numaplacement.apiserver.client import Client
from numaplacement.apiserver.errors import TRANSIENT, ApiError, Conflict, Invalid, NotFound

from .logs import of_order
from .orders import Order, read_order

log = logging.getLogger(__name__)

MANAGER = "numaplacement-agent"
"""Field manager of everything the agent writes."""


class OrderGone(Exception):
    """The order was deleted, or another of the same name stands in its place: there is nothing to write to."""


class StatusRejected(Exception):
    """The API server finds the status itself wrong; trying again cannot help. The message is the server's."""


class StatusWriter:
    """Writes statuses of orders until they are there, for as long as `stop` is not set."""

    def __init__(self, client: Client, *, stop: asyncio.Event, backoff: Callable[[], Backoff] = Backoff) -> None:
        self._client = client
        self._stop = stop
        self._backoff = backoff

    async def offer(self, order: Order, status: NumaMigrationStatus) -> Order | None:
        """Write a status that may be lost: one try, and only if the order is still as it was last seen.

        Returns the order as it is now; None when nothing was written. Because of the resource version, a write that the
        server gets to see late cannot undo one that came after it.
        """
        try:
            return read_order(await self._apply(order, status, version=order.resource_version))
        except ApiError as error:
            level = logging.DEBUG if isinstance(error, (Conflict, NotFound)) else logging.WARNING
            of_order(log, namespace=order.namespace, name=order.name).log(level, "progress not written: %s", error)
            return None

    async def take_up(self, order: Order, status: NumaMigrationStatus) -> Order | None:
        """Write the first status and return the order as the API server has it then, whatever that takes.

        An order whose end nobody here has heard of is so never carried out. Returns None when there is nothing to do
        (deleted, replaced, finished by an earlier run), or the agent is to stop.
        """
        pause = self._backoff()
        while True:
            try:
                taken = read_order(await self._apply(order, status, version=order.resource_version))
            except NotFound:
                return None
            except Conflict:
                fresh = await self._fresh(order, pause)
                if fresh is None:
                    return None
                order = fresh
            except ApiError as error:
                if not await self._wait(order, pause, error):
                    return None
            else:
                return None if taken.deleting else taken

    async def settle(self, order: Order, status: NumaMigrationStatus) -> None:
        """Write a verdict; when `stop` is set there is one try.

        :raises OrderGone: there is nothing to write to any more.
        :raises StatusRejected: the server does not take it.
        """
        pause = self._backoff()
        while True:
            try:
                await self._apply(order, status)
            except (NotFound, Conflict) as error:
                raise OrderGone(str(error)) from error
            except Invalid as error:
                raise StatusRejected(str(error)) from error
            except ApiError as error:
                if not await self._wait(order, pause, error):
                    return
            else:
                return

    async def _fresh(self, order: Order, pause: Backoff) -> Order | None:
        while True:
            try:
                fresh = read_order(await self._client.get(MIGRATIONS, order.name, namespace=order.namespace))
            except NotFound:
                return None
            except ApiError as error:
                if not await self._wait(order, pause, error):
                    return None
            else:
                return None if fresh.uid != order.uid or fresh.finished or fresh.deleting else fresh

    async def _apply(self, order: Order, status: NumaMigrationStatus, *, version: str = "") -> Document:
        metadata = {"namespace": order.namespace, "name": order.name, "uid": order.uid}
        if version:
            metadata["resourceVersion"] = version
        document = {"metadata": metadata, "status": to_document(status)}
        return await self._client.apply(MIGRATIONS, document, manager=MANAGER, subresource="status")

    async def _wait(self, order: Order, pause: Backoff, error: ApiError) -> bool:
        """Wait before the next try; False when the agent is to stop instead."""
        wait = pause.delay(at_least=error.retry_after if isinstance(error, TRANSIENT) else 0.0)
        of_order(log, namespace=order.namespace, name=order.name).warning("%s; trying again in %.1f s", error, wait)
        try:
            await asyncio.wait_for(self._stop.wait(), wait)
        except TimeoutError:
            return True
        return False
