# SPDX-License-Identifier: Apache-2.0
"""What kopf is used for: it watches, and tells what it sees. Nothing is decided or written here.

``on.event`` handlers are the only ones that leave no trace on objects: no annotation, no finalizer, no status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from numaplacement.api.resources import Document, Resource

from .shelf import Key
from .store import WATCHED, Store
from .workqueue import WorkQueue


def register(registry: kopf.OperatorRegistry, *, store: Store, queue: WorkQueue[Key]) -> None:
    """Have every event of the kinds we watch noted in `store`, and the placements it concerns put into `queue`."""
    for resource in WATCHED:
        kopf.on.event(resource.group, resource.version, resource.plural, id=resource.plural, registry=registry)(
            _noter(resource, store=store, queue=queue)
        )


def _noter(resource: Resource, *, store: Store, queue: WorkQueue[Key]) -> Callable[..., Any]:
    async def noted(event: Mapping[str, Any], **_: Any) -> None:  # noqa: ANN401 - kopf passes what it has
        note(resource, event["type"], event["object"], store=store, queue=queue)

    return noted


def note(
    resource: Resource, event_type: str | None, document: Document, *, store: Store, queue: WorkQueue[Key]
) -> None:
    """Take note of one event; `event_type` is None for objects of the first list (kopf's convention)."""
    seen = store.remove if event_type == "DELETED" else store.put
    for key in sorted(seen(resource, document)):
        queue.add(key)
