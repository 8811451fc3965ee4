# SPDX-License-Identifier: Apache-2.0
"""Watching that begins anew once a kind has come to be known.

kopf looks for a kind when it is told of its definition, and not again (kopf's observation.py,
process_discovered_resource_event); but the API server tells of a definition before it serves the kind, so that KubeVirt
installed later than the controller may not be seen for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .sweep import Sweep

EVERY = 5.0
"""Seconds between two looks whether the API server knows a kind by now."""


async def watch(
    operate: Callable[[asyncio.Event], Awaitable[None]], *, sweep: Sweep, stop: asyncio.Event, every: float = EVERY
) -> None:
    """Watch until `stop` is set, or until `operate` returns by itself, as it does upon a signal.

    `operate` watches until the event it is given is set.
    """
    while True:
        ends, came = asyncio.Event(), asyncio.Event()

        async def until_stop(ends: asyncio.Event = ends) -> None:
            await stop.wait()
            ends.set()

        async def until_known(ends: asyncio.Event = ends, came: asyncio.Event = came) -> None:
            await _kind_comes(sweep, every)
            came.set()
            ends.set()

        tasks = [asyncio.create_task(until_stop()), asyncio.create_task(until_known())]
        try:
            await operate(ends)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if stop.is_set() or not came.is_set():
            return


async def _kind_comes(sweep: Sweep, every: float) -> None:
    """Wait until the API server has known a kind for a while that it did not know."""
    while True:
        await asyncio.sleep(every)
        before = sweep.unknown
        if before:
            await sweep.once()
        if before - sweep.unknown:
            await asyncio.sleep(every)
            return
