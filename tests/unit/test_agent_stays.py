# SPDX-License-Identifier: Apache-2.0
"""What the agent writes once it has looked whether memory stayed, and what of it reaches the placement."""

from __future__ import annotations

import asyncio
import datetime
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from numaplacement.agent.orders import Order, read_order
from numaplacement.agent.stays import Stays
from numaplacement.agent.verdict import Moment, judged
from numaplacement.api.conditions import find
from numaplacement.api.migration import NumaMigrationStatus
from numaplacement.api.resources import to_document
from numaplacement.engine.verdict import Outcome, Verdict
from tests.unit.controller_scene import MI, decided, message, order_for, placement, scene, seen, vmi, word

NOW = datetime.datetime(2026, 11, 23, 11, 0, 0, tzinfo=datetime.UTC)
PLACED = Verdict(
    outcome=Outcome.PLACED, message="512.0 MiB of 512.0 MiB on NUMA node 0", asked=512 * MI, on_target=512 * MI
)
EVIDENCE = "512.0 MiB more on NUMA node 1; watched for 4 s with AutoNUMA on"
BACK = replace(PLACED, stayed=False, message=f"{PLACED.message}; it did not stay: {EVIDENCE}")
STAYED = replace(PLACED, stayed=True, message=f"{PLACED.message}; it stayed: nothing came back")


class Writer:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[NumaMigrationStatus] = []
        self.told = asyncio.Event()

    async def write(self, _order: Order, status: NumaMigrationStatus, *, again: bool) -> None:
        assert again, "the order has its verdict already"
        self.written.append(status)
        self.told.set()


def written(found: Verdict) -> NumaMigrationStatus:
    """Return what is written after a look that found this."""
    order = read_order(order_for(placement(), vmi()))
    writer = Writer()

    async def look() -> None:
        with ThreadPoolExecutor(1) as threads:
            stays = Stays(look=lambda *_: found, threads=threads, writer=writer)  # type: ignore[arg-type]
            moment = Moment(order=order, started=NOW, now=NOW)
            stays.begin(order, PLACED, functools.partial(judged, moment))
            await writer.told.wait()

    asyncio.run(asyncio.wait_for(look(), 30))
    return writer.written[-1]


def test_memory_that_another_order_moves_away_did_not_come_back() -> None:
    order = read_order(order_for(placement(), vmi()))
    writer = Writer()
    moving = threading.Event()

    def look(*_: object) -> Verdict:
        assert moving.wait(30)
        return BACK

    async def story() -> None:
        with ThreadPoolExecutor(1) as threads:
            stays = Stays(look=look, threads=threads, writer=writer)  # type: ignore[arg-type]
            stays.begin(order, PLACED, functools.partial(judged, Moment(order=order, started=NOW, now=NOW)))
            assert order.spec is not None
            stays.end_pod(order.spec.pod_uid)
            moving.set()
            await stays.close()

    asyncio.run(asyncio.wait_for(story(), 30))
    assert writer.written == []


@pytest.mark.parametrize("found", [BACK, STAYED])
def test_the_second_status_says_what_came_of_it(found: Verdict) -> None:
    status = written(found)
    ready = find(status.conditions, "Ready")
    assert ready is not None
    assert (status.stayed, ready.reason) == (found.stayed, "Placed")
    assert ready.message.startswith(f"{found.message}.")


def test_what_did_not_stay_reaches_the_placement() -> None:
    def told(status: NumaMigrationStatus) -> tuple[tuple[str, str], str, Any]:
        order = order_for(placement(), vmi(), **to_document(status))
        decision = decided(scene(placement(), vmi(), orders=(seen(order),)))
        assert decision.status is not None
        return word(decision), message(decision), decision.status.vms[0].message

    for text in told(written(BACK))[1:]:
        assert f"it did not stay: {EVIDENCE}" in text
    assert told(written(BACK))[0] == ("Ready", "Placed")
    assert told(written(STAYED))[1].startswith("All 512Mi are on NUMA node 0.")
