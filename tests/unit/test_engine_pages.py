# SPDX-License-Identifier: Apache-2.0
"""Pages as arrays: pagemap's words, folios, pages that hide, and the search for refused ones."""

from __future__ import annotations

import errno
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from numaplacement.engine.folios import folio_lengths, heads_from_flags, heads_from_shape, in_huge_folios
from numaplacement.engine.hidden import UNKNOWN_NODE, absent, frame_map, missing_pages, place_hidden
from numaplacement.engine.kernel import UNWRITTEN, MoveResult
from numaplacement.engine.looker import batches
from numaplacement.engine.mappings import Kind, Mapping
from numaplacement.engine.pagemap import (
    COMPOUND_HEAD,
    COMPOUND_TAIL,
    EXCLUSIVE,
    FILE_OR_SHARED,
    PRESENT,
    WordFile,
    frame_words,
)
from numaplacement.engine.plan import Trial, Units
from numaplacement.engine.refusals import Patience, move_around_refusals, trials_of_status
from tests.unit.test_engine_admission import ZONEINFO

Words = NDArray[np.uint64]


def word_file(path: Path, words: list[int]) -> Path:
    path.write_bytes(np.array(words, dtype=np.uint64).tobytes())
    return path


def test_words_are_read_at_positions_and_are_zero_beyond_the_end(tmp_path: Path) -> None:
    with WordFile(word_file(tmp_path / "words", [10, 11, 12, 13])) as file:
        assert file.read(1, 2).tolist() == [11, 12]
        assert file.read(3, 3).tolist() == [13, 0, 0]
        assert file.read(9, 0).size == 0


@given(st.lists(st.integers(min_value=0, max_value=2999), max_size=60))
def test_flags_of_frames_in_any_order(frames: list[int]) -> None:
    with tempfile.NamedTemporaryFile() as temporary:
        path = word_file(Path(temporary.name), [7 * frame for frame in range(3000)])
        with WordFile(path) as file:
            flags = frame_words(file, np.array(frames, dtype=np.uint64))
    assert flags.tolist() == [7 * frame for frame in frames]


HEAD, TAIL = int(COMPOUND_HEAD), int(COMPOUND_TAIL)


@pytest.mark.parametrize(
    ("page", "frame", "flags", "heads"),
    [
        ([0, 1, 2], [7, 8, 9], [0, 0, 0], [1, 1, 1]),
        ([0, 1, 2, 3], [8, 9, 10, 11], [HEAD, TAIL, TAIL, TAIL], [1, 0, 0, 0]),
        ([0, 1, 2, 3], [8, 9, 12, 13], [HEAD, TAIL, HEAD, TAIL], [1, 0, 1, 0]),
        ([0, 1, 3], [9, 10, 12], [TAIL, TAIL, TAIL], [1, 0, 1]),
        ([0, 1], [9, 30], [TAIL, TAIL], [1, 1]),
        ([0, 2], [8, 9], [HEAD, TAIL], [1, 1]),
        ([5], [9], [TAIL], [1]),
        ([], [], [], []),
    ],
)
def test_heads_from_flags(page: list[int], frame: list[int], flags: list[int], heads: list[int]) -> None:
    found = heads_from_flags(
        page=np.array(page, dtype=np.int64),
        frame=np.array(frame, dtype=np.uint64),
        flags=np.array(flags, dtype=np.uint64),
    )
    assert found.astype(int).tolist() == heads


def test_heads_from_shape() -> None:
    page = np.array([3, *range(8, 16), 16, 17, 18, *range(24, 32), *range(32, 40)], dtype=np.int64)
    numa_node = np.array([1] * 12 + [2] * 8 + [2] * 7 + [1], dtype=np.int16)
    heads = heads_from_shape(page=page, numa_node=numa_node, huge_pages=8)
    assert page[~heads].tolist() == [*range(9, 16), *range(25, 32)]
    assert folio_lengths(heads).tolist() == [1, 8, 1, 1, 1, 8, *[1] * 8]
    assert page[in_huge_folios(heads, huge_pages=8, at_most=1)].tolist() == list(range(8, 16))
    assert int(in_huge_folios(heads, huge_pages=8, at_most=9).sum()) == 16


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2)), max_size=60))
def test_shapes_never_join_pages_of_two_numa_nodes_or_leave_one_out(pages: list[tuple[int, int]]) -> None:
    unique = dict(sorted(dict(pages).items()))
    page = np.array(list(unique), dtype=np.int64)
    numa_node = np.array(list(unique.values()), dtype=np.int16)
    heads = heads_from_shape(page=page, numa_node=numa_node, huge_pages=4)
    if page.size:
        assert heads[0]
        lengths = folio_lengths(heads)
        assert int(lengths.sum()) == page.size
        folio = np.cumsum(heads)
        for number in range(1, int(folio[-1]) + 1):
            assert len(set(numa_node[folio == number].tolist())) == 1


