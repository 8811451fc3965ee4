# SPDX-License-Identifier: Apache-2.0
"""How much one call may move, and when."""

from __future__ import annotations

import heapq
import random
import statistics
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaplacement.engine.chunks import LEAST, MOST, START, ChunkSize, TokenBucket

MIB = 1 << 20
TARGET = 0.02
Latency = Callable[[int], float]


def factors(*, seed: int, one_in: int) -> Callable[[], float]:
    """How much slower than usual a call is: a spread around 1, and now and then several times as slow."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    return lambda: chance.lognormvariate(0.0, 0.25) * (4.0 if chance.randrange(one_in) == 0 else 1.0)


def latency(*, rate: float, fixed: float, seed: int, one_in: int = 200) -> Latency:
    """Seconds of a call over so many bytes."""
    factor = factors(seed=seed, one_in=one_in)
    return lambda size: fixed + size / rate * factor()


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


def run(chunk: ChunkSize, seconds: Latency, calls: int) -> tuple[list[float], int]:
    times, moved = [], 0
    for _ in range(calls):
        size = chunk.size
        times.append(seconds(size))
        chunk.observe(seconds=times[-1], moved=size)
        moved += size
    return times, moved


def best_fixed(*, rate: float, fixed: float, seed: int, one_in: int) -> float:
    """Bytes per second with the biggest fixed size whose p99 holds."""
    factor = factors(seed=seed, one_in=one_in)
    seen = [factor() for _ in range(4000)]
    size = min(MOST, (TARGET - fixed) * rate / p99(seen))
    return size / (fixed + size / rate * statistics.mean(seen))


@pytest.mark.parametrize("one_in", [60, 200, 1000])
@pytest.mark.parametrize(
    ("rate", "fixed", "kept"), [(8e9, 40e-6, 0.97), (3e9, 40e-6, 0.97), (1e9, 1e-3, 0.85), (1e8, 40e-6, 0.97)]
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_p99_stays_below_the_target_at_little_cost(
    rate: float, fixed: float, kept: float, one_in: int, seed: int
) -> None:
    host = {"rate": rate, "fixed": fixed, "seed": seed, "one_in": one_in}
    times, moved = run(ChunkSize(target=TARGET), latency(**host), 4000)
    assert p99(times) <= TARGET
    assert moved / sum(times) >= kept * best_fixed(**host)


@pytest.mark.parametrize("rate", [1e8, 1e9, 1e10])
@pytest.mark.parametrize("seed", range(10))
def test_it_holds_in_a_short_run_too(rate: float, seed: int) -> None:
    times, _ = run(ChunkSize(target=TARGET), latency(rate=rate, fixed=40e-6, seed=seed, one_in=10**9), 100)
    assert sum(seconds > TARGET for seconds in times) <= 1
    assert max(times) <= 1.25 * TARGET


@pytest.mark.parametrize(("rate", "calls"), [(3e7, 12), (1e8, 12), (1e9, 12), (2e10, 12)])
def test_it_soon_has_a_size_that_pays(rate: float, calls: int) -> None:
    chunk = ChunkSize(target=TARGET)
    run(chunk, lambda size: 40e-6 + size / rate, calls)
    assert chunk.size >= min(MOST, rate * TARGET * 0.3)


def test_it_follows_a_host_that_becomes_slower_and_faster() -> None:
    chunk = ChunkSize(target=TARGET)
    run(chunk, latency(rate=2e9, fixed=40e-6, seed=1), 1000)
    times, _ = run(chunk, latency(rate=2e8, fixed=40e-6, seed=2), 1000)
    assert p99(times) <= TARGET
    run(chunk, latency(rate=2e9, fixed=40e-6, seed=3), 800)
    assert chunk.size >= 2e9 * TARGET * 0.15


def test_a_tail_that_size_does_not_make_does_not_make_chunks_tiny() -> None:
    chance = random.Random(1)  # noqa: S311 - a simulation
    chunk = ChunkSize(target=TARGET)
    run(chunk, lambda size: size / 1e9 + (0.05 if chance.randrange(20) == 0 else 0.0), 1000)
    assert chunk.size >= 1e9 * TARGET / 4 * 0.9


def jittery(*, rate: float, fixed: float, jitter: float, seed: int) -> Latency:
    """Seconds of a call on a host whose calls all wait now and then for something that has nothing to do with size."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    return lambda size: fixed + size / rate + chance.expovariate(1.0) * jitter


@pytest.mark.parametrize("seed", range(5))
def test_waiting_that_size_does_not_make_is_not_answered_by_ever_smaller_chunks(seed: int) -> None:
    """As in an emulated host: a fixed cost of 2 ms, 500 MB/s, and waits of 2 ms on average, now and then of ten."""
    times, moved = run(ChunkSize(target=TARGET), jittery(rate=5e8, fixed=2e-3, jitter=2e-3, seed=seed), 400)
    assert moved / sum(times) >= 0.25 * 5e8
    assert p99(times) <= 1.25 * TARGET


