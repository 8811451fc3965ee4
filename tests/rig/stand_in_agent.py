# SPDX-License-Identifier: Apache-2.0
"""An agent without a host behind it: it stands for `numaplacement.agent` wherever the controller is what is tested.

It speaks through the API alone and with the agent's own rights: it keeps a NumaHost, follows the orders of its host by
``spec.nodeName``, takes each up and ends it, all by server-side apply on ``status``. What the real one would find by
moving memory is answered by `behaviour` instead: figures and reasons here are made up, the documents are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from numaplacement.api.conditions import State, state_conditions
from numaplacement.api.host import HostNumaNode, NumaHostStatus
from numaplacement.api.migration import (
    ClassBytes,
    NumaMigrationSpec,
    NumaMigrationStatus,
    PageClass,
    Progress,
    Residue,
    Result,
)
from numaplacement.api.resources import HOSTS, MIGRATIONS, Document, NumaMigration, Resource, to_document
from numaplacement.apiserver.client import Client
from numaplacement.apiserver.connection import connect
from numaplacement.apiserver.errors import Conflict, NotFound
from numaplacement.apiserver.watching import Added, Deleted, Modified, follow

MANAGER = "numaplacement-agent"
TOTAL = 512 * 2**20
"""Bytes of every VM here, all of them on NUMA node 1 before."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How an order ends. `before_verdict` is waited for with the order under way; `reason` is the condition's."""

    result: Result = Result.PLACED
    reason: str = ""
    message: str = ""
    residue: tuple[Residue, ...] = ()
    progress: Progress = field(default_factory=lambda: Progress(stage="Survey"))
    before_verdict: threading.Event | None = None


Behaviour = Callable[[NumaMigrationSpec], Answer | None]
"""What becomes of an order; None: it is not even noticed."""


def places(spec: NumaMigrationSpec) -> Answer:
    """Move everything, or plan to where that is all that is asked."""
    if spec.dry_run:
        return Answer(result=Result.PLANNED, residue=(residue("planned", count=TOTAL),))
    return Answer()


def residue(reason: str, *, count: int = TOTAL, permanent: bool = False) -> Residue:
    """Return a row about memory on NUMA node 1."""
    return Residue(
        reason=reason, numa_node=1, bytes=count, permanent=permanent, evidence="as the test has it", remedy="none"
    )


