# SPDX-License-Identifier: Apache-2.0
"""Pools of huge pages: what they can take, by how much they are raised, and that all of it is given back."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.poolgrowth import GrownPools, releasable
from numaplacement.engine.pools import HostPool, Pool, PoolPlan, largest_block, plan_pool, read_pools, wandered

PAGE = 4096
MIB = 1 << 20
HUGE = 2 * MIB
GIGANTIC = 1 << 30
LARGEST = 4 * MIB


def pools(*free: int, used: int = 0, reserved: int = 0, surplus: int = 0, page_size: int = HUGE) -> HostPool:
    return HostPool(
        page_size=page_size,
        by_numa_node={
            node: Pool(total=count + used, free=count, surplus=surplus if node == 0 else 0)
            for node, count in enumerate(free)
        },
        reserved=reserved,
    )


@pytest.mark.parametrize(
    ("host", "numa_node", "usable"),
    [
        (pools(8, 0), 0, 8),
        (pools(8, 0), 1, 0),
        (pools(8, 8, reserved=3), 0, 5),  # they may be wanted on this very NUMA node
        (pools(8, 8, reserved=9), 0, 0),
        (pools(8), 7, 0),
    ],
)
def test_what_is_reserved_is_left(host: HostPool, numa_node: int, usable: int) -> None:
    assert host.usable(numa_node) == usable


@pytest.mark.parametrize(
    ("need", "host", "allowed", "held", "usable", "grow", "short", "said"),
    [
        (0, pools(0), True, 0, 0, 0, 0, ""),
        (8, pools(8), True, 0, 8, 0, 0, ""),
        (8, pools(5), False, 0, 5, 0, 3, "8 pages of 2.0 MiB to move, 5 free in the pool of NUMA node 0"),
        (8, pools(5), True, 0, 5, 3, 0, "8 pages of 2.0 MiB to move, 5 free in the pool of NUMA node 0"),
        (8, pools(8), True, 2, 6, 2, 0, "8 free in the pool"),  # another run has reserved two
        (8, pools(8, reserved=1), True, 0, 7, 1, 0, "NUMA node 0, 1 on the host are reserved"),
        (8, pools(5, surplus=1), True, 0, 5, 0, 3, "not raised while the host has 1 surplus page"),
    ],
)
def test_a_pool_is_raised_by_what_is_missing_and_only_where_allowed(
    *, need: int, host: HostPool, allowed: bool, held: int, usable: int, grow: int, short: int, said: str
) -> None:
    plan = plan_pool(need * HUGE, pools=host, numa_node=0, allowed=allowed, largest_block=LARGEST, held=held * HUGE)
    assert (plan.usable, plan.grow, plan.short) == (usable, grow, short)
    assert said in plan.evidence
    assert bool(plan.evidence) == bool(said)


def test_gigantic_pages_come_from_the_pool_alone() -> None:
    host = pools(1, page_size=GIGANTIC)
    plan = plan_pool(2 * GIGANTIC, pools=host, numa_node=0, allowed=True, largest_block=LARGEST)
    assert (plan.usable, plan.grow, plan.short) == (1, 0, 1)
    assert plan.evidence.endswith("a pool of pages that large is not raised while the host runs")


def test_pools_that_changed_in_silence_are_told() -> None:
    assert wandered(pools(4, 4), pools(4, 4)) == ""
    assert (
        wandered(pools(4, 4), pools(6, 2))
        == "pools of 2.0 MiB pages changed: NUMA node 0 from 4 to 6, NUMA node 1 from 4 to 2"
    )


@pytest.mark.parametrize(
    ("host", "promised", "pages"),
    [
        (pools(5, 5, used=3), 0, 5),
        (pools(5, 0, reserved=2), 0, 3),  # reserved since: they may have counted on it
        (pools(5, 9, reserved=2), 0, 3),
        (pools(5, 9, reserved=2), 2, 5),
        (pools(5, 0, reserved=2), 2, 3),  # the kernel leaves as many free as are reserved
        (pools(5, surplus=1), 0, 0),
    ],
)
def test_only_free_pages_nobody_counts_on_are_given_back(host: HostPool, promised: int, pages: int) -> None:
    assert releasable(host, 0, promised=promised) == pages


class Host(Kernel):
    """A host's pools of 2 MiB pages, resized as the kernel does, over a folder."""

    def __init__(self, root: Path, *, used: list[int], free: list[int], blocks: int = 64, gives: int = 99) -> None:
        super().__init__(proc=root / "proc", sys=root / "sys")
        self.used, self.free, self.surplus = used, free, [0] * len(used)
        self.reserved, self.blocks, self.gives = 0, blocks, gives
        self.resized: list[tuple[int, int]] = []
        self.before_write: Callable[[], None] = lambda: None
        self.after_write: Callable[[], None] = lambda: None
        self.refuses = 0
        self.proc.mkdir()
        self.show()

    @property
    def totals(self) -> list[int]:
        return [used + free for used, free in zip(self.used, self.free, strict=True)]

    def show(self) -> None:
        def put(path: Path, text: object) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

        put(self.sys / "kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", self.reserved)
        free = self.blocks * 512
        lines = []
        for node, total in enumerate(self.totals):
            folder = self.sys / f"devices/system/node/node{node}/hugepages/hugepages-2048kB"
            put(folder / "nr_hugepages", total)
            put(folder / "free_hugepages", self.free[node])
            put(folder / "surplus_hugepages", self.surplus[node])
            lines.append(f"Node {node}, zone Normal" + " 0" * 9 + f" {self.blocks} 0\n")
        put(self.proc / "buddyinfo", "".join(lines))
        put(
            self.proc / "zoneinfo",
            "".join(
                f"Node {node}, zone   Normal\n  pages free     {free}\n        high     0\n        protection: (0, 0)\n"
                for node in range(len(self.used))
            ),
        )

    def write(self, path: Path, text: str) -> None:
        if path.name == "compact":
            return
        if self.refuses:
            raise OSError(self.refuses, "no")
        self.before_write()
        node, wanted = int(path.parent.parent.parent.name[4:]), int(text)
        self.resized.append((node, wanted))
        while wanted > self.totals[node] - self.surplus[node] and self.surplus[node]:
            self.surplus[node] -= 1
        more = min(max(0, wanted - self.totals[node]), self.blocks, self.gives)
        self.free[node] += more
        self.blocks -= more
        while wanted < self.totals[node] - self.surplus[node]:
            if self.free[node] and sum(self.free) > self.reserved:
                self.free[node] -= 1
                self.blocks += 1
            else:
                self.surplus[node] += 1
        self.show()
        self.after_write()

    def move(self, count: int, source: int, target: int) -> None:
        assert self.free[target] >= count, "the pool would wander"
        self.used[source] -= count
        self.free[source] += count
        self.used[target] += count
        self.free[target] -= count
        self.show()

    def plan(self, need: int, target: int = 0) -> PoolPlan:
        return plan_pool(
            need * HUGE,
            pools=read_pools(self, HUGE),
            numa_node=target,
            allowed=True,
            largest_block=largest_block(self),
        )