@pytest.mark.parametrize("first", [0.001, 0.012, 0.019])
def test_a_slow_first_call_is_not_held_against_all_others(first: float) -> None:
    chunk = ChunkSize(target=TARGET)
    chunk.observe(seconds=first, moved=LEAST)
    times, _ = run(chunk, lambda size: 1e-3 + size / 1e9, 1000)
    assert p99(times) <= TARGET


def test_several_movers_make_it_grow_no_faster_than_one() -> None:
    chunk = ChunkSize(target=TARGET)
    chunk.observe(seconds=1e-6, moved=LEAST)
    for _ in range(4):
        chunk.observe(seconds=1e-6, moved=START)
    assert chunk.size == 2 * START


def test_a_small_call_says_nothing_unless_it_is_slow() -> None:
    chunk = ChunkSize(target=TARGET)
    chunk.observe(seconds=1e-4, moved=LEAST)
    assert chunk.size == START
    chunk.observe(seconds=0.001, moved=4096)
    assert chunk.size == START
    chunk.observe(seconds=9.0, moved=4096)
    assert chunk.size == LEAST


@given(st.lists(st.tuples(st.floats(min_value=0, max_value=100), st.integers(1, 1 << 30)), max_size=50))
def test_chunks_stay_within_bounds(calls: list[tuple[float, int]]) -> None:
    chunk = ChunkSize(target=TARGET)
    for seconds, moved in calls:
        chunk.observe(seconds=seconds, moved=moved)
        assert LEAST <= chunk.size <= MOST


def test_threads_that_observe_at_once_lose_nothing() -> None:
    chunk = ChunkSize(target=TARGET)
    threads = [
        threading.Thread(target=lambda: [chunk.observe(seconds=0.01, moved=START) for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(chunk._recent) == len(chunk._costs) == len(chunk._beyond) == 400
    assert sorted(call.cost for call in chunk._recent) == chunk._costs


@given(st.lists(st.integers(min_value=1, max_value=MIB), min_size=1, max_size=40), st.integers(1, 64 * MIB))
def test_bandwidth_over_any_run_of_calls(sizes: list[int], rate: int) -> None:
    bucket, now, moved = TokenBucket(rate=rate), 0.0, 0
    for size in sizes:
        now += bucket.take(size, now)
        moved += size
        assert moved <= rate * now * 1.000001 + 1
        assert bucket.wait(now) <= 1e-6


def through(bucket: TokenBucket, *, movers: int, speed: float, total: int, nap: float) -> float:
    """Seconds it takes movers to move so many bytes, each at its own speed; sleeping lasts up to `nap` too long."""
    chance = random.Random(movers)  # noqa: S311 - a simulation
    free = [(0.0, number) for number in range(movers)]
    end = 0.0
    while total > 0:
        now, number = heapq.heappop(free)
        size = min(total, bucket.most())
        total -= size
        wait = bucket.take(size, now)
        end = now + wait + (chance.random() * nap if wait else 0.0) + size / speed
        heapq.heappush(free, (end, number))
    return max(time for time, _ in free)


@pytest.mark.parametrize("movers", [1, 2, 3, 4])
@pytest.mark.parametrize("seconds", [2, 20])
@pytest.mark.parametrize("rate", [10 * MIB, 1 << 30])
def test_the_cap_holds_within_a_tenth_with_any_number_of_movers(movers: int, seconds: int, rate: int) -> None:
    took = through(TokenBucket(rate=rate), movers=movers, speed=2e9, total=rate * seconds, nap=0.01)
    assert seconds <= took <= seconds * 1.1


def test_what_was_not_used_for_long_is_not_caught_up_with() -> None:
    bucket = TokenBucket(rate=1000)
    assert bucket.take(100, 0.0) == pytest.approx(0.1)
    assert bucket.take(100, 60.0) == 0.0
    assert bucket.take(1000, 60.0) == pytest.approx(0.85)


def test_what_was_taken_and_not_used_is_given_back() -> None:
    bucket = TokenBucket(rate=1000)
    bucket.take(500, 0.0)
    bucket.give_back(400)
    assert bucket.wait(0.0) == pytest.approx(0.1)


def test_no_limit_never_waits() -> None:
    bucket = TokenBucket(rate=None)
    assert bucket.take(1 << 40, 0.0) == 0.0
    assert (bucket.wait(0.0), bucket.most()) == (0.0, MOST)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_where_calls_may_last_seconds_a_slow_one_now_and_then_makes_none_of_them_small(seed: int) -> None:
    """As with a VM that writes on scarce CPUs: a call in twenty waits for a CPU, and each costs time by itself."""
    chance, chunk = random.Random(seed), ChunkSize(target=10.0)  # noqa: S311 - a simulation
    run(chunk, lambda size: 2e-3 + size / 2e8 * (6.0 if chance.randrange(20) == 0 else 1.0), 400)
    assert chunk.size >= 0.035 * 2e8
