# SPDX-License-Identifier: Apache-2.0
"""The last seen state of the objects of one kind, fed by watches, by lists and by the answers to our own writes.

These arrive in any order. Resource versions say which of two states is newer: they are decimal numbers that grow
(KEP-5504, and what every kube-apiserver on etcd has always done). An object is kept in its parsed form, which is small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import pydantic

from numaplacement.api.resources import Document, Metadata

from .situation import Unreadable

Key = tuple[str, str]
"""Namespace (empty for objects of the cluster) and name."""

Model = TypeVar("Model", bound=pydantic.BaseModel)


@dataclass(frozen=True)
class Change(Generic[Model]):
    """What an object was and what it is; None where it was not there."""

    before: Model | Unreadable | None
    after: Model | Unreadable | None


class Shelf(Generic[Model]):
    """All objects of one kind."""

    def __init__(self, parse: Callable[[Document], Model | Unreadable]) -> None:
        self._parse = parse
        self._objects: dict[Key, Model | Unreadable] = {}
        self._gone: dict[Key, int] = {}

    def __iter__(self) -> Iterator[Model | Unreadable]:
        return iter(self._objects.values())

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> Model | Unreadable | None:
        """Return the object, or None when there is none."""
        return self._objects.get(key)

    def put(self, document: Document) -> Change[Model] | None:
        """Take note of an object that exists; None when nothing newer is known by it."""
        new = self._parse(document)
        metadata = metadata_of(new)
        key, version = metadata.key, version_of(metadata)
        before = self._objects.get(key)
        if before is not None and version_of(metadata_of(before)) >= version:
            return None
        if version <= self._gone.get(key, -1):
            return None
        self._gone.pop(key, None)
        self._objects[key] = new
        return Change(before, new)

    def remove(self, document: Document) -> Change[Model] | None:
        """Take note of an object that was deleted, in its last state; None when a newer one of its name is known."""
        metadata = Metadata.model_validate(document["metadata"])
        version = version_of(metadata)
        before = self._objects.get(metadata.key)
        if before is not None and version_of(metadata_of(before)) > version:
            return None
        self._gone[metadata.key] = max(version, self._gone.get(metadata.key, -1))
        if before is None:
            return None
        del self._objects[metadata.key]
        return Change(before, None)

    def forget(self, key: Key, *, uid: str) -> Change[Model] | None:
        """Take note that the object of that UID was deleted by ourselves."""
        before = self._objects.get(key)
        if before is None or metadata_of(before).uid != uid:
            return None
        del self._objects[key]
        return Change(before, None)

    def replace_all(self, documents: Iterable[Document], *, resource_version: str) -> list[Change[Model]]:
        """Take note of a list of all there were at `resource_version`; what has happened since stays known."""
        listed = int(resource_version) if resource_version.isdecimal() else 0
        documents = list(documents)
        there = {_key_of(document) for document in documents}
        changes: list[Change[Model] | None] = [self.put(document) for document in documents]
        for key, known in list(self._objects.items()):
            if key not in there and version_of(metadata_of(known)) <= listed:
                del self._objects[key]
                changes.append(Change(known, None))
        self._gone = {key: version for key, version in self._gone.items() if version > listed}
        return [change for change in changes if change is not None]

    def clear(self) -> list[Change[Model]]:
        """Take note that the server does not know the kind (any more)."""
        changes: list[Change[Model]] = [Change(known, None) for known in self._objects.values()]
        self._objects.clear()
        return changes


def metadata_of(thing: pydantic.BaseModel | Unreadable) -> Metadata:
    """Return the metadata of an object, readable or not."""
    metadata: Metadata = thing.metadata  # type: ignore[union-attr]
    return metadata


def version_of(metadata: Metadata) -> int:
    """Return the resource version as a number; 0 when there is none, as in an object that was never stored."""
    return int(metadata.resource_version) if metadata.resource_version.isdecimal() else 0


def _key_of(document: Document) -> Key:
    metadata = document["metadata"]
    return (metadata.get("namespace", ""), metadata["name"])
