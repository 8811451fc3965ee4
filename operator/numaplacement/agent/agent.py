# SPDX-License-Identifier: Apache-2.0
"""The agent itself: follows this host's orders, carries them out one after the other, writes what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from numaplacement.api.conditions import find
from numaplacement.api.migration import NumaMigrationStatus
from numaplacement.api.resources import MIGRATIONS
from numaplacement.apiserver.client import Client
from numaplacement.apiserver.watching import Added, Deleted, Modified, follow
from numaplacement.engine.errors import EngineError
from numaplacement.engine.verdict import Outcome, Verdict, Watcher

from .following import Following
from .logs import of_order
from .orders import Order, Queue, read_order
from .reporter import Reporter
from .settings import Settings
from .status_writer import StatusRejected, StatusWriter
from .stays import Look, Stays
from .support import Refusal
from .verdict import QUEUED, Moment, failed, judged, queued, refused, under_way

log = logging.getLogger(__name__)

CarryOut = Callable[[Order, Watcher], Verdict | Refusal]
"""Carries an order out, in the engine's thread; see carrying_out.py."""

LAST_WORDS = 20.0
"""Seconds for the last write when the agent is to stop: less than a pod is given (terminationGracePeriodSeconds)."""


class Agent:
    """One host's agent. `stop` ends it: the move under way ends before its next kernel call, its order stays open."""

    def __init__(
        self,
        *,
        settings: Settings,
        client: Client,
        reporter: Reporter,
        carry_out: CarryOut,
        engine: Executor,
        look: Look,
        looks: Executor,
        stop: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._client = client
        self._reporter = reporter
        self._carry_out = carry_out
        self._engine = engine
        self._stop = stop
        self._writer = StatusWriter(client, stop=stop)
        self._stays = Stays(look=look, threads=looks, writer=self._writer)
        self._queue = Queue()
        self._work_there = asyncio.Event()
        self._queue_grew = asyncio.Event()
        self._running: tuple[str, Following] | None = None

    async def run(self) -> None:
        """Work until `stop` is set."""
        worker = asyncio.create_task(self._work())
        others = [asyncio.create_task(each) for each in (self._follow(), self._tell_waiting(), self._reporter.run())]
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([worker, stopping, *others], return_when=asyncio.FIRST_COMPLETED)
            self._stop.set()
            if self._running is not None:
                self._running[1].cancel()
            self._work_there.set()
            await asyncio.wait([worker], timeout=LAST_WORDS)
        finally:
            for task in (worker, stopping, *others):
                task.cancel()
            results = await asyncio.gather(worker, stopping, *others, return_exceptions=True)
            await self._stays.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _follow(self) -> None:
        events = follow(self._client, MIGRATIONS, field_selector=f"spec.nodeName={self._settings.node_name}")
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, (Added, Modified)):
                    self._seen(read_order(event.document))
                elif isinstance(event, Deleted):
                    self._queue.gone(event.uid)
                    self._cancel(event.uid)

    def _seen(self, order: Order) -> None:
        if order.node_name != self._settings.node_name:
            return
        self._queue.seen(order)
        if order.deleting:
            self._cancel(order.uid)
        self._work_there.set()
        self._queue_grew.set()

    def _cancel(self, uid: str) -> None:
        self._stays.end(uid)
        if self._running is not None and self._running[0] == uid:
            self._running[1].cancel()

    async def _tell_waiting(self) -> None:
        """Say of every order that waits behind another that it does."""
        while True:
            await self._queue_grew.wait()
            self._queue_grew.clear()
            for order in self._queue.all():
                ready = find(order.conditions, "Ready")
                told = ready is not None and ready.reason == QUEUED
                if not told and self._running is not None and self._running[0] != order.uid:
                    await self._writer.offer(order, queued(order, now=_now()))

    async def _work(self) -> None:
        while not self._stop.is_set():
            order = self._queue.next()
            if order is None:
                self._work_there.clear()
                await self._work_there.wait()
                continue
            following = Following()
            self._running = (order.uid, following)
            self._queue_grew.set()
            try:
                await self._attend_to(order, following)
            finally:
                self._running = None

    async def _attend_to(self, order: Order, following: Following) -> None:
        say = of_order(log, namespace=order.namespace, name=order.name)
        started = order.started or _now()
        try:
            # Not before the API server has it: an order whose end nobody here has heard of is not carried out.
            taken = await self._writer.write(order, under_way(_moment(order, started), following.progress))
            if taken is None or taken.deleting:
                self._queue.gone(order.uid)
                say.info("is not to be carried out any more")
                return
            self._queue.seen(taken)
            say.info("taken up")
            if taken.spec is not None and not taken.spec.dry_run:
                self._stays.end_pod(taken.spec.pod_uid)
            found = await self._judge(taken, started, following)
            if found is None:
                say.info("left open: the agent is to stop")
                return
            written = await self._settle(self._queue.get(order.uid) or taken, found.status)
            if written is not None and found.verdict is not None:
                moment = _moment(written, started)
                self._stays.begin(written, found.verdict, functools.partial(judged, moment))
        except StatusRejected as error:
            say.error("the API server does not take its status: %s", error)
            self._queue.done(order.uid)

    async def _judge(self, order: Order, started: datetime.datetime, following: Following) -> _Found | None:
        """Carry the order out and return its verdict; None when it is to stay open."""
        say = of_order(log, namespace=order.namespace, name=order.name)
        # A progress write that is under way when it is cancelled cannot undo the verdict: see StatusWriter.offer.
        telling = asyncio.create_task(self._tell_progress(order, started, following))
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._engine, self._carry_out, order, following)
            return self._verdict(_moment(order, started), result)
        except (EngineError, OSError) as error:
            say.error("failed: %s", error)
            return _Found(status=failed(_moment(order, started), reason="EngineFault", message=str(error)))
        except Exception as error:  # noqa: BLE001 - an order without a verdict would be carried out for ever
            say.exception("failed by a fault of the agent's own")
            message = f"The agent met a fault of its own ({type(error).__name__}: {error}); its log has more."
            return _Found(status=failed(_moment(order, started), reason="AgentFault", message=message))
        finally:
            telling.cancel()

    def _verdict(self, moment: Moment, result: Verdict | Refusal) -> _Found | None:
        order = moment.order
        say = of_order(log, namespace=order.namespace, name=order.name)
        if isinstance(result, Refusal):
            say.info("%s: %s %s", result.reason, result.seen, result.remedy)
            return _Found(status=refused(moment, result))
        if result.outcome is Outcome.CANCELLED and self._stop.is_set():
            return None
        say.info("%s: %s", result.outcome, result.message)
        if order.spec is not None:
            self._reporter.look_now(pod_uid=order.spec.pod_uid)
        return _Found(status=judged(moment, result), verdict=result)

    async def _tell_progress(self, order: Order, started: datetime.datetime, following: Following) -> None:
        """Write progress while it changes."""
        told = following.progress
        while True:
            await asyncio.sleep(self._settings.progress_interval)
            order = self._queue.get(order.uid) or order
            if following.progress != told:
                told = following.progress
                written = await self._writer.offer(order, under_way(_moment(order, started), told))
                if written is not None:
                    self._queue.seen(written)

    async def _settle(self, order: Order, status: NumaMigrationStatus) -> Order | None:
        """Write the verdict; the order leaves the queue. Return it as it was written, None when it was not."""
        say = of_order(log, namespace=order.namespace, name=order.name)
        try:
            written = await self._writer.write(order, status)
        except StatusRejected as error:
            say.error("the API server does not take the verdict: %s", error)
            fault = failed(_moment(order, status.start_time or _now()), reason="StatusRejected", message=str(error))
            written = await self._writer.write(order, fault)
        if written is None:
            say.info("nobody is told the verdict: the order is gone, or has one, or the agent is to stop")
            self._queue.gone(order.uid)
        else:
            self._queue.done(order.uid)
        return written


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What came of an order, and the engine's verdict where it came to one."""

    status: NumaMigrationStatus
    verdict: Verdict | None = None


def _moment(order: Order, started: datetime.datetime) -> Moment:
    return Moment(order=order, started=started, now=_now())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
