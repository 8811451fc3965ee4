# SPDX-License-Identifier: Apache-2.0
"""A list of everything, now and then: a watch does not tell what vanished while it was interrupted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from numaplacement.api.resources import Resource
from numaplacement.apiserver.backoff import Backoff
from numaplacement.apiserver.client import Listing
from numaplacement.apiserver.errors import ApiError, NotFound

from .shelf import Key
from .store import WATCHED, Store
from .workqueue import WorkQueue

_log = logging.getLogger(__name__)


class Lister(Protocol):
    """The verb of an API server that a sweep needs; `numaplacement.apiserver.client.Client` has it."""

    async def list(
        self, resource: Resource, *, namespace: str = "", field_selector: str = "", label_selector: str = ""
    ) -> Listing:
        """Return all objects of a kind."""


class Sweep:
    """Lists everything each `interval` seconds, corrects the store and has every placement decided again."""

    def __init__(
        self,
        *,
        api: Lister,
        store: Store,
        queue: WorkQueue[Key],
        interval: float,
        backoff: Backoff,
        clock: Callable[[], float],
    ) -> None:
        self._api, self._store, self._queue = api, store, queue
        self._interval, self._backoff, self._clock = interval, backoff, clock
        self._tried = clock()
        self.unknown: frozenset[Resource] = frozenset()
        """Kinds that the API server did not know when they were last listed."""

    async def first(self) -> None:
        """List everything once, however long the API server takes to let us: before that nothing can be decided."""
        while True:
            if await self.once():
                return
            await asyncio.sleep(self._backoff.delay())

    async def run(self) -> None:
        """Go on listing until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.once()

    async def once(self) -> bool:
        """List each kind; say whether all could be. What cannot be listed stays as it was last seen."""
        complete = True
        unknown = set()
        for resource in WATCHED:
            try:
                listing = await self._api.list(resource)
            except NotFound:
                self._store.clear(resource)
                unknown.add(resource)
                if resource not in self.unknown:
                    _log.info("the API server does not know %s.%s", resource.plural, resource.group)
            except ApiError as error:
                _log.warning("%s", error)
                complete = False
            else:
                self._store.replace_all(resource, listing.items, resource_version=listing.resource_version)
        self.unknown = frozenset(unknown)
        for placement in self._store.placements:
            self._queue.add(placement.metadata.key)
        self._tried = self._clock()
        return complete

    def since(self) -> float:
        """Return the seconds since the last list was tried."""
        return self._clock() - self._tried
