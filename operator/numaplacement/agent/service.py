# SPDX-License-Identifier: Apache-2.0
"""Puts the agent together and runs it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from numaplacement import __version__
from numaplacement.apiserver.connection import Misconfigured, connect
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.ledger import Ledger

from .agent import Agent
from .carrying_out import carry_out, look_whether_it_stays
from .logs import set_up
from .reporter import Reporter
from .settings import SettingError, Settings

log = logging.getLogger(__name__)

_LOOKS = 8
"""VMs looked at at once, whether their memory stays; most of such a look is waiting."""


def serve(settings: Settings) -> None:
    """Run the agent until SIGTERM or SIGINT.

    :raises SettingError: it cannot be told how to reach the API server.
    """
    set_up(settings.log_level)
    try:
        asyncio.run(_serve(settings))
    except Misconfigured as error:
        raise SettingError(str(error)) from error


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    kernel = Kernel()
    async with connect(os.environ, user_agent=f"numaplacement-agent/{__version__}") as client:
        reporter = Reporter(
            client,
            node_name=settings.node_name,
            kernel=kernel,
            interval=settings.host_interval,
            clock=time.monotonic,
        )
        ledger = Ledger()
        if ledger.note:
            log.warning("%s", ledger.note)
        with (
            contextlib.closing(ledger),
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine") as engine,
            ThreadPoolExecutor(max_workers=_LOOKS, thread_name_prefix="look") as looks,
        ):
            agent = Agent(
                settings=settings,
                client=client,
                reporter=reporter,
                carry_out=functools.partial(carry_out, kernel=kernel, ledger=ledger),
                engine=engine,
                look=functools.partial(look_whether_it_stays, kernel=kernel),
                looks=looks,
                stop=stop,
            )
            log.info("agent %s of host %s at work", __version__, settings.node_name)
            await agent.run()
            log.info("stopped")
