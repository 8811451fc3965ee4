# SPDX-License-Identifier: Apache-2.0
"""Kinds of memory that move though they are files: what guests' RAM may be made of beside anonymous memory."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from numaplacement.engine.verdict import ClassBytes, Outcome, PageClass, Verdict
from tests.kernel.causes.cause_process import cause_process, setting
from tests.kernel.memory_process import MIB, PAGE, MemoryProcess, mapping_start
from tests.kernel.test_admission_shells import ram_disk
from tests.kernel.test_engine_move import asked_residue, move

SIZE = 8 * MIB
PAGES = SIZE // PAGE
pytestmark = pytest.mark.usefixtures("autonuma_off")


def placed(child: MemoryProcess) -> Verdict:
    """All of the process moves, and so does the region, and every page is as it was."""
    verdict = move(child.pid)
    assert (verdict.outcome, asked_residue(verdict)) == (Outcome.PLACED, {}), verdict
    assert verdict.moved >= SIZE
    assert child.pages(region=0) == {0: PAGES}
    assert child.ask("intact") == "True"
    return verdict


def of_class(rows: tuple[ClassBytes, ...], page_class: PageClass) -> dict[int, int]:
    return {row.numa_node: row.bytes for row in rows if row.page_class is page_class}


def smaps(child: MemoryProcess, name: str) -> int:
    """A number of the region's entry in smaps, in bytes."""
    start = mapping_start(child.pid, child.addresses[0])
    entry = Path(f"/proc/{child.pid}/smaps").read_text().partition(f"\n{start:x}-")[2]
    found = re.search(rf"^{name}:\s+(\d+) kB$", entry, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def test_a_private_mapping_of_a_memfd() -> None:
    """Half of its pages are the file's, the others copies that were made when they were written."""
    with cause_process(("private", SIZE, [1])) as child:
        assert child.pages(region=0) == {1: PAGES}
        assert smaps(child, "Anonymous") == SIZE // 2
        verdict = placed(child)
        assert smaps(child, "Anonymous") == SIZE // 2
        assert of_class(verdict.before, PageClass.SHMEM) == {1: SIZE // 2}
        assert of_class(verdict.after, PageClass.SHMEM) == {0: SIZE // 2}


def test_a_file_on_tmpfs(tmp_path: Path) -> None:
    subprocess.run(["mount", "-n", "-t", "tmpfs", "ram", str(tmp_path)], check=True)
    try:
        file = tmp_path / "ram"
        with cause_process(("file", SIZE, [2]), of_regions={0: {"path": str(file)}}) as child:
            assert child.pages(region=0) == {2: PAGES}
            verdict = placed(child)
            assert of_class(verdict.after, PageClass.SHMEM) == {0: SIZE}
        assert numbers(file) == list(range(PAGES))
    finally:
        subprocess.run(["umount", "-n", str(tmp_path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on a disk, in memory, and nobody who writes its pages back before somebody asks for it."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("mkfs.ext4 is not installed (e2fsprogs)")
    subprocess.run(["modprobe", "ext4"], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", ram_disk(), "64M"], check=True)
    with setting("/proc/sys/vm/dirty_writeback_centisecs", "0"):
        mount(tmp_path)
        yield tmp_path
        subprocess.run(["umount", "-n", str(tmp_path)], check=True)


def mount(folder: Path) -> None:
    subprocess.run(["mount", "-n", "-t", "ext4", ram_disk(), folder], check=True)


def test_dirty_pages_of_a_file_on_a_disk(disk: Path) -> None:
    """Changes that are nowhere but in memory are moved there, and are on the disk once they are written."""
    file = disk / "ram"
    with cause_process(("file", SIZE, [1]), of_regions={0: {"path": str(file)}}) as child:
        assert child.pages(region=0) == {1: PAGES}
        dirty = [smaps(child, f"{kind}_Dirty") for kind in ("Private", "Shared")]
        assert sum(dirty) == SIZE
        verdict = placed(child)
        assert of_class(verdict.after, PageClass.FILE)[0] >= SIZE
        assert sum(smaps(child, f"{kind}_Dirty") for kind in ("Private", "Shared")) == SIZE
    subprocess.run(["umount", "-n", str(disk)], check=True)
    mount(disk)
    assert numbers(file) == list(range(PAGES))


def numbers(file: Path) -> list[int]:
    """The number each page of a file begins with."""
    return [number for (number,) in struct.iter_unpack(f"<Q{PAGE - 8}x", file.read_bytes())]
