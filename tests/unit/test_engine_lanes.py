# SPDX-License-Identifier: Apache-2.0
"""How many movers are in calls at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from numaplacement.engine.lanes import Choice, Lanes

MIB = 1 << 20


def go(choice: Choice, rates: dict[int, float], *, until: float, now: float = 0.0) -> tuple[float, dict[int, float]]:
    """Make calls of 1 MiB; `rates` are bytes a second by how many are in calls. Return the time, and seconds spent."""
    spent = dict.fromkeys(rates, 0.0)
    while now < until:
        active = choice.active
        seconds = MIB / rates[active]
        now += seconds
        spent[active] += seconds
        choice.observe(moved=MIB, now=now)
    return now, spent


@pytest.mark.parametrize(("all_of_them", "chosen"), [(2.0, 2), (1.2, 2), (1.02, 1), (1.0, 1), (0.5, 1), (0.01, 1)])
def test_what_moves_more_by_the_clock_is_chosen(all_of_them: float, chosen: int) -> None:
    choice = Choice(most=2)
    go(choice, {1: 300e6, 2: 300e6 * all_of_them}, until=1.9)
    assert choice.active == chosen


@pytest.mark.parametrize(("all_of_them", "chosen"), [(2.0, 2), (0.5, 1), (0.02, 1)])
def test_trying_the_other_way_again_costs_little(all_of_them: float, chosen: int) -> None:
    choice = Choice(most=2)
    rates = {1: 300e6, 2: 300e6 * all_of_them}
    _, spent = go(choice, rates, until=30.0)
    assert spent[3 - chosen] <= 0.12 * 30.0


def test_it_follows_a_host_whose_cpus_are_taken_and_free_again() -> None:
    choice, now = Choice(most=2), 0.0
    for all_of_them, better in ((500e6, 2), (10e6, 1), (500e6, 2)):
        now, _ = go(choice, {1: 300e6, 2: all_of_them}, until=now + 3.0, now=now)
        now, spent = go(choice, {1: 300e6, 2: all_of_them}, until=now + 6.0, now=now)
        assert spent[better] >= 0.85 * 6.0


@pytest.mark.parametrize(("late_of_all", "chosen"), [(0.0, 2), (0.01, 2), (0.2, 1)])
def test_moving_more_is_not_worth_long_calls(late_of_all: float, chosen: int) -> None:
    choice, now, calls = Choice(most=2), 0.0, 0
    spent = {1: 0.0, 2: 0.0}
    while now < 20.0:
        calls += 1
        seconds = MIB / {1: 300e6, 2: 450e6}[choice.active]
        now += seconds
        spent[choice.active] += seconds
        late = choice.active == 2 and calls % 100 < 100 * late_of_all
        choice.observe(moved=MIB, now=now, late=late)
    assert spent[chosen] >= 0.7 * 20.0


def test_what_the_other_still_moves_is_not_taken_for_ones_own() -> None:
    """One is tried after all: the second mover goes on to the end of its job, and both are fast together."""
    choice, now, crowd = Choice(most=2), 0.0, 0
    while now < 1.9:
        before = choice.active
        now += MIB / {1: 300e6, 2: 450e6}[2 if crowd else choice.active]
        choice.observe(moved=MIB, now=now, crowded=crowd > 0)
        crowd = 40 if choice.active < before else max(0, crowd - 1)
    assert choice.active == 2


def test_where_cpus_are_scarce_a_short_move_is_made_by_one() -> None:
    """512 MiB at 190 MiB/s, where two at once move a twelfth of that: as seen with a VM that writes, on two CPUs."""
    choice = Choice(most=2)
    _, spent = go(choice, {1: 200e6, 2: 16e6}, until=2.7)
    assert spent[2] <= 0.1 * 2.7


def test_a_single_mover_has_no_choice() -> None:
    choice = Choice(most=1)
    go(choice, {1: 300e6}, until=3.0)
    assert choice.active == 1


def test_calls_that_took_no_time_choose_nothing() -> None:
    choice = Choice(most=2)
    for _ in range(100):
        choice.observe(moved=MIB, now=1.0)
    assert choice.active == 1


@pytest.mark.parametrize("movers", [1, 2, 4])
def test_no_more_are_in_calls_than_are_let_in(movers: int) -> None:
    """Work by real threads; the clock stands still, so the choice does too."""
    lanes = Lanes(movers=movers, latency=1.0, clock=lambda: 0.0)
    lanes._choice.active = 1
    inside, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with lanes.entered():
            for _ in range(20):
                with lock:
                    inside += 1
                    most = max(most, inside)
                lanes.observe(moved=MIB, seconds=0.1)
                with lock:
                    inside -= 1
                lanes.step_aside()

    with ThreadPoolExecutor(movers) as pool:
        for done in [pool.submit(work) for _ in range(movers)]:
            done.result(timeout=60)
    assert (inside, most) == (0, 1)


def test_one_that_fails_lets_the_next_in() -> None:
    lanes = Lanes(movers=1, latency=1.0, clock=lambda: 0.0)
    with pytest.raises(ZeroDivisionError), lanes.entered():
        raise ZeroDivisionError
    with lanes.entered():
        lanes.observe(moved=MIB, seconds=0.1)
        lanes.step_aside()


def test_who_is_one_too_many_steps_aside() -> None:
    """Both are in when one at a time turns out to be better: the one that comes to its next job first waits."""
    lanes = Lanes(movers=2, latency=1.0, clock=lambda: 0.0)
    lanes._choice.active = 2
    entered, aside = threading.Event(), threading.Event()

    def other() -> None:
        with lanes.entered():
            entered.set()
            aside.wait(60)

    thread = threading.Thread(target=other)
    with lanes.entered():
        thread.start()
        assert entered.wait(60)
        lanes._choice.active = 1
        timer = threading.Timer(0.2, aside.set)
        timer.start()
        lanes.step_aside()
        assert aside.is_set(), "it went on beside the other"
    thread.join()
