# SPDX-License-Identifier: Apache-2.0
"""Whether huge pages fit whole on a NUMA node, and the compaction of that one NUMA node."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from numaplacement.engine.contiguity import (
    Blocks,
    Compaction,
    compact,
    free_blocks,
    make_contiguous,
    plan_contiguity,
)
from numaplacement.engine.kernel import Kernel

PAGE = 4096
MIB = 1 << 20
HUGE = 2 * MIB

BUDDYINFO = """Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3
Node 0, zone    DMA32     10      0      0      0      0      0      0      0      0      2      7
Node 1, zone   Normal    512      0      0      0      0      0      0      0      0      4      0
Node 10, zone   Normal      0      0      0      0      0      0      0      0      0      0     99
"""


def zone(numa_node: int, name: str, *, free: int, high: int, protection: int = 0) -> str:
    return (
        f"Node {numa_node}, zone {name:>8}\n  pages free     {free}\n        min      0\n        low      0\n"
        f"        high     {high}\n        protection: (0, 0, {protection}, {protection}, {protection})\n"
    )


def blocks(numa_node: int, zoneinfo: str, *, huge: int = HUGE) -> Blocks:
    return free_blocks(BUDDYINFO, zoneinfo, numa_node=numa_node, page_size=PAGE, huge_page_size=huge)


@pytest.mark.parametrize(
    ("high", "usable"),
    [
        (0, 8192),  # 2 blocks of order 9 and 7 of order 10
        (10, 8192),  # what is below the watermark are the ten small pages
        (11, 7680),
        (8202 - 511, 0),
        (9999, 0),
    ],
)
def test_what_the_high_watermark_keeps_may_be_the_small_blocks(high: int, usable: int) -> None:
    found = blocks(0, zone(0, "DMA32", free=8202, high=high))
    assert found.usable == usable * PAGE


def test_zones_count_one_by_one_and_what_they_protect_does_not() -> None:
    zoneinfo = zone(0, "DMA", free=3840, high=45, protection=1923) + zone(0, "DMA32", free=8202, high=11)
    assert blocks(0, zoneinfo).usable == (1536 + 7680) * PAGE


def test_free_memory_in_small_blocks_is_possible_but_not_usable() -> None:
    assert blocks(1, zone(1, "Normal", free=2560, high=0)) == Blocks(
        numa_node=1, usable=2048 * PAGE, possible=2560 * PAGE
    )


@pytest.mark.parametrize(("numa_node", "huge"), [(2, HUGE), (1, 8 * MIB)])
def test_neither_other_numa_nodes_nor_blocks_the_allocator_does_not_have(numa_node: int, huge: int) -> None:
    assert blocks(numa_node, zone(1, "Normal", free=2560, high=0), huge=huge) == Blocks(
        numa_node=numa_node, usable=0, possible=0
    )


@pytest.mark.parametrize(
    ("need", "usable", "possible", "others", "enough", "compacts"),
    [
        (0, 0, 0, 0, True, False),
        (8, 8, 20, 0, True, False),
        (7, 8, 20, 0, True, False),
        (9, 8, 20, 0, False, True),  # it takes a whole page more
        (40, 8, 20, 0, False, True),  # it will not be enough, but more than now
        (40, 20, 20, 0, False, False),
        (8, 8, 20, 12, True, False),
        (8, 8, 20, 13, False, False),  # others leave room for three
        (12, 8, 20, 8, False, True),
    ],
)
def test_enough_or_compact_first(
    *, need: int, usable: int, possible: int, others: int, enough: bool, compacts: bool
) -> None:
    found = plan_contiguity(
        need * MIB, Blocks(numa_node=3, usable=usable * MIB, possible=possible * MIB), HUGE, others=others * MIB
    )
    assert (found.enough, found.compact) == (enough, compacts)
    assert found.usable <= max(0, possible - others) * MIB


def test_there_is_no_second_compaction() -> None:
    little = Blocks(numa_node=3, usable=2 * MIB, possible=20 * MIB)
    found = plan_contiguity(8 * MIB, little, HUGE, compaction=Compaction(numa_node=3))
    assert (found.enough, found.compact, found.usable) == (False, False, 2 * MIB)
    assert found.evidence == (
        "8.0 MiB of huge pages to place, 2.0 MiB can be had whole on NUMA node 3 after the memory of NUMA node 3 was"
        " compacted"
    )


class Host(Kernel):
    """Files below a folder; compaction makes one block of order 10 of NUMA node 1's small ones, or fails."""

    def __init__(self, root: Path, *, fails: int = 0) -> None:
        super().__init__(proc=root, sys=root)
        self.fails = fails
        self.written: list[tuple[str, str]] = []
        (root / "zoneinfo").write_text(zone(1, "Normal", free=3072, high=0))
        (root / "buddyinfo").write_text("Node 1, zone Normal 2048 0 0 0 0 0 0 0 0 2 0\n")

    def write(self, path: Path, text: str) -> None:
        self.written.append((str(path.relative_to(self.sys)), text))
        if self.fails:
            raise OSError(self.fails, "no")
        (self.proc / "buddyinfo").write_text("Node 1, zone Normal 1024 0 0 0 0 0 0 0 0 2 1\n")


def contiguous(host: Host, need: int) -> tuple[bool, int]:
    found = make_contiguous(need, numa_node=1, kernel=host, huge_page_size=HUGE)
    return found.enough, found.usable


def test_only_the_target_is_compacted_and_looked_at_again(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert contiguous(host, 8 * MIB) == (True, 8 * MIB)
    assert host.written == [("devices/system/node/node1/compact", "1")]


def test_what_fits_is_not_compacted(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert contiguous(host, 4 * MIB) == (True, 4 * MIB)
    assert host.written == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOENT, errno.EINTR])
def test_not_being_allowed_to_compact_is_a_result(tmp_path: Path, number: int) -> None:
    host = Host(tmp_path, fails=number)
    assert compact(1, host) == Compaction(numa_node=1, errno=number)
    found = make_contiguous(8 * MIB, numa_node=1, kernel=host, huge_page_size=HUGE)
    assert (found.enough, found.compact) == (False, False)
    assert f"NUMA node 1 could not be compacted ({errno.errorcode[number]}: " in found.evidence
