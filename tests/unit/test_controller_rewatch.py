# SPDX-License-Identifier: Apache-2.0
"""Watching begins anew once a kind is known, and ends when it is to end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from numaplacement.api.resources import VMIS, Resource
from numaplacement.controller import rewatch

UNKNOWN = frozenset({VMIS})
LIMIT = 5.0


class Sweep:
    """Lists, and knows a kind from a list on."""

    def __init__(self, known_at: int | None) -> None:
        self.known_at = known_at
        self.lists = 0
        self.unknown: frozenset[Resource] = frozenset() if known_at == 0 else UNKNOWN

    async def once(self) -> bool:
        self.lists += 1
        if self.lists == self.known_at:
            self.unknown = frozenset()
        return True


class Watching:
    """Counts how often it was begun; ends when told, or by itself in its last round."""

    def __init__(self, *, last: int = 0) -> None:
        self.begun, self.last = 0, last

    async def __call__(self, ends: asyncio.Event) -> None:
        self.begun += 1
        if self.begun != self.last:
            await ends.wait()


def watch(watching: Watching, sweep: Sweep, until: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    async def steps() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(
            rewatch.watch(watching, sweep=sweep, stop=stop, every=0.001)  # type: ignore[arg-type]
        )
        await until(stop)
        await asyncio.wait_for(task, LIMIT)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, "a task is left"

    asyncio.run(steps())


async def stop_soon(stop: asyncio.Event) -> None:
    await asyncio.sleep(0.05)
    stop.set()


async def nothing(_: asyncio.Event) -> None:
    pass


def test_where_every_kind_is_known_it_watches_once_and_lists_nothing() -> None:
    watching, sweep = Watching(), Sweep(known_at=0)
    watch(watching, sweep, stop_soon)
    assert (watching.begun, sweep.lists) == (1, 0)


def test_a_kind_that_comes_is_watched_in_a_second_round() -> None:
    watching, sweep = Watching(last=2), Sweep(known_at=3)
    watch(watching, sweep, nothing)
    assert (watching.begun, sweep.lists) == (2, 3)


def test_it_stops_while_a_kind_is_still_unknown() -> None:
    watching, sweep = Watching(), Sweep(known_at=None)
    watch(watching, sweep, stop_soon)
    assert watching.begun == 1
    assert sweep.lists > 1


@pytest.mark.parametrize("known_at", [0, None])
def test_what_ends_by_itself_is_not_begun_again(known_at: int | None) -> None:
    watching = Watching(last=1)
    watch(watching, Sweep(known_at), nothing)
    assert watching.begun == 1