def test_pools_are_read_by_numa_node(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[1, 2], free=[3, 4])
    host.reserved = 2
    host.show()
    assert read_pools(host, HUGE) == HostPool(
        page_size=HUGE, by_numa_node={0: Pool(total=4, free=3), 1: Pool(total=6, free=4)}, reserved=2
    )
    assert largest_block(host) == LARGEST


def test_all_moves_and_the_source_gives_as_many_back(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8], free=[2, 1])
    with GrownPools(host) as grown:
        assert grown.grow(host.plan(8)).pages == 6
        host.move(8, 1, 0)
        grown.left(numa_node=0, page_size=HUGE, by_source={1: 8})
    assert host.totals == [8, 3]
    assert sum(host.totals) == 11
    assert host.surplus == [0, 0]
    (back,) = grown.given_back
    assert (back.unused, back.at_sources, back.kept, back.evidence) == (0, {1: 6}, 0, "")


@pytest.mark.parametrize(("moved", "totals"), [(0, [2, 9]), (2, [2, 9]), (5, [5, 6]), (8, [8, 3])])
def test_ended_in_the_middle(tmp_path: Path, moved: int, totals: list[int]) -> None:
    """The pages that were free before are used first, and the rest of what was raised goes back where it was raised."""
    host = Host(tmp_path, used=[0, 8], free=[2, 1])
    with contextlib.suppress(KeyboardInterrupt), GrownPools(host) as grown:
        grown.grow(host.plan(8))
        host.move(moved, 1, 0)
        grown.left(numa_node=0, page_size=HUGE, by_source={1: moved})
        raise KeyboardInterrupt
    assert host.totals == totals


def test_a_process_that_died_leaves_all_as_it_was(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 1])
    with GrownPools(host) as grown:
        grown.grow(host.plan(8))
        host.move(5, 1, 0)
        host.used, host.free = [0, 0], [8, 9]
        host.show()
    assert host.totals == [0, 9]


def test_two_sources_and_two_targets_that_are_sources(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[3, 4, 2], free=[0, 0, 0])
    with GrownPools(host) as grown:
        grown.grow(host.plan(4, target=0))
        grown.grow(host.plan(5, target=1))
        host.move(4, 1, 0)
        host.move(3, 0, 1)
        host.move(2, 2, 1)
        grown.left(numa_node=0, page_size=HUGE, by_source={1: 4})
        grown.left(numa_node=1, page_size=HUGE, by_source={0: 3, 2: 2})
    assert host.totals == [4, 5, 0]
    assert host.free == [0, 0, 0]


def test_a_partial_raise_is_read_back(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 0], gives=3)
    with GrownPools(host) as grown:
        growth = grown.grow(host.plan(8))
        assert (growth.pages, growth.evidence) == (3, "the pool of NUMA node 0 was raised by 3 of 8 pages")
    assert host.totals == [0, 8]


