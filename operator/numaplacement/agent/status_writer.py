# SPDX-License-Identifier: Apache-2.0
"""Writes the status of orders: server-side apply, the whole of what the agent wants each time.

Each write names the resource version it was made for. That is what keeps a write that the API server gets to see late
from undoing one that came after it, and one for an order that was deleted from reaching another of the same name (a UID
alone is not compared when the status of a custom resource is applied).
"""

from __future__ import annotations

import asyncio
import logging

from numaplacement.api.migration import NumaMigrationStatus
from numaplacement.api.resources import MIGRATIONS, to_document
from numaplacement.apiserver.backoff import Backoff
from numaplacement.apiserver.client import Client
from numaplacement.apiserver.errors import TRANSIENT, ApiError, Conflict, Invalid, NotFound

from .logs import of_order
from .orders import Order, read_order

log = logging.getLogger(__name__)

MANAGER = "numaplacement-agent"
"""Field manager of everything the agent writes."""


class StatusRejected(Exception):
    """The API server finds the status itself wrong; trying again cannot help. The message is the server's."""


class StatusWriter:
    """Writes statuses of orders. What has to arrive is tried until it does, or until `stop` is set."""

    def __init__(self, client: Client, *, stop: asyncio.Event) -> None:
        self._client = client
        self._stop = stop

    async def offer(self, order: Order, status: NumaMigrationStatus) -> Order | None:
        """Write a status that may be lost: one try, and only if the order is still as it was last seen.

        Returns the order as it is now; None when nothing was written.
        """
        try:
            return await self._apply(order, status)
        except ApiError as error:
            level = logging.DEBUG if isinstance(error, (Conflict, NotFound)) else logging.WARNING
            of_order(log, namespace=order.namespace, name=order.name).log(level, "progress not written: %s", error)
            return None

    async def write(self, order: Order, status: NumaMigrationStatus, *, again: bool = False) -> Order | None:
        """Write a status, whatever that takes, and return the order as the API server has it then.

        None when there is nothing to write to: the order was deleted, replaced by another of its name, or has a verdict
        already, unless that is to be written `again` with more in it. Also None when `stop` is set before a try
        succeeds; there is one try in any case.

        :raises StatusRejected: the server does not take this status.
        """
        pause = Backoff()
        stale = False
        while True:
            try:
                if stale:
                    fresh = read_order(await self._client.get(MIGRATIONS, order.name, namespace=order.namespace))
                    if fresh.uid != order.uid or fresh.finished != again:
                        return None
                    order, stale = fresh, False
                return await self._apply(order, status)
            except NotFound:
                return None
            except Conflict:
                stale = True
            except Invalid as error:
                raise StatusRejected(str(error)) from error
            except ApiError as error:
                if not await self._wait(order, pause, error):
                    return None

    async def _apply(self, order: Order, status: NumaMigrationStatus) -> Order:
        metadata = {"namespace": order.namespace, "name": order.name, "resourceVersion": order.resource_version}
        document = {"metadata": metadata, "status": to_document(status)}
        return read_order(await self._client.apply(MIGRATIONS, document, manager=MANAGER, subresource="status"))

    async def _wait(self, order: Order, pause: Backoff, error: ApiError) -> bool:
        """Wait before the next try; False when the agent is to stop instead."""
        wait = pause.delay(at_least=error.retry_after if isinstance(error, TRANSIENT) else 0.0)
        of_order(log, namespace=order.namespace, name=order.name).warning("%s; trying again in %.1f s", error, wait)
        try:
            await asyncio.wait_for(self._stop.wait(), wait)
        except TimeoutError:
            return True
        return False
