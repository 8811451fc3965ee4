# SPDX-License-Identifier: Apache-2.0
"""How a survey keeps pages in little memory, and what it makes of pagemap's words."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from numaplacement.engine import pagemap
from numaplacement.engine.kernel import Kernel, MoveResult
from numaplacement.engine.ksm import MergedFrames
from numaplacement.engine.looker import Looker
from numaplacement.engine.mappings import Kind, Mapping
from numaplacement.engine.packing import Numbered, Runs, pack
from numaplacement.engine.pagemap import EXCLUSIVE, FILE_OR_SHARED, KSM, PRESENT, SWAP, WordFile, frame_words
from numaplacement.engine.plan import Trials
from numaplacement.engine.survey import (
    BLOCK_PAGES,
    HEAD,
    HIDDEN,
    MERGED,
    SHARED,
    SWAPPED,
    MappingPages,
    blocks_of,
    survey_of,
    survey_of_blocks,
)
from numaplacement.engine.verdict import NO_NUMA_NODE, ClassBytes, PageClass, ResidueRow
from tests.unit.engine_world import PAGE, Region, World, run_in

RUNS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(-4, 1023), st.integers(0, 127)),
    min_size=1,
    max_size=30,
)


def arrays(runs: list[tuple[int, int, int, int]]) -> tuple[NDArray[np.uint32], NDArray[np.int16], NDArray[np.uint8]]:
    """Pages from runs of gap, length, NUMA node and flags."""
    page, numa_node, flags, end = [], [], [], 0
    for gap, length, node, flag in runs:
        page += range(end + gap, end + gap + length)
        numa_node += [node] * length
        flags += [flag] * length
        end += gap + length
    return np.array(page, dtype=np.uint32), np.array(numa_node, dtype=np.int16), np.array(flags, dtype=np.uint8)


@given(RUNS)
def test_what_is_unpacked_is_what_was_packed(runs: list[tuple[int, int, int, int]]) -> None:
    page, numa_node, flags = arrays(runs)
    packed = pack(page, numa_node, flags)
    unpacked = packed.unpack()
    for got, put in ((unpacked.page, page), (unpacked.numa_node, numa_node), (unpacked.flags, flags)):
        assert got.dtype == put.dtype
        assert got.tolist() == put.tolist()
        assert got.flags.writeable
    assert (packed.first, packed.end) == (int(page[0]), int(page[-1]) + 1)
    counted: dict[tuple[int, int], int] = {}
    values = packed.values
    for node, flag, count in zip(values.numa_node, values.flags, values.count, strict=True):
        counted[int(node), int(flag)] = counted.get((int(node), int(flag)), 0) + int(count)
    pairs = list(zip(numa_node.tolist(), flags.tolist(), strict=True))
    assert {pair: count for pair, count in counted.items() if count} == {pair: pairs.count(pair) for pair in pairs}


@pytest.mark.parametrize(("kinds", "most"), [(1, 16), (200, BLOCK_PAGES), (1000, 2 * BLOCK_PAGES)])
def test_what_pages_take(kinds: int, most: int) -> None:
    page = np.arange(BLOCK_PAGES, dtype=np.uint32)
    packed = pack(page, (page % kinds).astype(np.int16), np.full(page.size, HEAD))
    if isinstance(packed, Runs):
        assert sum(each.nbytes for each in (packed.start, packed.length, packed.numa_node, packed.flags)) <= most
    else:
        assert isinstance(packed, Numbered)
        assert packed.number.nbytes <= most
    assert packed.unpack().numa_node.tolist() == (page % kinds).tolist()


def test_blocks_are_cut_at_multiples_of_addresses() -> None:
    mapping = Mapping(start=13 * 4096, end=60 * 4096, path="", kind=Kind.ANON)
    page = np.array([0, 1, 2, 3, 11, 12, 46], dtype=np.uint32)
    part = MappingPages(
        mapping=mapping, page=page, numa_node=np.zeros(7, dtype=np.int16), flags=np.full(7, HEAD, dtype=np.uint8)
    )
    with mock.patch("numaplacement.engine.survey.BLOCK_PAGES", 8):
        blocks = list(blocks_of(part))
        survey = survey_of([part])
    assert [(block.start // 4096, block.end // 4096) for block in blocks] == [(13, 16), (16, 17), (24, 26), (59, 60)]
    assert [block.pages().page.tolist() for block in blocks] == [[0, 1, 2], [3], [11, 12], [46]]
    assert survey.mappings == (mapping,)
    assert survey.rows == (ClassBytes(0, PageClass.ANON, 7 * 4096),)
    trials = Trials()
    for number, each in enumerate(survey.pages):
        assert trials.known(each) is None
        trials.of(each)[:] = number
    assert [trials.of(each).tolist() for each in survey.pages] == [[0, 0, 0], [1], [2, 2], [3]]


def test_words_of_frames_are_read_some_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_bytes(np.arange(0, 7000, 7, dtype=np.uint64).tobytes())
    frames = np.array([5, 5, 5, 5, 5, 6, 7, 999, 5], dtype=np.uint64)
    with WordFile(path) as file, mock.patch.object(pagemap, "_AT_ONCE", 2):
        assert frame_words(file, frames).tolist() == (7 * frames).tolist()


FIRST = 1000
"""Number of the first page of the process that is looked at."""


class Asked(Kernel):
    """Answers where pages are from a list of what move_pages(2) says of each, and keeps which were asked about."""

    def __init__(self, statuses: list[int]) -> None:
        super().__init__()
        self.statuses = statuses
        self.asked: list[int] = []

    def locate_pages(self, pid: int, addresses: NDArray[np.uint64]) -> MoveResult:  # noqa: ARG002
        numbers = (addresses // np.uint64(4096)).astype(np.int64) - FIRST
        self.asked += numbers.tolist()
        return MoveResult(errno=0, not_moved=0, status=np.array(self.statuses, dtype=np.int32)[numbers])


Look = Callable[..., list[tuple[int, int, int]]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Survey one mapping of these words in blocks of 8 pages, and return page, NUMA node and flags of each."""
    monkeypatch.setattr("numaplacement.engine.survey.BLOCK_PAGES", 8)
    monkeypatch.setattr("numaplacement.engine.looker.BLOCK_PAGES", 8)

    def looked(
        words: list[int],
        statuses: list[int],
        *,
        counted: dict[int, int] | None = None,
        of_frames: dict[int, int] | None = None,
        mapped: dict[int, int] | None = None,
        **mapping: object,
    ) -> list[tuple[int, int, int]]:
        own = Mapping(
            **{  # type: ignore[arg-type]
                "start": FIRST * 4096,
                "end": (FIRST + len(words)) * 4096,
                "path": "",
                "kind": Kind.ANON,
                **mapping,
            }
        )
        kernel = Asked(statuses)
        with ExitStack() as stack:

            def file(name: str, content: dict[int, int] | None) -> WordFile | None:
                if content is None:
                    return None
                array = np.zeros(max(content, default=0) + 1, dtype=np.uint64)
                for position, word in content.items():
                    array[position] = word
                (tmp_path / name).write_bytes(array.tobytes())
                return stack.enter_context(WordFile(tmp_path / name))

            pages = file("pagemap", {FIRST + number: word for number, word in enumerate(words)})
            assert pages is not None
            kpageflags = file("kpageflags", of_frames)
            looker = Looker(
                pid=1,
                kernel=kernel,
                pagemap=pages,
                kpageflags=kpageflags,
                frames=None,
                merged=MergedFrames(kpageflags, file("kpagecount", mapped)),
                huge=4 * 4096,
                counted={} if counted is None else {own.start: counted},
                base=4096,
            )
            survey = survey_of_blocks(looker.blocks((own,)), (own,))
        assert kernel.asked == [number for number, word in enumerate(words) if word & int(PRESENT)]
        found = []
        for part in survey.pages:
            assert part.flags[0] & HEAD
            assert len(set(((part.page + FIRST) // 8).tolist())) == 1
            found += zip(part.page.tolist(), part.numa_node.tolist(), part.flags.tolist(), strict=True)
        return found

    return looked


OWN = int(PRESENT | EXCLUSIVE)
OUT = int(SWAP) | 77 << 5
PLAIN, GONE = int(HEAD), int(SWAPPED | HEAD)


def test_swapped_out_pages_are_on_no_numa_node_and_not_asked_about(look: Look) -> None:
    found = look([OWN, OUT, 0, OWN, OUT, *[OWN] * 6], [2] * 11, counted={2: 8 * 4096}, swapped=2 * 4096, huge=4 * 4096)
    assert [each[:2] for each in found if each[1] >= 0] == [(number, 2) for number in (0, 3, *range(5, 11))]
    assert [each for each in found if each[1] < 0] == [(1, NO_NUMA_NODE, GONE), (4, NO_NUMA_NODE, GONE)]


def test_a_mapping_that_is_swapped_out_as_a_whole_is_looked_into(look: Look) -> None:
    found = look([OUT] * 20, [0] * 20, swapped=20 * 4096)
    assert found == [(number, NO_NUMA_NODE, GONE) for number in range(20)]


@pytest.mark.parametrize(
    "mapping", [{}, {"swapped": 4096, "permissions": "rw-s", "kind": Kind.SHMEM}], ids=["none is", "shared"]
)
def test_where_nothing_can_be_swapped_out_the_bit_means_something_else(look: Look, mapping: dict[str, object]) -> None:
    assert look([OWN, OUT, OUT], [1, 0, 0], counted={1: 4096}, **mapping) == [(0, 1, PLAIN)]


def test_swapped_out_pages_of_shared_memory_are_told_by_its_file(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    class File:
        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def swapped(self, offset: int, pages: int) -> NDArray[np.bool_]:
            assert offset % 4096 == 0
            return np.isin(offset // 4096 + np.arange(pages), (0, 2, 3))

    monkeypatch.setattr(Kernel, "shared_file", lambda *_: File())
    shared = {"swapped": 3 * 4096, "permissions": "rw-s", "kind": Kind.SHMEM}
    found = look([OWN, OUT, 0, 0, 0], [1] * 5, counted={1: 4096}, **shared)
    assert found == [(0, 1, PLAIN), (2, NO_NUMA_NODE, GONE), (3, NO_NUMA_NODE, GONE)]


def test_pages_that_hide_are_placed_by_the_sums_of_the_whole_mapping(look: Look) -> None:
    """Ten present pages, five hide for certain and four perhaps, of which numa_maps has three."""
    words = [OWN] * 10 + [OWN, int(PRESENT)] * 4 + [OWN]
    statuses = [1] * 10 + [-errno.ENOENT, -errno.EFAULT] * 4 + [-errno.ENOENT]
    found = look(words, statuses, counted={0: 4 * 4096, 1: 12 * 4096, 3: 2 * 4096})
    hiding = {page: numa_node for page, numa_node, flags in found if flags & int(HIDDEN)}
    assert [page for page, _, flags in found if not flags & int(HIDDEN)] == list(range(10))
    assert hiding == {10: 0, 12: 0, 14: 0, 16: 0, 18: 1, 11: 1, 13: 3, 15: 3}


SHARED_ANON = int(PRESENT)
"""A page that other page tables map too; pages of KSM read so."""
MG = frozenset({"mg"})


def merged(found: list[tuple[int, int, int]]) -> list[int]:
    assert all(flags & int(SHARED) for _, _, flags in found if flags & int(MERGED))
    return [page for page, _, flags in found if flags & int(MERGED)]


def test_without_frames_every_shared_anonymous_page_of_a_mergeable_mapping_is_left(look: Look) -> None:
    words = [SHARED_ANON, OWN, SHARED_ANON | int(FILE_OR_SHARED), OUT, SHARED_ANON]
    wish = {"counted": {0: 4 * 4096}, "swapped": 4096}
    assert merged(look(words, [0] * 5, flags=MG, **wish)) == [0, 4]
    assert merged(look(words, [0] * 5, flags=MG, of_frames={}, mapped={}, **wish)) == [0, 4]
    assert merged(look(words, [0] * 5, **wish)) == []


@pytest.mark.parametrize(
    ("mapped", "most", "left"),
    [
        ({50: 2, 51: 3, 52: 2}, 100, [1, 10]),
        ({50: 3, 51: 2, 52: 2}, 100, [0, 9]),
        ({50: 2, 51: 2, 52: 2}, 100, []),
        (None, 100, [0, 1, 9, 10]),
        ({50: 2, 51: 2, 52: 2}, 0, [0, 1, 9, 10]),
    ],
    ids=["51 is others' too", "50 is others' too", "none is", "no counts", "too many to keep"],
)
def test_with_frames_only_pages_that_ksm_merged_with_others_are_left(
    look: Look, monkeypatch: pytest.MonkeyPatch, mapped: dict[int, int] | None, most: int, left: list[int]
) -> None:
    """Frames 50 and 51 of KSM are mapped in two blocks each, 52 is shared with a fork."""
    monkeypatch.setattr("numaplacement.engine.ksm._MOST", most)
    words = [SHARED_ANON | 50, SHARED_ANON | 51, SHARED_ANON | 52, *[OWN | 60] * 6, SHARED_ANON | 50, SHARED_ANON | 51]
    of_ksm = {50: int(KSM), 51: int(KSM), 60: 0}
    found = look(words, [1] * 11, counted={1: 11 * 4096}, flags=MG, of_frames=of_ksm, mapped=mapped)
    assert merged(found) == left
    assert [page for page, _, flags in found if flags & int(SHARED)] == [0, 1, 2, 9, 10]


@pytest.mark.parametrize("block_pages", [1, 7, 64])
def test_a_run_says_the_same_whatever_the_size_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_pages: int
) -> None:
    def rows(root: Path) -> tuple[ResidueRow, ...]:
        ram = Region(1 << 24, [2, 0, -1, 3] * 40, refused={0, 4, 155}, busy={8}, hidden={11, 12}, shared={16, 20})
        heap = Region((1 << 24) + 200 * PAGE, [1] * 30, flags="rd wr mg", shared={3, 29})
        verdict = run_in(World(regions=[ram, heap], hiding=False), root)
        assert verdict.passes > 1
        return verdict.residue

    whole = rows(tmp_path / "whole")
    for module in ("survey", "looker"):
        monkeypatch.setattr(f"numaplacement.engine.{module}.BLOCK_PAGES", block_pages)
    assert rows(tmp_path / "blocks") == whole
    assert len(whole) > 2