def test_no_more_is_asked_for_than_there_are_free_blocks(tmp_path: Path) -> None:
    """The kernel would reclaim, and swap, for each page beyond."""
    host = Host(tmp_path, used=[0, 8], free=[0, 0], blocks=5)
    with GrownPools(host) as grown:
        growth = grown.grow(host.plan(8), others=4 * MIB)
        assert host.resized == [(0, 3)]
        assert growth.pages == 3
        assert "6.0 MiB can be had whole on NUMA node 0" in growth.evidence


def test_nothing_is_touched_without_the_word(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8], free=[2, 0])
    plan = plan_pool(
        8 * HUGE, pools=read_pools(host, HUGE), numa_node=0, allowed=False, largest_block=largest_block(host)
    )
    with GrownPools(host) as grown:
        assert grown.grow(plan).pages == 0
        assert grown.grow(plan).evidence == plan.evidence != ""
    assert host.resized == []
    assert grown.given_back == ()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_no_right_to_raise_is_a_result(tmp_path: Path, number: int) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 0])
    host.refuses = number
    with GrownPools(host) as grown:
        growth = grown.grow(host.plan(8))
    assert (growth.pages, grown.given_back) == (0, ())
    assert growth.evidence == f"the pool of NUMA node 0 could not be raised ({errno.errorcode[number]}: no)"


def test_the_right_is_lost_before_the_end(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 0])
    with GrownPools(host) as grown:
        grown.grow(host.plan(8))
        host.refuses = errno.EROFS
    (back,) = grown.given_back
    assert back.kept == 8
    assert back.evidence.endswith("could not be given back without taking them from others (EROFS: no)")


def test_interrupted_while_it_is_raised(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 0])

    def interrupt() -> None:
        host.after_write = lambda: None
        raise KeyboardInterrupt

    host.after_write = interrupt
    with pytest.raises(KeyboardInterrupt), GrownPools(host) as grown:
        grown.grow(host.plan(8))
    assert host.totals == [0, 8]


def test_what_others_took_meanwhile_stays_theirs(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 0])
    with GrownPools(host) as grown:
        grown.grow(host.plan(8))
        host.move(4, 1, 0)
        grown.left(numa_node=0, page_size=HUGE, by_source={1: 4})
        host.free, host.used = [1, 2], [7, 6]  # three of the pages raised, two of those that were left
        host.show()
    (back,) = grown.given_back
    assert (back.unused, back.at_sources, back.kept) == (1, {1: 2}, 5)
    assert host.used == [7, 6]
    assert host.surplus == [0, 0]


def test_what_another_run_raised_stays_for_it(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8, 4], free=[0, 0, 0])
    with GrownPools(host) as other:
        with GrownPools(host) as grown:
            grown.grow(host.plan(8))
            host.move(8, 1, 0)
            assert other.grow(host.plan(4)).pages == 4
            grown.left(numa_node=0, page_size=HUGE, by_source={1: 8})
        assert host.totals == [12, 0, 4]
        host.move(4, 2, 0)
        other.left(numa_node=0, page_size=HUGE, by_source={2: 4})
    assert host.totals == [12, 0, 0]


def test_a_source_gives_no_more_than_what_left_it(tmp_path: Path) -> None:
    """Its other free pages were there before."""
    host = Host(tmp_path, used=[0, 8], free=[0, 5])
    with GrownPools(host) as grown:
        grown.grow(host.plan(8))
        host.move(2, 1, 0)
        grown.left(numa_node=0, page_size=HUGE, by_source={1: 2})
        host.free[0], host.used[0] = 0, 8  # somebody took all the others
        host.show()
    (back,) = grown.given_back
    assert (back.unused, back.at_sources, back.kept) == (0, {1: 2}, 6)
    assert host.free == [0, 5]


def test_a_page_taken_between_reading_and_lowering_stays_in_the_pool(tmp_path: Path) -> None:
    host = Host(tmp_path, used=[0, 8], free=[0, 0])
    with GrownPools(host) as grown:
        grown.grow(host.plan(8))

        def take() -> None:
            host.before_write = lambda: None
            host.free[0] -= 1
            host.used[0] += 1

        host.before_write = take
    assert host.surplus == [0, 0]
    assert (host.totals, grown.given_back[0].kept) == ([1, 8], 1)


@settings(deadline=None)
@given(
    used=st.integers(0, 12),
    free=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    blocks=st.integers(0, 12),
    share=st.floats(0, 1),
    told=st.booleans(),
)
def test_the_host_has_as_many_pages_as_before(
    *, tmp_path_factory: pytest.TempPathFactory, used: int, free: tuple[int, int], blocks: int, share: float, told: bool
) -> None:
    host = Host(tmp_path_factory.mktemp("host"), used=[3, used], free=list(free), blocks=blocks)
    before = sum(host.totals)
    with GrownPools(host) as grown:
        plan = host.plan(used)
        grown.grow(plan)
        moved = int(share * min(used, host.free[0])) if told else 0
        host.move(moved, 1, 0)
        grown.left(numa_node=0, page_size=HUGE, by_source={1: moved})
    assert sum(host.totals) == before
    assert host.used == [3 + moved, used - moved]
    assert host.surplus == [0, 0]
    assert all(back.kept == 0 for back in grown.given_back)