class StandInAgent:
    """One host's agent, in a thread of its own, from entry to exit. Leaving is like a kill: nothing is tidied up."""

    def __init__(
        self,
        kubeconfig: Path,
        host: str,
        *,
        behaviour: Behaviour = places,
        numa_nodes: Sequence[int] = (0, 1, 2, 3),
        not_ready: str = "",
    ) -> None:
        self.host = host
        self.behaviour = behaviour
        self.taken_up: list[str] = []
        """Names of orders, in the order they were taken up."""
        self.cancelled: list[str] = []
        """Names of orders that were deleted while they were under way."""
        self._kubeconfig = kubeconfig
        self._numa_nodes = tuple(numa_nodes)
        self._not_ready = not_ready
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"agent-{host}", daemon=True)
        self._fault: BaseException | None = None
        self._moves: dict[str, asyncio.Task[None]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(20)
        if self._fault is not None and exc is None:
            raise self._fault

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as fault:  # noqa: BLE001 - raised again in the test's own thread
            self._fault = fault

    async def _work(self) -> None:
        async with connect({"KUBECONFIG": str(self._kubeconfig)}) as client:
            await self._tell_host(client)
            following = asyncio.create_task(self._follow(client))
            stopped = asyncio.create_task(asyncio.to_thread(self._stop.wait))
            await asyncio.wait([following, stopped], return_when=asyncio.FIRST_COMPLETED)
            self._stop.set()
            for task in (following, *self._moves.values()):
                task.cancel()
            for result in await asyncio.gather(following, *self._moves.values(), return_exceptions=True):
                if isinstance(result, Exception):
                    raise result
        await _closed()

    async def _tell_host(self, client: Client) -> None:
        ready = not self._not_ready
        status = NumaHostStatus(
            conditions=state_conditions(
                State.READY if ready else State.STALLED,
                reason="SelfTestPassed" if ready else "SelfTestFailed",
                message=self._not_ready,
                generation=1,
                now=_now(),
            )[:1],
            numa_nodes=tuple(HostNumaNode(numa_node=number) for number in self._numa_nodes),
        )
        await _apply(client, HOSTS, {"metadata": {"name": self.host}})
        await _apply(client, HOSTS, {"metadata": {"name": self.host}, "status": to_document(status)}, "status")

    async def _follow(self, client: Client) -> None:
        events = follow(client, MIGRATIONS, field_selector=f"spec.nodeName={self.host}")
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, Deleted):
                    move = self._moves.pop(event.uid, None)
                    if move is not None and not move.done():
                        move.cancel()
                        self.cancelled.append(event.name)
                elif isinstance(event, (Added, Modified)):
                    order = NumaMigration.model_validate(event.document)
                    if order.status.result is None and order.metadata.uid not in self._moves:
                        self._take_up(client, order)
                for move in self._moves.values():
                    if move.done() and not move.cancelled():
                        move.result()

    def _take_up(self, client: Client, order: NumaMigration) -> None:
        answer = self.behaviour(order.spec)
        if answer is not None:
            self.taken_up.append(order.metadata.name)
            self._moves[order.metadata.uid] = asyncio.create_task(self._carry_out(client, order, answer))

    async def _carry_out(self, client: Client, order: NumaMigration, answer: Answer) -> None:
        started = order.status.start_time or _now()
        if not await self._write(client, order, _under_way(order, answer, started)):
            return
        if answer.before_verdict is not None:
            while not await asyncio.to_thread(answer.before_verdict.wait, 0.05):
                if self._stop.is_set():
                    return
        await self._write(client, order, _verdict(order, answer, started))

    async def _write(self, client: Client, order: NumaMigration, status: NumaMigrationStatus) -> bool:
        """Write to that very order, whatever became of it since; say whether it is still there."""
        namespace, name = order.metadata.key
        while True:
            try:
                now = (await client.get(MIGRATIONS, name, namespace=namespace))["metadata"]
                if now["uid"] != order.metadata.uid:
                    return False
                precise = {"namespace": namespace, "name": name, "resourceVersion": now["resourceVersion"]}
                await _apply(client, MIGRATIONS, {"metadata": precise, "status": to_document(status)}, "status")
            except NotFound:
                return False
            except Conflict:
                continue
            return True


async def _closed() -> None:
    """Wait until the connections are gone: TLS says goodbye first, and a loop that ends before leaves its sockets."""
    transports = asyncio.get_running_loop()._transports  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while any(transport._sock is not None for transport in list(transports.values())):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _apply(client: Client, resource: Resource, document: Document, subresource: str = "") -> None:
    await client.apply(resource, document, manager=MANAGER, subresource=subresource)


def _under_way(order: NumaMigration, answer: Answer, started: datetime.datetime) -> NumaMigrationStatus:
    return NumaMigrationStatus(
        observed_generation=order.metadata.generation,
        conditions=state_conditions(
            State.WORKING, reason="Moving", message="", generation=order.metadata.generation, now=_now()
        ),
        start_time=started,
        progress=answer.progress,
    )


def _verdict(order: NumaMigration, answer: Answer, started: datetime.datetime) -> NumaMigrationStatus:
    left = sum(row.bytes for row in answer.residue)
    before = (ClassBytes(numa_node=1, page_class=PageClass.ANON, bytes=TOTAL),)
    there = order.spec.target.numa_node or 0
    after = (
        ClassBytes(numa_node=there, page_class=PageClass.ANON, bytes=TOTAL - left),
        ClassBytes(numa_node=1, page_class=PageClass.ANON_HUGE, bytes=left),
    )
    done = answer.result in (Result.PLACED, Result.PLANNED)
    return NumaMigrationStatus(
        observed_generation=order.metadata.generation,
        conditions=state_conditions(
            State.READY if done else State.STALLED,
            reason=answer.reason or str(answer.result),
            message=answer.message,
            generation=order.metadata.generation,
            now=_now(),
        ),
        result=answer.result,
        start_time=started,
        completion_time=_now(),
        before=before,
        after=after,
        asked=TOTAL,
        on_target=TOTAL - left,
        moved=TOTAL - left,
        residue=answer.residue,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(tz=datetime.UTC)
