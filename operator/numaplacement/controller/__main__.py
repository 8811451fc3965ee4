# SPDX-License-Identifier: Apache-2.0
"""``numaplacement-controller``: settings from the environment, then work until told to end."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import sys
import time
from collections.abc import Mapping

import kopf

from numaplacement.apiserver.backoff import Backoff
from numaplacement.apiserver.client import Client
from numaplacement.apiserver.connection import Misconfigured, connect

from .framework import kopf_settings, register_login, register_probe
from .handlers import register
from .rewatch import watch
from .settings import SettingError, Settings, read_settings
from .shelf import Key
from .store import Store
from .sweep import Sweep
from .worker import MANAGER, Worker
from .workqueue import WorkQueue

STUCK = 60.0
"""Seconds that a placement may wait for a worker, beyond which the process counts as stuck."""

_log = logging.getLogger(__name__)


def main() -> None:
    """Run the controller with the process's environment; end with 2 when that cannot be used."""
    try:
        settings = read_settings(os.environ)
        logging.basicConfig(
            level=settings.log_level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, force=True
        )
        if settings.log_level == "INFO":
            logging.getLogger("kopf").setLevel(logging.WARNING)
        asyncio.run(serve(settings, os.environ))
    except (SettingError, Misconfigured) as error:
        sys.exit(_complain(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _complain(error: Exception) -> int:
    sys.stderr.write(f"numaplacement-controller: {error}\n")
    return 2


async def serve(settings: Settings, environ: Mapping[str, str]) -> None:
    """Work until a signal ends it. Everything is listed once before anything is decided."""
    async with connect(environ, user_agent=MANAGER) as api:
        await _work(settings, environ, api)


async def _work(settings: Settings, environ: Mapping[str, str], api: Client) -> None:
    store = Store(now=_now)
    queue: WorkQueue[Key] = WorkQueue(
        clock=time.monotonic, first=settings.error_backoff, most=settings.error_backoff_limit
    )
    sweep = Sweep(
        api=api,
        store=store,
        queue=queue,
        interval=settings.sweep,
        backoff=Backoff(first=settings.error_backoff, most=settings.error_backoff_limit),
        clock=time.monotonic,
    )
    worker = Worker(
        api=api,
        store=store,
        queue=queue,
        rules=settings.rules,
        status_interval=settings.status_interval,
        now=_now,
        clock=time.monotonic,
    )
    await sweep.first()
    _log.info("%d placements, %d VMs, %d hosts", len(store.placements), len(store.vmis), len(store.hosts))
    registry = kopf.OperatorRegistry()
    register(registry, store=store, queue=queue)
    register_login(registry, environ)
    register_probe(registry, lambda: complaint(sweep, queue, interval=settings.sweep))
    stop = asyncio.Event()
    own = [asyncio.create_task(sweep.run()), *(asyncio.create_task(worker.run()) for _ in range(settings.workers))]
    for task in own:
        task.add_done_callback(lambda _: stop.set())

    async def operate(ends: asyncio.Event) -> None:
        await kopf.operator(
            registry=registry,
            settings=kopf_settings(),
            clusterwide=True,
            liveness_endpoint=settings.liveness or None,
            stop_flag=ends,
        )

    try:
        await watch(operate, sweep=sweep, stop=stop)
    finally:
        for task in own:
            task.cancel()
        ended = await asyncio.gather(*own, return_exceptions=True)
    for fault in ended:
        if isinstance(fault, Exception):
            raise fault


def complaint(sweep: Sweep, queue: WorkQueue[Key], *, interval: float) -> str:
    """Return what is stuck, in a sentence, or nothing when all goes on."""
    if sweep.since() > 2 * interval + STUCK:
        return f"nothing has been listed for {sweep.since():.0f} s"
    if queue.oldest() > STUCK:
        return f"a placement has waited for {queue.oldest():.0f} s"
    return ""


def _now() -> datetime.datetime:
    return datetime.datetime.now(tz=datetime.UTC)


if __name__ == "__main__":
    main()
