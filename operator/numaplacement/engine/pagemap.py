# SPDX-License-Identifier: Apache-2.0
"""Which pages a process has, from /proc/PID/pagemap, and what they are made of, from /proc/kpageflags and kpagecount.

Bits: Documentation/admin-guide/mm/pagemap.rst and include/uapi/linux/kernel-page-flags.h.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from .errors import FramesUnreadable

PRESENT = np.uint64(1 << 63)
SWAP = np.uint64(1 << 62)
"""Not present, but swapped out: or being moved at this moment, or marked by userfaultfd or as a guard region."""
FILE_OR_SHARED = np.uint64(1 << 61)
"""Page of a file or of shared memory: not anonymous."""
EXCLUSIVE = np.uint64(1 << 56)
"""No other page table maps the page."""
FRAME = np.uint64((1 << 55) - 1)
"""Page frame number; reads as zero without CAP_SYS_ADMIN."""

COMPOUND_HEAD = np.uint64(1 << 15)
COMPOUND_TAIL = np.uint64(1 << 16)
NO_PAGE = np.uint64(1 << 20)
KSM = np.uint64(1 << 21)
ZERO_PAGE = np.uint64(1 << 24)

_WORD = 8
_GAP = 64
"""Frames that are rather read and thrown away than skipped with another call."""
_AT_ONCE = 1 << 15
"""Frames whose words are read at once at most: 16 MiB where each but one in _GAP is thrown away."""


class WordFile:
    """A file of 64-bit words that is read at positions; words beyond its end read as zero."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> WordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, first: int, count: int) -> NDArray[np.uint64]:
        """Return `count` words from the position `first` on: uint64[count]. Raises OSError."""
        words = np.zeros(count, dtype=np.uint64)
        view = words.view(np.uint8).data
        done = 0
        while done < len(view):
            got = os.preadv(self._fd, [view[done:]], first * _WORD + done)
            if got == 0:
                break
            done += got
        return words


def frame_words(of_frames: WordFile, frames: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the words of page frames, uint64[n], in a file that has one for each; `frames` uint64[n] in any order.

    Raises FramesUnreadable.
    """
    if frames.size == 0:
        return np.zeros(0, dtype=np.uint64)
    order = np.argsort(frames, kind="stable")
    ascending = frames[order]
    ends_piece = np.arange(1, frames.size) % _AT_ONCE == 0
    cuts = np.flatnonzero((np.diff(ascending) > _GAP) | ends_piece) + 1
    words = np.empty(frames.size, dtype=np.uint64)
    for start, run in zip([0, *cuts.tolist()], np.split(ascending, cuts), strict=True):
        first = int(run[0])
        try:
            read = of_frames.read(first, int(run[-1]) - first + 1)
        except OSError as error:
            raise FramesUnreadable from error
        words[start : start + run.size] = read[(run - run[0]).astype(np.int64)]
    unsorted = np.empty_like(words)
    unsorted[order] = words
    return unsorted
