# SPDX-License-Identifier: Apache-2.0
"""How much a NUMA node can take, and how much one call may move."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaplacement.engine.admission import safe_bytes, zones
from numaplacement.engine.chunks import LEAST, MOST, START, ChunkSize, TokenBucket

ZONEINFO = """Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 2
  pages free     3840
        boost    0
        min      31
        low      38
        high     45
        spanned  4095
        present  3998
        managed  3840
        cma      0
        protection: (0, 1923, 1923, 1923, 1923)
      nr_free_pages 3840
  pagesets
    cpu: 0
              count: 0
              high:  14
              batch: 1
  node_unreclaimable:  0
  start_pfn:           1
Node 0, zone    DMA32
  pages free     400000
        boost    0
        min      4036
        low      5045
        high     6054
        spanned  520160
        protection: (0, 0, 0, 0, 0)
  pagesets
    cpu: 0
              count: 369
              high:  1000
  start_pfn:           4096
Node 0, zone   Normal
  pages free     0
        min      0
        low      0
        high     0
        protection: (0, 0, 0, 0, 0)
Node 0, zone  Movable
  pages free     0
        min      0
        low      0
        high     0
        protection: (0, 0, 0, 0, 0)
Node 1, zone      DMA
  pages free     0
        high     0
        protection: (0, 0, 0, 100, 100)
Node 1, zone   Normal
  pages free     100
        high     100
        protection: (0, 0, 0, 0, 0)
Node 1, zone  Movable
  pages free     900
        high     100
        protection: (0, 0, 0, 0, 0)
Node 10, zone   Normal
  pages free     77
        high     7
"""


def test_zones_of_one_numa_node() -> None:
    assert [(zone.name, zone.free, zone.high, zone.protection) for zone in zones(ZONEINFO, 0)] == [
        ("DMA", 3840, 45, 1923),
        ("DMA32", 400000, 6054, 0),
        ("Normal", 0, 0, 0),
        ("Movable", 0, 0, 0),
    ]


@pytest.mark.parametrize(
    ("numa_node", "pages"),
    [(0, (3840 - 45 - 1923) + (400000 - 6054)), (1, 800), (10, 70), (2, 0), (9, 0)],
)
def test_safe_is_what_lies_above_watermark_and_protection_zone_by_zone(numa_node: int, pages: int) -> None:
    assert safe_bytes(ZONEINFO, numa_node=numa_node, page_size=4096) == pages * 4096


def test_a_zone_below_its_watermark_takes_nothing_from_the_others() -> None:
    text = ZONEINFO.replace("free     3840", "free     40")
    assert safe_bytes(text, numa_node=0, page_size=1) == 400000 - 6054


def test_no_zone_at_all() -> None:
    assert safe_bytes("", numa_node=0, page_size=4096) == 0


MIB = 1 << 20


@pytest.mark.parametrize(
    ("seconds", "moved", "size"),
    [
        (0.001, START, 2 * START),
        (0.008, START, START + START // 8),
        (0.012, START, START),
        (0.016, START, START - START // 8),
        (0.021, START, START // 2),
        (0.021, START // 4, START // 8),
        (0.001, 4096, START),
        (9.0, 4096, LEAST),
    ],
)
def test_the_next_call_after_the_first(seconds: float, moved: int, size: int) -> None:
    chunk = ChunkSize(target=0.02)
    chunk.observe(seconds=seconds, moved=moved)
    assert chunk.size == size


def test_after_an_overshoot_it_grows_slowly() -> None:
    chunk = ChunkSize(target=0.02)
    chunk.observe(seconds=0.03, moved=START)
    chunk.observe(seconds=0.001, moved=START // 2)
    assert chunk.size == START // 2 + START // 16


@given(st.floats(min_value=2e7, max_value=2e10), st.floats(min_value=0.0, max_value=0.003))
def test_calls_come_to_lie_below_the_target_whatever_the_machine(rate: float, fixed: float) -> None:
    chunk, times = ChunkSize(target=0.02), []
    for _ in range(400):
        times.append(fixed + chunk.size / rate)
        chunk.observe(seconds=times[-1], moved=chunk.size)
    assert LEAST <= chunk.size <= MOST
    assert max(times[100:]) <= 0.02
    assert chunk.size == MOST or times[-1] >= 0.007


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=50))
def test_chunks_stay_within_bounds(durations: list[float]) -> None:
    chunk = ChunkSize(target=0.02)
    for seconds in durations:
        chunk.observe(seconds=seconds, moved=chunk.size)
        assert LEAST <= chunk.size <= MOST


@given(st.lists(st.integers(min_value=1, max_value=MIB), min_size=1, max_size=40), st.integers(1, 64 * MIB))
def test_bandwidth_over_any_run_of_calls(sizes: list[int], rate: int) -> None:
    bucket, now, moved = TokenBucket(rate=rate), 0.0, 0
    for size in sizes:
        now += bucket.wait(now)
        assert moved <= rate * now * 1.000001 + 1
        bucket.take(size, now)
        moved += size


def test_no_limit_never_waits() -> None:
    bucket = TokenBucket(rate=None)
    bucket.take(1 << 40, 0.0)
    assert (bucket.wait(0.0), bucket.most()) == (0.0, MOST)
