# SPDX-License-Identifier: Apache-2.0
"""Keeps this host's NumaHost: gather, decide whether there is news, apply."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable

from numaplacement.api.host import NumaHostStatus
from numaplacement.api.resources import HOSTS, NODES, Document, to_document
from numaplacement.apiserver.client import Client
from numaplacement.apiserver.errors import ApiError, NotFound
from numaplacement.engine.errors import EngineError
from numaplacement.engine.host import read_host
from numaplacement.engine.kernel import Kernel

from .host import host_status, is_news
from .status_writer import MANAGER
from .vm_memory import VmMemories

log = logging.getLogger(__name__)

REFRESH = 300.0
"""Seconds after which the NumaHost is written even without news: somebody may have deleted it."""


class Reporter:
    """Writes one NumaHost."""

    def __init__(
        self, client: Client, *, node_name: str, kernel: Kernel, interval: float, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._node_name = node_name
        self._kernel = kernel
        self._interval = interval
        self._clock = clock
        self._memories = VmMemories(kernel, clock=clock)
        self._written: NumaHostStatus | None = None
        self._written_at = 0.0
        self._owner: list[Document] | None = None
        self._asked = asyncio.Event()
        self._fresh = ""

    def look_now(self, *, pod_uid: str) -> None:
        """Have the host looked at now, and the VM in this pod in any case: its memory was moved."""
        self._fresh = pod_uid
        self._asked.set()

    async def run(self) -> None:
        """Look and write, without end."""
        while True:
            try:
                await self._report()
            except (ApiError, EngineError, OSError) as error:
                log.warning("NumaHost not written: %s", error)
            try:
                await asyncio.wait_for(self._asked.wait(), self._interval)
            except TimeoutError:
                continue

    async def _report(self) -> None:
        self._asked.clear()
        fresh, self._fresh = self._fresh, ""
        facts = await asyncio.to_thread(read_host, self._kernel)
        vms = await asyncio.to_thread(self._memories.look, fresh=fresh)
        now = datetime.datetime.now(datetime.UTC)
        status = host_status(facts, vms, now=now, previous=self._written)
        due = self._written is None or self._clock() >= self._written_at + REFRESH
        if not due and not is_news(self._written, status):
            log.debug("nothing new on the host")
            return
        try:
            if due:
                await self._ensure()
            await self._apply({"status": to_document(status)}, subresource="status")
        except NotFound:
            self._written = None  # deleted since; made again the next time
            raise
        self._written, self._written_at = status, self._clock()
        log.debug("NumaHost written")

    async def _ensure(self) -> None:
        """Create the NumaHost, or see that it still is as it should be."""
        owner = await self._node_reference()
        await self._apply({"metadata": {"ownerReferences": owner}} if owner else {})

    async def _apply(self, part: Document, *, subresource: str = "") -> None:
        metadata = {"name": self._node_name} | part.get("metadata", {})
        await self._client.apply(HOSTS, part | {"metadata": metadata}, manager=MANAGER, subresource=subresource)

    async def _node_reference(self) -> list[Document]:
        """Return the reference to the Node, with which the NumaHost goes; empty when there is no such Node."""
        try:
            node = await self._client.get(NODES, self._node_name)
        except NotFound:
            owner: list[Document] = []
        else:
            reference = {"apiVersion": NODES.api_version, "kind": NODES.kind, "name": self._node_name}
            owner = [reference | {"uid": node["metadata"]["uid"]}]
        if not owner and self._owner != owner:
            log.warning(
                "there is no Node %s: its NumaHost belongs to nobody and stays when this host goes", self._node_name
            )
        self._owner = owner
        return owner
