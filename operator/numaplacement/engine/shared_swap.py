# SPDX-License-Identifier: Apache-2.0
"""Which pages of shared memory are swapped out.

Page tables do not tell: the swap entries of shared memory are in its file (mm/shmem.c), and pagemap reads 0. What is
told is which parts of the file have data, in memory or in swap (lseek(2), SEEK_DATA), and which pages of it are in
memory (mincore(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from .mappings import Mapping

_RESIDENT = np.uint8(1)
_MAP_NORESERVE = 0x4000
"""From asm-generic/mman.h; Python's mmap knows it from 3.13 on."""


def open_shared(process: Path, mapping: Mapping) -> SharedFile:
    """Open the file behind a shared mapping of a process, given its folder below /proc. Raises OSError.

    By map_files, which takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN (fs/proc/base.c), or by a file the process has
    open, as QEMU has its memory backends.
    """
    try:
        return SharedFile(process / f"map_files/{mapping.start:x}-{mapping.end:x}")
    except PermissionError:
        for path in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
                if (device, found.st_ino) == (mapping.device, mapping.inode):
                    return SharedFile(path)
        raise


class SharedFile:
    """The file behind a shared mapping; raises OSError. Nothing is written and no page is touched."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> SharedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def swapped(self, offset: int, pages: int) -> NDArray[np.bool_]:
        """Return which of so many base pages from an offset in bytes on are swapped out, bool[pages]. Raises OSError.

        `offset` is a multiple of the page size.
        """
        out = np.zeros(pages, dtype=np.bool_)
        for first, end in self._data(offset, offset + pages * mmap.PAGESIZE):
            cut = slice((first - offset) // mmap.PAGESIZE, -(-(end - offset) // mmap.PAGESIZE))
            begin = offset + cut.start * mmap.PAGESIZE
            out[cut] = ~self._resident(begin, end - begin)
        return out

    def _data(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of the file that have data, from and to which byte."""
        while start < stop:
            try:
                first = os.lseek(self._fd, start, os.SEEK_DATA)
                end = min(stop, os.lseek(self._fd, first, os.SEEK_HOLE))
            except OSError as error:
                if error.errno == errno.ENXIO:  # no more data
                    return
                raise
            if first >= stop:
                return
            yield first, end
            start = end

    def _resident(self, offset: int, length: int) -> NDArray[np.bool_]:
        """Return which pages of a part of the file are in memory, bool[n]."""
        state = np.zeros(-(-length // mmap.PAGESIZE), dtype=np.uint8)
        # Private, and never written to: a mapping that may not be written does not tell its address.
        flags, protection = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        try:
            area = mmap.mmap(self._fd, length, flags=flags, prot=protection, offset=offset)
        except ValueError as error:
            raise OSError(errno.EAGAIN, "the file has become shorter") from error
        with contextlib.closing(area):
            first = ctypes.c_char.from_buffer(area)
            ctypes.set_errno(0)
            failed = self._libc.mincore(
                ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(length), ctypes.c_void_p(state.ctypes.data)
            )
            del first
        if failed:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        resident: NDArray[np.bool_] = (state & _RESIDENT) != 0
        return resident
