# SPDX-License-Identifier: Apache-2.0
"""Random processes on random hosts: whatever is in the way, the sums close and nothing is harmed."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numaplacement.engine.reasons import Reason
from numaplacement.engine.verdict import Outcome, Verdict
from tests.unit.engine_world import MIB, Recorder, Region, World, run_in
from tests.unit.engine_world_host import with_blocks, with_pools
from tests.unit.engine_world_region import HUGE, PAGE, PER_HUGE

BASE = 0x7F0000000000
KINDS: dict[str, tuple[str, str, bool]] = {
    "anon": ("", "rw-p", False),
    "shmem": ("/memfd:ram (deleted)", "rw-s", True),
    "file": ("/srv/disk.img", "rw-s", True),
    "text": ("/usr/lib/libc.so.6", "r-xp", True),
}
"""Path, permissions, and whether pages are those of a file."""


@st.composite
def regions(draw: st.DrawFn, start: int) -> Region:
    """A mapping of base pages, of one transparent huge page and some, or of pages of a pool."""
    kind = draw(st.sampled_from([*KINDS, "huge", "pool"]))
    if kind == "pool":
        return Region(start, draw(st.lists(st.integers(0, 3), min_size=1, max_size=4)), page_size=HUGE)
    if kind == "huge":
        node = draw(st.integers(0, 3))
        tail = draw(st.lists(st.integers(-1, 3), max_size=8))
        fragile = draw(st.sets(st.just(0)))
        return Region(start, [node] * PER_HUGE + tail, whole={0}, fragile=fragile)
    path, permissions, file = KINDS[kind]
    nodes = draw(st.lists(st.integers(-1, 3), min_size=1, max_size=48))
    indices = st.integers(0, len(nodes) - 1)
    there = st.sets(indices.filter(lambda index: nodes[index] >= 0), max_size=12) if max(nodes) >= 0 else st.just(set())
    region = Region(start, nodes, path=path, permissions=permissions, file=file)
    region.shared, region.refused, region.busy = draw(there), draw(there), draw(there)
    region.hidden = draw(there) if kind == "anon" else set()
    absent = [index for index, node in enumerate(nodes) if node < 0]
    if kind == "anon" and absent:
        region.swapped = draw(st.sets(st.sampled_from(absent), max_size=6))
    return region


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A process of up to five mappings, on a host whose NUMA node 0 may be small, with memory that comes and goes."""
    found = [draw(regions(BASE + number * 64 * MIB)) for number in range(draw(st.integers(1, 5)))]
    pages = sum(len(region.nodes) for region in found)
    room = draw(st.sampled_from([1 << 30, pages * PAGE, pages * PAGE // 2, 8 * PAGE, 0]))
    world = World(found, safe={0: room, 1: 1 << 30, 2: 1 << 30, 3: 1 << 30}, speed=draw(st.sampled_from([1e9, 1e7])))
    with_blocks(world)
    with_pools(world, node0=(4, draw(st.integers(0, 4))), **{f"node{node}": (24, 0) for node in (1, 2, 3)})
    for number in draw(st.sets(st.integers(1, 12), max_size=3)):
        world.hooks[number] = draw(st.sampled_from([appear, vanish, wander, fill]))(world)
    number, error = draw(st.integers(1, 8)), draw(st.sampled_from([0, 0, errno.ENOMEM, errno.EACCES, errno.EIO]))
    if error:
        world.at_call[number] = error
    return world


def of_base_pages(world: World) -> list[Region]:
    return [region for region in world.regions if region.page_size == PAGE and not region.whole]


def appear(world: World) -> Callable[[], None]:
    def hook() -> None:
        for region in of_base_pages(world):
            region.nodes = [2 if node < 0 and i not in region.swapped else node for i, node in enumerate(region.nodes)]

    return hook


def vanish(world: World) -> Callable[[], None]:
    def hook() -> None:
        for region in of_base_pages(world):
            region.nodes[::3] = [-1] * len(region.nodes[::3])

    return hook


def wander(world: World) -> Callable[[], None]:
    def hook() -> None:
        for region in of_base_pages(world):
            region.nodes = [3 if node == 0 else node for node in region.nodes]

    return hook


def fill(world: World) -> Callable[[], None]:
    def hook() -> None:
        world.safe[0] = 0

    return hook


@given(
    world=worlds(),
    movers=st.integers(1, 3),
    tolerance=st.sampled_from([0, 16 * PAGE]),
    follow=st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_sums_close_in_every_layout(world: World, movers: int, tolerance: int, follow: bool) -> None:
    before = world.bytes_on()
    with tempfile.TemporaryDirectory() as root:
        wish = {"movers": movers, "tolerance_bytes": tolerance, "follow_threads": follow}
        verdict = run_in(world, Path(root), Recorder(), **wish)
    see(world, verdict, before)


def see(world: World, verdict: Verdict, before: dict[int, int]) -> None:
    """Hold a verdict against what there is and against what may never happen."""
    said: dict[int, int] = {}
    for row in verdict.after:
        if row.numa_node >= 0:
            said[row.numa_node] = said.get(row.numa_node, 0) + row.bytes
    assert said == world.bytes_on()
    filled = any(hook.__qualname__.startswith("fill") for hook in world.hooks.values())
    assert filled or not world.overdrawn, "the target fell below its high watermark through us"
    if not world.hooks:
        assert all(world.bytes_on().get(node, 0) <= before.get(node, 0) for node in (1, 2, 3)), "moved off the target"
        assert verdict.freed == 0
    reasons = {row.reason for row in verdict.residue}
    if errno.EIO not in world.at_call.values():
        assert Reason.UNEXPLAINED not in reasons
    assert verdict.outcome is not Outcome.PROCESS_GONE
