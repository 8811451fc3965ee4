# SPDX-License-Identifier: Apache-2.0
"""An API server's verbs over a dictionary, for tests of the order of calls and of their failures.

What a real server does with the same calls is tested in tests/cluster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from numaplacement.api.resources import MIGRATIONS, Document, Resource
from numaplacement.apiserver.client import Listing
from numaplacement.apiserver.errors import ApiError, Conflict, NotFound
from tests.unit.controller_scene import NOW, stamp

Name = tuple[str, str, str]
"""Plural, namespace, name."""


class Killed(BaseException):
    """The process was killed at this very call."""


class MemoryApi:
    """Objects of all kinds. `failures` are raised by the calls that come, one each; None lets one through."""

    def __init__(self) -> None:
        self.objects: dict[Name, Document] = {}
        self.calls: list[tuple[str, str]] = []
        self.failures: list[BaseException | None] = []
        self.after: list[BaseException | None] = []
        self.changed: Callable[[str, Resource, Document], None] = lambda *_: None
        self.drop: str = ""
        self._version = 100

    def put(self, resource: Resource, document: Document) -> Document:
        """Store an object as somebody else wrote it."""
        metadata = document["metadata"]
        key = (resource.plural, metadata.get("namespace", ""), metadata["name"])
        self._version += 1
        known = self.objects.get(key)
        stored = copy.deepcopy(document)
        stored["metadata"].setdefault("uid", known["metadata"]["uid"] if known else f"uid-{self._version}")
        stored["metadata"].setdefault("creationTimestamp", stamp(NOW))
        stored["metadata"].setdefault("generation", 1)
        stored["metadata"]["resourceVersion"] = str(self._version)
        self.objects[key] = stored
        self.changed("MODIFIED", resource, copy.deepcopy(stored))
        return copy.deepcopy(stored)

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str = "",  # noqa: ARG002 - the signature of the real one
        field_selector: str = "",  # noqa: ARG002
        label_selector: str = "",  # noqa: ARG002
    ) -> Listing:
        self._call("list", resource.plural)
        items = tuple(copy.deepcopy(each) for key, each in self.objects.items() if key[0] == resource.plural)
        return Listing(items=items, resource_version=str(self._version))

    async def apply(
        self,
        resource: Resource,
        document: Document,
        *,
        manager: str,  # noqa: ARG002
        force: bool = True,  # noqa: ARG002
        subresource: str = "",
    ) -> Document:
        metadata = document["metadata"]
        self._call(f"apply {subresource}".strip(), metadata["name"])
        key = (resource.plural, metadata.get("namespace", ""), metadata["name"])
        known = self.objects.get(key)
        if known is None and subresource:
            raise NotFound("not found", status=404)
        if known is not None and metadata.get("resourceVersion", "") not in ("", known["metadata"]["resourceVersion"]):
            raise Conflict("it has changed", status=409)
        merged = copy.deepcopy(known) if known is not None else {"metadata": dict(metadata)}
        part = subresource or "spec"
        merged[part] = copy.deepcopy(document[part])
        merged[part].pop(self.drop, None)
        if resource is MIGRATIONS and known is None:
            merged["status"] = {"observedGeneration": -1}
        answer = copy.deepcopy(known) if merged == known and known is not None else self.put(resource, merged)
        self._ended()
        return answer

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        propagation: str = "Background",  # noqa: ARG002
    ) -> None:
        self._call("delete", name)
        key = (resource.plural, namespace, name)
        known = self.objects.get(key)
        if known is None:
            raise NotFound("not found", status=404)
        if uid and known["metadata"]["uid"] != uid:
            raise Conflict("uid", status=409)
        del self.objects[key]
        self._version += 1
        known["metadata"]["resourceVersion"] = str(self._version)
        self.changed("DELETED", resource, known)
        self._ended()

    def _call(self, verb: str, name: str) -> None:
        self.calls.append((verb, name))
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure

    def _ended(self) -> None:
        if self.after and (failure := self.after.pop(0)) is not None:
            raise failure


def api_error(status: int = 0) -> ApiError:
    return ApiError("an error", status=status)
