# SPDX-License-Identifier: Apache-2.0
"""The work queue, under a clock that the test sets."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import hypothesis
import hypothesis.strategies as some
import pytest

from numaplacement.controller.workqueue import WorkQueue


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def queue(clock: Clock | None = None, *, chance: float = 0.0) -> WorkQueue[str]:
    return WorkQueue(clock=clock or Clock(), first=1.0, most=60.0, chance=lambda: chance)


def test_keys_come_in_the_order_they_became_ready() -> None:
    keys = queue()
    for key in ("a", "b", "c"):
        keys.add(key)
    assert [keys.take() for _ in range(4)] == ["a", "b", "c", None]


def test_a_key_waits_once() -> None:
    keys = queue()
    for _ in range(5):
        keys.add("a")
    assert len(keys) == 1
    assert keys.take() == "a"
    keys.done("a")
    assert keys.take() is None


def test_a_key_added_while_it_is_worked_on_comes_again_afterwards_and_not_before() -> None:
    keys = queue()
    keys.add("a")
    assert keys.take() == "a"
    keys.add("a")
    keys.add("a")
    assert keys.take() is None
    keys.done("a")
    assert keys.take() == "a"
    keys.done("a")
    assert keys.take() is None


def test_a_delayed_key_comes_when_it_is_due() -> None:
    clock = Clock()
    keys = queue(clock)
    keys.add_after("a", 5)
    clock.now += 4.9
    assert keys.take() is None
    clock.now += 0.1
    assert keys.take() == "a"


@pytest.mark.parametrize("delays", [(5, 2), (2, 5), (2, 5, 9, 3)])
def test_of_several_delays_the_earliest_holds_and_only_once(delays: tuple[float, ...]) -> None:
    clock = Clock()
    keys = queue(clock)
    for delay in delays:
        keys.add_after("a", delay)
    clock.now += 1.9
    assert keys.take() is None
    clock.now += 0.1
    assert keys.take() == "a"
    keys.done("a")
    clock.now += 100
    assert keys.take() is None


@pytest.mark.parametrize("delay", [0, -1])
def test_no_delay_is_now(delay: float) -> None:
    keys = queue()
    keys.add_after("a", delay)
    assert keys.take() == "a"


def test_a_key_that_is_due_while_it_is_worked_on_comes_again_afterwards() -> None:
    clock = Clock()
    keys = queue(clock)
    keys.add("a")
    keys.take()
    keys.add_after("a", 1)
    clock.now += 2
    assert keys.take() is None
    keys.done("a")
    assert keys.take() == "a"


def test_waits_after_failures_double_up_to_the_limit_and_begin_anew_after_success() -> None:
    keys = queue()
    assert [keys.retry("a") for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert keys.retry("b") == 1
    keys.succeeded("a")
    assert keys.retry("a") == 1


def test_the_wait_is_never_so_long_that_numbers_overflow() -> None:
    keys = queue()
    for _ in range(5000):
        last = keys.retry("a")
    assert last == 60


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 8.0), (0.5, 6.0), (1.0, 4.0)])
def test_waits_are_shortened_at_random_by_up_to_half(chance: float, wait: float) -> None:
    keys = queue(chance=chance)
    for _ in range(3):
        keys.retry("a")
    assert keys.retry("a") == wait


def test_the_servers_own_wait_is_kept() -> None:
    assert queue().retry("a", at_least=7) == 7


def test_the_oldest_wait() -> None:
    clock = Clock()
    keys = queue(clock)
    assert keys.oldest() == 0
    keys.add("a")
    clock.now += 3
    keys.add("b")
    keys.add("a")
    clock.now += 4
    assert keys.oldest() == 7
    keys.take()
    assert keys.oldest() == 4


async def _get(keys: WorkQueue[str]) -> str:
    async with asyncio.timeout(10):
        return await keys.get()


def test_get_wakes_for_a_key_and_for_time() -> None:
    async def run() -> None:
        keys: WorkQueue[str] = WorkQueue(clock=time.monotonic)
        waiting = asyncio.create_task(_get(keys))
        await asyncio.sleep(0)
        keys.add("a")
        assert await waiting == "a"
        waiting = asyncio.create_task(_get(keys))
        await asyncio.sleep(0)
        keys.add_after("b", 3600)
        keys.add_after("c", 0.01)
        assert await waiting == "c"

    asyncio.run(run())


def test_no_key_is_lost_or_doubled_between_several_workers() -> None:
    async def run() -> None:
        keys: WorkQueue[int] = WorkQueue(clock=time.monotonic)
        at_work: set[int] = set()
        handled: Counter[int] = Counter()

        async def work() -> None:
            while True:
                key = await keys.get()
                assert key not in at_work
                at_work.add(key)
                await asyncio.sleep(0)
                handled[key] += 1
                at_work.discard(key)
                keys.done(key)

        workers = [asyncio.create_task(work()) for _ in range(4)]
        for _ in range(3):
            for key in range(50):
                keys.add(key)
            async with asyncio.timeout(10):
                while len(keys) or at_work:  # noqa: ASYNC110 - the workers run between two looks
                    await asyncio.sleep(0)
        for worker in workers:
            worker.cancel()
        results = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert set(handled) == set(range(50))
        assert all(3 <= count <= 6 for count in handled.values())

    asyncio.run(run())


STEPS = some.lists(
    some.one_of(
        some.tuples(some.just("add"), some.integers(0, 3)),
        some.tuples(some.just("later"), some.integers(0, 3)),
        some.tuples(some.just("take"), some.just(0)),
        some.tuples(some.just("done"), some.integers(0, 3)),
        some.tuples(some.just("wait"), some.just(0)),
    ),
    max_size=60,
)


@hypothesis.settings(deadline=None)  # a shared machine may be slow at any moment
@hypothesis.given(STEPS)
def test_every_wish_is_answered_by_work_that_begins_after_it(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: a key asked for is worked on later, and never by two at a time."""
    clock = Clock()
    keys: WorkQueue[int] = WorkQueue(clock=clock)
    working: set[int] = set()
    wanted: set[int] = set()
    for what, key in [*steps, *[("wait", 0), *[("done", each) for each in range(4)], *[("take", 0)] * 4]]:
        if what == "add":
            keys.add(key)
            wanted.add(key)
        elif what == "later":
            keys.add_after(key, 1)
            wanted.add(key)
        elif what == "wait":
            clock.now += 2
        elif what == "done" and key in working:
            working.discard(key)
            keys.done(key)
        elif what == "take":
            taken = keys.take()
            if taken is not None:
                assert taken not in working
                working.add(taken)
                wanted.discard(taken)
    assert not wanted