def words(*flags: int) -> Words:
    return np.array([int(PRESENT) | flag for flag in flags], dtype=np.uint64)


@pytest.mark.parametrize(
    ("flag", "status", "hidden", "doubtful"),
    [
        (int(EXCLUSIVE), -errno.ENOENT, True, False),
        (0, -errno.ENOENT, True, False),
        (int(FILE_OR_SHARED), -errno.ENOENT, True, False),
        (int(EXCLUSIVE), -errno.EFAULT, True, False),
        (0, -errno.EFAULT, False, True),
        (int(FILE_OR_SHARED), -errno.EFAULT, False, False),
        (int(EXCLUSIVE), 2, False, False),
        (int(EXCLUSIVE), -errno.EBUSY, False, False),
    ],
)
def test_what_hides_and_what_is_the_zero_page(flag: int, status: int, hidden: bool, doubtful: bool) -> None:
    found = absent(words(flag), np.array([status], dtype=np.int32))
    assert (bool(found.hidden[0]), bool(found.doubtful[0])) == (hidden, doubtful)


def test_frames_tell_the_numa_node() -> None:
    zones = ZONEINFO.partition("Node 1, zone      DMA")[0] + (
        "Node 1, zone   Normal\n  pages free     9\n        spanned  100\n  start_pfn:           600000\n"
    )
    frames = frame_map(zones)
    assert frames is not None
    asked = np.array([0, 1, 4095, 4096, 524255, 524256, 600000, 600099, 600100], dtype=np.uint64)
    assert frames.numa_nodes(asked).tolist() == [UNKNOWN_NODE, 0, 0, 0, 0, UNKNOWN_NODE, 1, 1, UNKNOWN_NODE]


def test_numa_nodes_one_within_the_other_tell_nothing() -> None:
    zone = "Node {node}, zone   Normal\n        spanned  {spanned}\n  start_pfn:           {start}\n"
    inside = zone.format(node=0, spanned=1000, start=0) + zone.format(node=1, spanned=10, start=500)
    assert frame_map(inside) is None
    assert frame_map("") is None


def test_hidden_pages_are_placed_by_what_numa_maps_has_more() -> None:
    missing = missing_pages({0: 3 * 4096, 2: 5 * 4096}, {0: 2, 2: 1, 1: 1}, page_size=4096)
    assert missing == {0: 1, 2: 4}
    assert place_hidden(np.arange(7), missing).tolist() == [0, 2, 2, 2, 2, 2, 2]
    assert place_hidden(np.arange(4, 6), {0: 5, 3: 0, 1: 2}).tolist() == [0, 1]
    assert place_hidden(np.arange(0), missing).tolist() == []
    assert place_hidden(np.arange(2), {}).tolist() == [0, 0]


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 900_000)), max_size=12))
def test_batches_cover_every_page_once(sizes: list[tuple[int, int]]) -> None:
    mappings, address = [], 0
    for gap, size in sizes:
        address += gap
        mappings.append(Mapping(start=address * 4096, end=(address + size) * 4096, path="", kind=Kind.ANON))
        address += size
    covered = []
    for batch in batches(list(enumerate(mappings)), 4096):
        assert sum(span.end - span.first for span in batch) <= 1 << 18
        covered += [(span.index, span.first, span.end) for span in batch]
    for index, mapping in enumerate(mappings):
        own = [(first, end) for number, first, end in covered if number == index]
        assert own[0][0] == mapping.start // 4096
        assert own[-1][1] == mapping.end // 4096
        assert all(before[1] == after[0] and before[1] % (1 << 18) == 0 for before, after in itertools.pairwise(own))


