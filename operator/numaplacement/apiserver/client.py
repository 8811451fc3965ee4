# SPDX-License-Identifier: Apache-2.0
"""The verbs of a kube-apiserver, on objects as plain JSON data.

Paths are built from a `Resource`, so nothing is discovered and no right is needed for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.config.config_exception import ConfigException

from numaplacement.api.resources import Document, Resource

from .errors import Unavailable, error_of

PAGE = 500
"""Objects in one page of a list, as client-go and kubectl have it."""

_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"
_OK = range(200, 300)


@dataclass(frozen=True)
class Listing:
    """All objects there were at one moment, and the resource version from which a watch goes on."""

    items: tuple[Document, ...]
    resource_version: str


@dataclass(frozen=True)
class WatchEvent:
    """One event of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, and the object.

    The object of a bookmark has nothing but its resourceVersion.
    """

    type: str
    document: Document


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds to wait.

    `connect` for a connection, `call` for a whole call, `silence` for the next sign of life in a watch (the server
    sends a bookmark each minute), `watch` until the server is asked to end a watch.
    """

    connect: float = 10.0
    call: float = 30.0
    silence: float = 70.0
    watch: int = 300


class Client:
    """The verbs of one API server. Each raises an `errors.ApiError`, with a message that says what was tried.

    A call is brought to its end even when whoever made it is cancelled: a write is never left half sent.
    """

    def __init__(self, api: ApiClient, *, timeouts: Timeouts | None = None) -> None:
        self._api = api
        self._timeouts = timeouts or Timeouts()
        self._under_way: set[asyncio.Task[Document]] = set()
        self._patience = aiohttp.ClientTimeout(total=self._timeouts.call, sock_connect=self._timeouts.connect)

    async def finish(self, *, seconds: float = 2.0) -> None:
        """Wait for calls that nobody waits for any more, `seconds` at most, and cut what is not done then."""
        if not self._under_way:
            return
        _, late = await asyncio.wait(self._under_way, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def get(self, resource: Resource, name: str, *, namespace: str = "") -> Document:
        """Return one object."""
        return await self._call("GET", f"get {_label(resource, namespace, name)}", _path(resource, namespace, name))

    async def list(
        self, resource: Resource, *, namespace: str = "", field_selector: str = "", label_selector: str = ""
    ) -> Listing:
        """Return the objects that both selectors select, of `namespace` or of all namespaces, as of one moment."""
        action = f"list {_label(resource, namespace)}"
        query = _given(limit=str(PAGE), fieldSelector=field_selector, labelSelector=label_selector)
        items: list[Document] = []
        while True:
            page = await self._call("GET", action, _path(resource, namespace), query=query)
            items.extend(page.get("items") or ())
            more = page["metadata"].get("continue")
            if not more:
                return Listing(items=tuple(items), resource_version=page["metadata"]["resourceVersion"])
            query["continue"] = more

    async def create(self, resource: Resource, document: Document, *, manager: str = "") -> Document:
        """Create an object and return it as the server stored it; `Conflict` when one of that name exists."""
        namespace, name = _names(document)
        path = _path(resource, namespace)
        query = _given(fieldManager=manager)
        return await self._call(
            "POST", f"create {_label(resource, namespace, name)}", path, query=query, body=document, content=_JSON
        )

    async def apply(
        self, resource: Resource, document: Document, *, manager: str, force: bool = True, subresource: str = ""
    ) -> Document:
        """Apply `document` from the server's side (KEP-555) and return the object as the server stored it.

        `document` is all that `manager` wants; what the same manager applied before and left out now is removed. With
        `force` fields that others own are taken over. A missing object is created, unless `subresource` is given: then
        it is `NotFound`. A ``metadata.resourceVersion`` that is not the present one is a `Conflict`.
        """
        namespace, name = _names(document)
        action = f"apply {subresource and subresource + ' of '}{_label(resource, namespace, name)}"
        query = _given(fieldManager=manager, force="true" if force else "")
        typed = {"apiVersion": resource.api_version, "kind": resource.kind} | document
        path = _path(resource, namespace, name) + (subresource and f"/{subresource}")
        return await self._call("PATCH", action, path, query=query, body=typed, content=_APPLY)

    async def delete(
        self, resource: Resource, name: str, *, namespace: str = "", uid: str = "", propagation: str = "Background"
    ) -> None:
        """Delete an object; with `uid` only if it still is that very one, else `Conflict`.

        `propagation` is Background, Foreground or Orphan.
        """
        options: Document = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        path = _path(resource, namespace, name)
        await self._call("DELETE", f"delete {_label(resource, namespace, name)}", path, body=options, content=_JSON)

    async def watch(
        self,
        resource: Resource,
        *,
        resource_version: str,
        namespace: str = "",
        field_selector: str = "",
        label_selector: str = "",
    ) -> AsyncGenerator[WatchEvent]:
        """Yield what happens after `resource_version`, bookmarks included, until the stream ends.

        It ends when the server ends it, and when it was silent for longer than bookmarks allow: the other side may be
        gone without a word.

        :raises Gone: the resource version is no longer kept.
        :raises Unavailable: the stream could not be opened, or broke.
        """
        action = f"watch {_label(resource, namespace)}"
        query = _given(
            watch="true",
            allowWatchBookmarks="true",
            timeoutSeconds=str(self._timeouts.watch),
            resourceVersion=resource_version,
            fieldSelector=field_selector,
            labelSelector=label_selector,
        )
        patience = aiohttp.ClientTimeout(
            total=self._timeouts.watch + self._timeouts.connect,
            sock_connect=self._timeouts.connect,
            sock_read=self._timeouts.silence,
        )
        with _translated(action):
            answer = await self._send("GET", _path(resource, namespace), query=query, patience=patience)
            try:
                if answer.status not in _OK:
                    raise error_of(answer.status, action=action, body=await answer.read(), headers=answer.headers)
                lines = Lines()
                with contextlib.suppress(TimeoutError):
                    async for chunk in answer.content.iter_any():
                        for line in lines.feed(chunk):
                            yield _event(json.loads(line), action=action)
            finally:
                _abort(answer)

    async def _call(
        self,
        method: str,
        action: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
        content: str = "",
    ) -> Document:
        exchange = self._exchange(method, action, path, query=query or {}, body=body, content=content)
        task = asyncio.create_task(exchange)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Document]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not complain when nobody waits for it any more

    async def _exchange(
        self, method: str, action: str, path: str, *, query: Mapping[str, str], body: Document | None, content: str
    ) -> Document:
        with _translated(action):
            answer = await self._send(method, path, query=query, body=body, content=content, patience=self._patience)
            text = await answer.read()
            if answer.status not in _OK:
                raise error_of(answer.status, action=action, body=text, headers=answer.headers)
            document: Document = json.loads(text)
            return document

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        patience: aiohttp.ClientTimeout,
        body: Document | None = None,
        content: str = "",
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": _JSON} | _given(**{"Content-Type": content})
        request = await self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._api.call_api(*request, _request_timeout=patience)
        response: aiohttp.ClientResponse = answer.response
        return response


