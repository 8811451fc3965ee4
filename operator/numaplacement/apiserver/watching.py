# SPDX-License-Identifier: Apache-2.0
"""List, then watch, for ever: what a selection of objects is and becomes, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass

from numaplacement.api.resources import Document, Resource

from .backoff import Backoff
from .client import Client, Listing, WatchEvent
from .errors import TRANSIENT, ApiError, Gone, Unavailable

log = logging.getLogger(__name__)

STEADY = 5.0
"""Seconds after which a stream counts as one that worked: its end needs no pause before the next."""


@dataclass(frozen=True)
class Added:
    """An object that was not there before."""

    document: Document


@dataclass(frozen=True)
class Modified:
    """An object that is not what it was."""

    document: Document


@dataclass(frozen=True)
class Deleted:
    """An object that is no more, or no longer selected.

    It may have vanished while nobody watched, so there is no document of its end.
    """

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class Synced:
    """All that a list found has been told; from here on events come as they happen. Comes again after each relist."""


Event = Added | Modified | Deleted | Synced

Key = tuple[str, str]
"""Namespace and name."""


class Known:
    """What was told so far: for each object its UID and resource version. Turns what the server says into events."""

    def __init__(self) -> None:
        self._objects: dict[Key, tuple[str, str]] = {}

    def relisted(self, listing: Listing) -> Iterator[Event]:
        """Yield what must have happened since, so that `listing` is what there is now."""
        found = {_key(document) for document in listing.items}
        for namespace, name in self._objects.keys() - found:
            uid, _ = self._objects.pop((namespace, name))
            yield Deleted(namespace=namespace, name=name, uid=uid)
        for document in listing.items:
            yield from self._seen(document)
        yield Synced()

    def happened(self, event: WatchEvent) -> Iterator[Event]:
        """Yield what one event of a watch means; nothing for one that is known already."""
        if event.type == "BOOKMARK":
            return
        if event.type != "DELETED":
            yield from self._seen(event.document)
        elif (gone := self._objects.pop(_key(event.document), None)) is not None:
            namespace, name = _key(event.document)
            yield Deleted(namespace=namespace, name=name, uid=gone[0])

    def _seen(self, document: Document) -> Iterator[Event]:
        key, now = _key(document), _identity(document)
        before = self._objects.get(key)
        self._objects[key] = now
        if before is None:
            yield Added(document)
        elif before[0] != now[0]:
            yield Deleted(namespace=key[0], name=key[1], uid=before[0])
            yield Added(document)
        elif before != now:
            yield Modified(document)


async def follow(
    client: Client,
    resource: Resource,
    *,
    namespace: str = "",
    field_selector: str = "",
    label_selector: str = "",
    backoff: Backoff | None = None,
) -> AsyncGenerator[Event]:
    """Yield what is selected and what becomes of it, without end.

    A stream that ends or breaks is taken up where it was. When that fails too, or the server no longer keeps that
    resource version, all is listed again and the difference told, deletions included. Errors are logged and waited
    out.
    """
    pause = backoff or Backoff()
    known = Known()
    version = ""
    resumed = False
    now = asyncio.get_running_loop().time
    while True:
        try:
            if not version:
                listing = await client.list(
                    resource, namespace=namespace, field_selector=field_selector, label_selector=label_selector
                )
                for event in known.relisted(listing):
                    yield event
                version = listing.resource_version
            stream = client.watch(
                resource,
                resource_version=version,
                namespace=namespace,
                field_selector=field_selector,
                label_selector=label_selector,
            )
            opened = now()
            async with contextlib.aclosing(stream):
                async for entry in stream:
                    version = entry.document["metadata"]["resourceVersion"]
                    resumed = False
                    for event in known.happened(entry):
                        yield event
            if now() - opened >= STEADY:
                resumed = False
                pause.reset()
            else:
                await asyncio.sleep(pause.delay())
        except Gone:
            log.info("%s: the server forgot where the watch was, listing again", resource.plural)
            version = ""
        except ApiError as error:
            resumable = isinstance(error, Unavailable) and not resumed
            version, resumed = (version, True) if resumable else ("", False)
            wait = pause.delay(at_least=error.retry_after if isinstance(error, TRANSIENT) else 0.0)
            log.warning("%s; trying again in %.1f s", error, wait)
            await asyncio.sleep(wait)


def _key(document: Document) -> Key:
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _identity(document: Document) -> tuple[str, str]:
    metadata = document["metadata"]
    return metadata["uid"], metadata["resourceVersion"]
