# SPDX-License-Identifier: Apache-2.0
"""Calls that take too long are told of, once, and once more when they have ended."""

from __future__ import annotations

import queue
import threading

import pytest

from numaplacement.engine.watchdog import Calls, LongCall, Watchdog

LIMIT = 60.0


def test_a_long_call_is_told_once_and_once_more_at_its_end() -> None:
    calls = Calls(10.0)
    number = calls.enter("a call", 100.0)
    assert calls.due(109.9) == []
    assert calls.due(111.0) == [LongCall(call=number, what="a call", seconds=11.0, ended=False)]
    assert calls.due(120.0) == []
    assert calls.leave(number, 125.0)
    assert calls.due(126.0) == [LongCall(call=number, what="a call", seconds=25.0, ended=True)]
    assert calls.due(127.0) == []


def test_a_call_in_time_is_never_told() -> None:
    calls = Calls(10.0)
    assert not calls.leave(calls.enter("a call", 0.0), 9.0)
    assert calls.due(100.0) == []


def test_calls_of_several_threads_are_told_apart() -> None:
    calls = Calls(10.0)
    first, second = calls.enter("a call", 0.0), calls.enter("another", 5.0)
    assert [each.call for each in calls.due(12.0)] == [first]
    assert [each.call for each in calls.due(16.0)] == [second]
    calls.leave(second, 17.0)
    assert [(each.what, each.ended) for each in calls.due(17.0)] == [("another", True)]


@pytest.mark.parametrize(
    ("began", "now", "rest"), [((), 3.0, 10.0), ((1.0,), 3.0, 8.0), ((1.0, 0.5), 3.0, 7.5), ((0.0,), 30.0, 0.0)]
)
def test_when_to_look_again(began: tuple[float, ...], now: float, rest: float) -> None:
    calls = Calls(10.0)
    for each in began:
        calls.enter("a call", each)
    assert calls.rest(now) == rest


def test_what_was_told_is_not_waited_for() -> None:
    calls = Calls(10.0)
    calls.enter("a call", 0.0)
    calls.due(10.0)
    assert calls.rest(11.0) == 10.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watchdog_threads() -> int:
    return sum(thread.name == "watchdog" for thread in threading.enumerate())


def test_the_thread_tells_while_the_call_lasts_and_ends_with_the_run() -> None:
    clock, told = Clock(), queue.Queue[LongCall]()
    with Watchdog(tell=told.put, clock=clock, limit=0.01) as watchdog:
        with watchdog.call("a call"):
            clock.now = 3.0
            assert told.get(timeout=LIMIT) == LongCall(call=0, what="a call", seconds=3.0, ended=False)
            clock.now = 5.0
        assert told.get(timeout=LIMIT) == LongCall(call=0, what="a call", seconds=5.0, ended=True)
    assert watchdog_threads() == 0


def test_an_end_right_before_the_end_of_the_run_is_told_and_an_error_passes() -> None:
    clock, told = Clock(), queue.Queue[LongCall]()
    with (  # noqa: PT012 - the error is to pass through both
        pytest.raises(OSError, match="from the call"),
        Watchdog(tell=told.put, clock=clock, limit=0.01) as watchdog,
        watchdog.call("a call"),
    ):
        clock.now = 3.0
        told.get(timeout=LIMIT)
        raise OSError("from the call")
    assert told.get_nowait().ended
    assert watchdog_threads() == 0


def test_movers_at_once() -> None:
    told = queue.Queue[LongCall]()
    clock = Clock()
    all_in = threading.Barrier(5)
    go_on = threading.Event()
    with Watchdog(tell=told.put, clock=clock, limit=0.01) as watchdog:

        def mover(what: str) -> None:
            with watchdog.call(what):
                all_in.wait(LIMIT)
                go_on.wait(LIMIT)

        threads = [threading.Thread(target=mover, args=(what,)) for what in "abcd"]
        for thread in threads:
            thread.start()
        all_in.wait(LIMIT)
        clock.now = 1.0
        assert {told.get(timeout=LIMIT).what for _ in threads} == set("abcd")
        go_on.set()
        for thread in threads:
            thread.join()
    ends = [told.get_nowait() for _ in threads]
    assert all(end.ended for end in ends)
    assert told.empty()