class Lines:
    """Puts the lines of a stream together again, however it was cut and however long they are."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that `chunk` completes, without their ends; empty ones are left out."""
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            whole = b"".join((*self._rest, line)).strip()
            self._rest.clear()
            if whole:
                yield whole
        if rest:
            self._rest.append(rest)


@contextlib.contextmanager
def _translated(action: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise Unavailable(f"cannot {action}: no answer in time") from error
    except (aiohttp.ClientError, OSError, ConfigException) as error:
        raise Unavailable(f"cannot {action}: {error or type(error).__name__}") from error
    except ValueError as error:
        raise Unavailable(f"cannot {action}: the answer is not JSON: {error}") from error


def _abort(answer: aiohttp.ClientResponse) -> None:
    """Drop a connection at once: a farewell in TLS would wait for the other side, which may be gone."""
    if answer.connection is not None and answer.connection.transport is not None:
        answer.connection.transport.abort()
    answer.close()


def _event(entry: Document, *, action: str) -> WatchEvent:
    document: Any = entry["object"]
    if entry["type"] == "ERROR":
        status = document.get("code", 500)
        raise error_of(status, action=action, body=json.dumps(document), headers={})
    return WatchEvent(type=entry["type"], document=document)


def _path(resource: Resource, namespace: str, name: str = "") -> str:
    root = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    scope = f"/namespaces/{quote(namespace, safe='')}" if namespace and resource.namespaced else ""
    return f"{root}{scope}/{resource.plural}" + (name and f"/{quote(name, safe='')}")


def _label(resource: Resource, namespace: str, name: str = "") -> str:
    if not name:
        return resource.plural + (namespace and f" in {namespace}")
    return f"{resource.kind} {namespace and namespace + '/'}{name}"


def _names(document: Document) -> tuple[str, str]:
    metadata = document["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _given(**fields: str) -> dict[str, str]:
    return {key: value for key, value in fields.items() if value}
