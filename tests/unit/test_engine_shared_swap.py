# SPDX-License-Identifier: Apache-2.0
"""Which pages of shared memory are swapped out: those with data that are not in memory, never holes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from numaplacement.engine.mappings import Kind, Mapping
from numaplacement.engine.shared_swap import SharedFile, open_shared

PAGE = 4096


@pytest.fixture
def path() -> Iterator[Path]:
    """A memfd of ten pages, of which 1, 2 and 5 have data."""
    descriptor = os.memfd_create("ram")
    os.ftruncate(descriptor, 10 * PAGE)
    for page in (1, 2, 5):
        os.pwrite(descriptor, b"x", page * PAGE)
    yield Path(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)


def test_what_is_in_memory_is_not_swapped_out(path: Path) -> None:
    with SharedFile(path) as file:
        assert not file.swapped(0, 10).any()
        assert not file.swapped(4 * PAGE, 6).any()


@pytest.mark.parametrize(
    ("first", "pages", "found"), [(0, 10, [2, 5]), (2, 4, [0, 3]), (3, 2, []), (5, 1, [0]), (6, 4, [])]
)
def test_data_that_is_not_in_memory_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, first: int, pages: int, found: list[int]
) -> None:
    asked: list[tuple[int, int]] = []

    def resident(_: SharedFile, offset: int, length: int) -> NDArray[np.bool_]:
        asked.append((offset // PAGE, length // PAGE))
        return np.array([offset // PAGE + number == 1 for number in range(length // PAGE)])

    monkeypatch.setattr(SharedFile, "_resident", resident)
    with SharedFile(path) as file:
        assert np.flatnonzero(file.swapped(first * PAGE, pages)).tolist() == found
    assert sum(length for _, length in asked) <= 3, "holes are asked about"


def test_a_file_that_became_shorter_is_an_error_of_the_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SharedFile(path) as file:
        monkeypatch.setattr(SharedFile, "_data", lambda *_: iter([(0, 20 * PAGE)]))
        with pytest.raises(OSError, match="shorter"):
            file.swapped(0, 20)


def test_without_the_right_to_map_files_a_file_that_is_open_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = path.stat()
    device = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}"
    opened: list[str] = []
    original = os.open

    def refusing(name: Path, *rest: int) -> int:
        opened.append(str(name))
        if "map_files" in str(name):
            raise PermissionError
        return original(name, *rest)

    monkeypatch.setattr(os, "open", refusing)
    mapping = Mapping(start=4096, end=8192, path="/memfd:ram", kind=Kind.SHMEM, device=device, inode=stat.st_ino)
    with open_shared(Path("/proc/self"), mapping) as file:
        assert not file.swapped(0, 10).any()
    assert opened == ["/proc/self/map_files/1000-2000", str(path)]
    with pytest.raises(PermissionError):
        open_shared(Path("/proc/self"), replace(mapping, inode=1))


def test_a_file_that_may_not_be_opened_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        SharedFile(tmp_path / "0-1000")
