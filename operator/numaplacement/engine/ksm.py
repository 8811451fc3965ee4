# SPDX-License-Identifier: Apache-2.0
"""Which pages KSM has merged with those of other processes: to move one moves it for all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .pagemap import FRAME, KSM, WordFile, frame_words

_MOST = 1 << 21
"""Frames kept at most, 16 bytes each. Frames beyond are taken for those of others too, and left where they are."""


class MergedFrames:
    """Frames of merged pages that were met in one process, and how often. `flags` and `counts` are None if unreadable.

    Meant are kpageflags and kpagecount: how many page tables map a frame.
    """

    def __init__(self, flags: WordFile | None, counts: WordFile | None) -> None:
        self._flags = flags
        self._counts = counts
        self._frames: list[NDArray[np.uint64]] = []
        self._times: list[NDArray[np.int64]] = []
        self._kept = 0

    def meet(self, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which shared anonymous pages, by their words of pagemap uint64[n], are merged, bool[n].

        All may be where frames are not told (pagemap tells them with CAP_SYS_ADMIN).
        """
        frames = words & FRAME
        if self._flags is None or not frames.any():
            return np.ones(words.size, dtype=np.bool_)
        merged: NDArray[np.bool_] = (frame_words(self._flags, frames) & KSM) != 0
        if self._kept < _MOST and merged.any():
            met, times = np.unique(frames[merged], return_counts=True)
            self._frames.append(met)
            self._times.append(times)
            self._kept += met.size
        return merged

    def own(self) -> NDArray[np.uint64]:
        """Return the frames, uint64[k] ascending, that no other process maps: all that map them were met."""
        if self._counts is None or not self._frames:
            return np.zeros(0, dtype=np.uint64)
        frames, which = np.unique(np.concatenate(self._frames), return_inverse=True)
        times = np.bincount(which, weights=np.concatenate(self._times))
        return frames[times >= frame_words(self._counts, frames).astype(np.float64)]
