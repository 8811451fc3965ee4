# SPDX-License-Identifier: Apache-2.0
"""Pushing page cache out of a NUMA node, where allowed, and the room that leaves a chunk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.reclaim import (
    Means,
    Offer,
    admissible,
    offer,
    push_out,
    read_offer,
    read_room,
    reclaimable,
    room,
)

PAGE = 4096
MIB = 1 << 20


def meminfo(
    *, active: int = 0, inactive: int = 0, dirty: int = 0, writeback: int = 0, slab: int = 0, total: int = 0
) -> str:
    values = {
        "MemTotal": total,
        "Active(file)": active,
        "Inactive(file)": inactive,
        "Active(anon)": 777777,
        "Inactive(anon)": 777777,
        "Dirty": dirty,
        "Writeback": writeback,
        "WritebackTmp": 777777,
        "KReclaimable": 777777,
        "SReclaimable": slab,
    }
    return "".join(f"Node 0 {name}:{value:>10} kB\n" for name, value in values.items())


@pytest.mark.parametrize(
    ("text", "ratio", "kib"),
    [
        (meminfo(active=100, inactive=50), 0, 150),
        (meminfo(active=100, inactive=50, dirty=30, writeback=20), 0, 100),
        (meminfo(active=100, inactive=50, slab=25), 0, 175),
        (meminfo(active=100, inactive=50, total=1000, slab=25), 1, 165),
        (meminfo(active=10, dirty=30, slab=25), 0, 25),
        ("", 1, 0),
    ],
)
def test_only_clean_page_cache_and_slab_are_reclaimable(text: str, ratio: int, kib: int) -> None:
    assert reclaimable(text, min_unmapped_ratio=ratio) == kib * 1024


@pytest.mark.parametrize(
    ("on_request", "swap", "demotion", "means", "said"),
    [
        (True, 0, False, Means.ON_REQUEST, ""),
        (True, MIB, True, Means.ON_REQUEST, ""),
        (False, 0, False, Means.BY_KSWAPD, ""),
        (False, MIB, False, Means.NONE, "the host has 1.0 MiB of swap, and a kernel before 6.17"),
        (False, 0, True, Means.NONE, "the host has demotion to slower memory, and a kernel before 6.17"),
    ],
)
def test_the_means_never_touch_swap(on_request: bool, swap: int, demotion: bool, means: Means, said: str) -> None:
    found = offer(100, on_request=on_request, swap_total=swap, demotion=demotion)
    assert found.means is means
    assert found.reclaimable == (0 if said else 50)
    assert found.evidence.endswith(said)


HALF = Offer(means=Means.ON_REQUEST, reclaimable=50 * MIB)


@pytest.mark.parametrize(
    ("need", "offered", "allowed", "admitted", "pushed", "said"),
    [
        (100, HALF, False, True, 0, "100.0 MiB to move, 100.0 MiB can be taken on NUMA node 2"),
        (101, HALF, False, False, 0, "can be taken on NUMA node 2 without making others give memory back"),
        (101, HALF, True, True, 1, "and 50.0 MiB more by pushing page cache out"),
        (150, HALF, True, True, 50, "and 50.0 MiB more by pushing page cache out"),
        (151, HALF, True, False, 0, "and 50.0 MiB more by pushing page cache out"),
        (101, Offer(means=Means.NONE, evidence="no means"), True, False, 0, "NUMA node 2; no means"),
    ],
)
def test_what_can_be_pushed_out_counts_only_where_allowed(
    *, need: int, offered: Offer, allowed: bool, admitted: bool, pushed: int, said: str
) -> None:
    found = admissible(numa_node=2, safe=100 * MIB, need=need * MIB, offered=offered, allowed=allowed)
    assert (found.admitted, found.push_out) == (admitted, pushed * MIB)
    assert found.evidence.endswith(said)


def zone(free: int, *, name: str = "Normal", protection: int = 0) -> str:
    return (
        f"Node 0, zone {name:>8}\n  pages free     {free}\n        boost    0\n        min      1000\n"
        f"        low      2000\n        high     3000\n        protection: (0, 0, {protection}, {protection})\n"
    )


KSWAPD = Offer(means=Means.BY_KSWAPD, reclaimable=1500 * PAGE)


@pytest.mark.parametrize(
    ("offered", "free", "pages"),
    [
        (None, 5000, 2000),
        (None, 2900, 0),
        (HALF, 2900, 0),  # on request the target stays above the high watermark
        (KSWAPD, 5000, 3500),
        (KSWAPD, 2900, 1400),
        (KSWAPD, 1500, 0),
        (KSWAPD, 1000, 0),
        (Offer(means=Means.BY_KSWAPD, reclaimable=1500 * PAGE - 1), 5000, 2000),  # nothing to make it good with
        (Offer(means=Means.NONE), 5000, 2000),
    ],
)
def test_below_the_high_watermark_only_what_kswapd_makes_good(offered: Offer | None, free: int, pages: int) -> None:
    assert room(zone(free), numa_node=0, page_size=PAGE, offered=offered) == pages * PAGE


def test_zones_count_one_by_one() -> None:
    text = zone(4000, name="DMA32", protection=400) + zone(1400)
    assert room(text, numa_node=0, page_size=PAGE) == 600 * PAGE
    plenty = Offer(means=Means.BY_KSWAPD, reclaimable=MIB * PAGE)
    assert room(text, numa_node=0, page_size=PAGE, offered=plenty) == 2100 * PAGE


class Host(Kernel):
    """One NUMA node with page cache; a write to its `reclaim` frees as much of it as `gives` says."""

    def __init__(
        self, root: Path, *, cache: int, on_request: bool = True, swap: int = 0, gives: float = 1.0, fails: int = 0
    ) -> None:
        super().__init__(proc=root / "proc", sys=root / "sys")
        self.cache, self.free, self.gives, self.fails = cache, 0, gives, fails
        self.asked: list[str] = []
        self.path = self.sys / "devices/system/node/node0"
        self.path.mkdir(parents=True)
        (self.proc / "sys/vm").mkdir(parents=True)
        (self.proc / "sys/vm/min_unmapped_ratio").write_text("1\n")
        (self.proc / "meminfo").write_text(f"MemTotal: 99 kB\nSwapCached: 5 kB\nSwapTotal:   {swap // 1024} kB\n")
        if on_request:
            (self.path / "reclaim").write_text("")
        self.show()

    def show(self) -> None:
        (self.path / "meminfo").write_text(meminfo(inactive=self.cache // 1024))
        (self.proc / "zoneinfo").write_text(zone(3000 + self.free // PAGE))

    def write(self, path: Path, text: str) -> None:
        assert path == self.path / "reclaim"
        self.asked.append(text)
        if self.fails:
            raise OSError(self.fails, "no")
        size, word = text.split()
        assert word == "swappiness=0"
        freed = min(int(int(size) * self.gives), self.cache)
        self.cache -= freed
        self.free += freed
        self.show()
        if freed < int(size):
            raise OSError(errno.EAGAIN, "less")


def nothing() -> None:
    """Go on."""


def test_pushed_out_in_slices_as_much_as_is_wanted_and_no_more(tmp_path: Path) -> None:
    host = Host(tmp_path, cache=1024 * MIB)
    done = push_out(150 * MIB, numa_node=0, kernel=host, check=nothing)
    assert (done.asked, done.gained, done.errno) == (150 * MIB, 150 * MIB, 0)
    assert [text.split()[0] for text in host.asked] == [str(64 * MIB), str(64 * MIB), str(22 * MIB)]
    assert read_room(0, host, allowed=True) == 150 * MIB


def test_no_more_than_half_of_the_cache_is_asked_for_at_once(tmp_path: Path) -> None:
    host = Host(tmp_path, cache=20 * MIB)
    push_out(150 * MIB, numa_node=0, kernel=host, check=nothing)
    assert host.asked[0] == f"{10 * MIB} swappiness=0"


def test_what_gives_nothing_is_not_asked_for_ever(tmp_path: Path) -> None:
    host = Host(tmp_path, cache=1024 * MIB, gives=0.1)
    done = push_out(150 * MIB, numa_node=0, kernel=host, check=nothing)
    assert len(host.asked) == 3
    assert done.errno == errno.EAGAIN
    assert 0 < done.gained == host.free // PAGE * PAGE


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EINVAL])
def test_no_right_to_ask_is_a_result(tmp_path: Path, number: int) -> None:
    host = Host(tmp_path, cache=1024 * MIB, fails=number)
    done = push_out(150 * MIB, numa_node=0, kernel=host, check=nothing)
    assert (len(host.asked), done.gained, done.errno) == (1, 0, number)


def test_cancelled_between_two_writes(tmp_path: Path) -> None:
    host = Host(tmp_path, cache=1024 * MIB)

    def check() -> None:
        if host.asked:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push_out(150 * MIB, numa_node=0, kernel=host, check=check)
    assert len(host.asked) == 1


def test_a_host_with_swap_and_an_old_kernel_offers_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path, cache=1024 * MIB, on_request=False, swap=MIB)
    assert read_offer(0, host).means is Means.NONE
    assert read_room(0, host, allowed=True) == 0
    assert push_out(MIB, numa_node=0, kernel=host, check=nothing).asked == 0


def test_a_host_without_swap_lends_below_the_high_watermark_where_allowed(tmp_path: Path) -> None:
    host = Host(tmp_path, cache=1024 * MIB, on_request=False)
    assert read_offer(0, host).means is Means.BY_KSWAPD
    assert read_room(0, host, allowed=True) == 1500 * PAGE
    assert read_room(0, host, allowed=False) == 0
    demotion = host.sys / "kernel/mm/numa/demotion_enabled"
    demotion.parent.mkdir(parents=True)
    demotion.write_text("true\n")
    assert read_room(0, host, allowed=True) == 0
    demotion.write_text("false\n")
    assert read_room(0, host, allowed=True) == 1500 * PAGE