def test_pages_of_folios() -> None:
    units = Units(position=np.array([0, 5, 7]), length=np.array([3, 1, 2]))
    assert units.pages(slice(None)).tolist() == [0, 1, 2, 5, 7, 8]
    assert units.pages(np.array([2, 0])).tolist() == [7, 8, 0, 1, 2]
    assert units.pages(slice(0, 0)).tolist() == []


def test_what_statuses_mean() -> None:
    status = np.array([0, 3, -errno.ENOENT, -errno.EFAULT, -errno.EBUSY, -errno.EACCES, UNWRITTEN], dtype=np.int32)
    assert trials_of_status(status, target=0).tolist() == [
        Trial.MOVED,
        Trial.UNKNOWN,
        Trial.ABSENT,
        Trial.ABSENT,
        Trial.BUSY,
        Trial.SHARED,
        Trial.UNKNOWN,
    ]


class Kernel:
    """Moves folios as do_pages_move() does: refused ones fail, the run ends there or, in part, goes on."""

    def __init__(self, refused: set[int], gone: set[int], *, stops: bool) -> None:
        self.refused, self.gone, self.stops = refused, gone, stops
        self.where: dict[int, int] = {}
        self.calls: list[int] = []

    def call(self, which: NDArray[np.int64]) -> MoveResult:
        self.calls.append(which.size)
        status = np.full(which.size, UNWRITTEN, dtype=np.int32)
        failed = 0
        for index, folio in enumerate(which.tolist()):
            if (failed and self.stops) or folio in self.refused:
                failed += 1
            elif folio in self.gone:
                status[index] = -errno.ENOENT
            else:
                self.where[folio] = status[index] = 0
        if failed:
            status[:] = UNWRITTEN
        return MoveResult(errno=0, not_moved=failed, status=status)

    def locate(self, which: NDArray[np.int64]) -> NDArray[np.int32]:
        return np.array(
            [-errno.ENOENT if folio in self.gone else self.where.get(folio, 2) for folio in which.tolist()],
            dtype=np.int32,
        )


@given(
    st.integers(min_value=1, max_value=200),
    st.sets(st.integers(0, 199), max_size=40),
    st.sets(st.integers(0, 199), max_size=20),
    st.booleans(),
)
def test_every_folio_that_can_move_moves_and_every_other_is_named(
    count: int, refused: set[int], gone: set[int], stops: bool
) -> None:
    kernel = Kernel(refused - gone, gone, stops=stops)
    trials = np.zeros(count, dtype=np.uint8)
    move_around_refusals(count, target=0, call=kernel.call, locate=kernel.locate, patience=Patience(), trials=trials)
    for folio in range(count):
        wanted = Trial.REFUSED if folio in kernel.refused else Trial.ABSENT if folio in gone else Trial.MOVED
        assert trials[folio] == wanted
    bad = len([folio for folio in kernel.refused if folio < count])
    assert len(kernel.calls) <= 1 + 2 * bad * 9


def test_patience_ends() -> None:
    kernel = Kernel(set(range(512)), set(), stops=False)
    trials = np.zeros(512, dtype=np.uint8)
    patience = Patience()
    move_around_refusals(512, target=0, call=kernel.call, locate=kernel.locate, patience=patience, trials=trials)
    assert patience.ended
    refused, given_up = (int(np.count_nonzero(trials == trial)) for trial in (Trial.REFUSED, Trial.GIVEN_UP))
    assert refused + given_up == 512
    assert 64 <= refused <= 100
    assert len(kernel.calls) < 180


def test_in_the_middle_of_what_is_refused_patience_goes_on() -> None:
    kernel = Kernel(set(range(100, 300)), set(), stops=False)
    trials = np.zeros(512, dtype=np.uint8)
    move_around_refusals(512, target=0, call=kernel.call, locate=kernel.locate, patience=Patience(), trials=trials)
    assert int((trials == Trial.MOVED).sum()) == 312


def test_patience_lasts_as_long_as_something_moves() -> None:
    kernel = Kernel(set(range(0, 512, 2)), set(), stops=False)
    trials = np.zeros(512, dtype=np.uint8)
    patience = Patience(limit=300)
    move_around_refusals(512, target=0, call=kernel.call, locate=kernel.locate, patience=patience, trials=trials)
    assert int((trials == Trial.MOVED).sum()) == 256
    assert int((trials == Trial.REFUSED).sum()) == 256
