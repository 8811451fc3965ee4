# SPDX-License-Identifier: Apache-2.0
"""What may be taken on a NUMA node, for each call anew."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from numaplacement.engine.gauge import Gauge
from numaplacement.engine.verdict import Allow
from tests.unit.engine_world import SimulatedKernel, World
from tests.unit.engine_world_host import with_page_cache, with_pools
from tests.unit.engine_world_region import HUGE, PAGE

MIB = 1 << 20


class Counting(SimulatedKernel):
    def read(self, path: Path) -> str:
        self.reads = [*getattr(self, "reads", []), path.name]
        return super().read(path)

    def whole(self) -> int:
        """How often all zones were read."""
        return getattr(self, "reads", []).count("zoneinfo")


@pytest.fixture
def world() -> World:
    return World([])


@pytest.fixture
def kernel(world: World, tmp_path: Path) -> Counting:
    return Counting(world, tmp_path)


def gauge(world: World, kernel: Counting, *allow: Allow) -> Gauge:
    return Gauge(kernel=kernel, allow=frozenset(allow), clock=lambda: world.now)


def test_what_others_take_is_missing_at_the_very_next_call(world: World, kernel: Counting) -> None:
    room = gauge(world, kernel).room
    assert room(0, PAGE) == 1 << 30
    for taken in (MIB, 100 * MIB, 400 * MIB):
        world.safe[0] = (1 << 30) - taken
        assert room(0, PAGE) == (1 << 30) - taken
    assert kernel.whole() == 1


def test_what_others_give_back_counts_only_once_all_zones_are_read_anew(world: World, kernel: Counting) -> None:
    room = gauge(world, kernel).room
    world.safe[0] = 100 * MIB
    assert room(0, PAGE) == 100 * MIB
    world.safe[0] = 300 * MIB
    assert room(0, PAGE) == 100 * MIB
    world.now += 0.2
    assert room(0, PAGE) == 300 * MIB
    assert kernel.whole() == 2


def test_all_zones_are_read_anew_where_little_is_left_of_the_room(world: World, kernel: Counting) -> None:
    room = gauge(world, kernel).room
    room(0, PAGE)
    for _ in range(10):
        world.safe[0] = world.safe[0] * 2 // 5 // PAGE * PAGE
        assert room(0, PAGE) == world.safe[0]
    assert kernel.whole() == 11


def test_each_numa_node_has_its_own(world: World, kernel: Counting) -> None:
    room = gauge(world, kernel).room
    world.safe.update({0: 8 * MIB, 1: 16 * MIB})
    assert (room(0, PAGE), room(1, PAGE), room(0, PAGE)) == (8 * MIB, 16 * MIB, 8 * MIB)


def test_what_is_given_back_between_two_readings_is_missed_when_it_is_taken_again(
    world: World, kernel: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.safe[0] = 512 * MIB
    zoneinfo = kernel._zoneinfo

    def given_back() -> str:
        world.safe[0] = 1024 * MIB
        return zoneinfo()

    with monkeypatch.context() as patched:
        patched.setattr(kernel, "_zoneinfo", given_back)
        room = gauge(world, kernel).room
        assert room(0, PAGE) == 1024 * MIB
    world.safe[0] = 600 * MIB
    assert room(0, PAGE) == 600 * MIB


def test_page_cache_is_pushed_out_once_for_all_movers(world: World, kernel: Counting) -> None:
    world.safe[0] = 0
    with_page_cache(world, 0, 1024 * MIB)
    asked, reclaim = [], world.writes["sys/devices/system/node/node0/reclaim"]

    def write(text: str) -> None:
        asked.append(int(text.split(maxsplit=1)[0]))
        reclaim(text)

    world.writes["sys/devices/system/node/node0/reclaim"] = write
    own = gauge(world, kernel, Allow.RECLAIM)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(own.make_room, 0, 48 * MIB, check=lambda: None) for _ in range(4)]:
            done.result(timeout=60)
    assert asked == [56 * MIB]
    world.safe[0] = 0
    own.make_room(0, 48 * MIB, check=lambda: None)
    assert world.safe[0] >= 48 * MIB, "what was had once may be had again"


def test_nothing_is_pushed_out_where_that_is_not_allowed(world: World, kernel: Counting) -> None:
    world.safe[0] = 0
    with_page_cache(world, 0, 1024 * MIB)
    gauge(world, kernel).make_room(0, 48 * MIB, check=lambda: None)
    assert world.safe[0] == 0


def test_a_page_taken_from_a_pool_between_two_readings_is_not_taken_for_free(world: World, kernel: Counting) -> None:
    with_pools(world, node0=(8, 5), node1=(0, 0))
    reserved = [5]

    def taken() -> str:
        """As a VM does that comes to the pages it was promised."""
        told, reserved[0], world.pools[0][1] = reserved[0], 2, 2
        return f"{told}\n"

    world.texts["sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages"] = taken
    assert gauge(world, kernel).room(0, HUGE) == 0


def test_a_pool_is_read_for_each_call(world: World, kernel: Counting) -> None:
    with_pools(world, node0=(8, 3), node1=(0, 0))
    room = gauge(world, kernel).room
    assert room(0, HUGE) == 3 * HUGE
    world.pools[0][1] = 1
    assert room(0, HUGE) == HUGE
    assert kernel.whole() == 0
