# SPDX-License-Identifier: Apache-2.0
"""Looks whether the memory of placed VMs stays, while the next orders are carried out, and tells it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple

from numaplacement.api.migration import NumaMigrationStatus
from numaplacement.engine.errors import EngineError
from numaplacement.engine.verdict import Outcome, Verdict, Watcher

from .following import Following
from .logs import of_order
from .orders import Order
from .status_writer import StatusRejected, StatusWriter

log = logging.getLogger(__name__)

Look = Callable[[Order, Watcher, Verdict], Verdict]
"""Says whether memory stayed, in a thread of its own; see carrying_out.py."""
Status = Callable[[Verdict], NumaMigrationStatus]
"""Makes a status of a verdict."""


class _Looking(NamedTuple):
    task: asyncio.Task[None]
    following: Following
    pod_uid: str


class Stays:
    """The looks under way, by the UID of their orders; what they find is told, also of an order changed meanwhile."""

    def __init__(self, *, look: Look, threads: Executor, writer: StatusWriter) -> None:
        self._look = look
        self._threads = threads
        self._writer = writer
        self._under_way: dict[str, _Looking] = {}

    def begin(self, order: Order, verdict: Verdict, status: Status) -> None:
        """Look whether what an order placed stays; `order` as it was last written."""
        if verdict.outcome is Outcome.PLACED:
            following = Following()
            task = asyncio.create_task(self._tell(order, verdict, status, following))
            pod = order.spec.pod_uid if order.spec is not None else ""
            self._under_way[order.uid] = _Looking(task, following, pod)
            task.add_done_callback(lambda _: self._under_way.pop(order.uid, None) and None)

    def end(self, uid: str) -> None:
        """End the look at an order's VM: the order is gone."""
        if uid in self._under_way:
            self._under_way[uid].following.cancel()

    def end_pod(self, pod_uid: str) -> None:
        """End the looks at a pod's VM: another order is about to move its memory, which is no return."""
        for each in self._under_way.values():
            if each.pod_uid == pod_uid:
                each.following.cancel()

    async def close(self) -> None:
        """End all looks."""
        tasks = [each.task for each in self._under_way.values()]
        for uid in tuple(self._under_way):
            self.end(uid)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, order: Order, verdict: Verdict, status: Status, following: Following) -> None:
        say = of_order(log, namespace=order.namespace, name=order.name)
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._threads, self._look, order, following, verdict)
        except (EngineError, OSError) as error:
            say.warning("whether the memory stays was not seen: %s", error)
            return
        if found.stayed is not None and not following.cancelled():
            say.info("the memory %s", "stayed" if found.stayed else "did not stay")
            try:
                await self._writer.write(order, status(found), again=True)
            except StatusRejected as error:
                say.error("the API server does not take what came of it: %s", error)
