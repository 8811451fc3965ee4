# SPDX-License-Identifier: Apache-2.0
"""Where every page of a process is: page tables for which there are, move_pages(2) without nodes for where they are."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from collections.abc import Mapping as Table
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError, LocatingRefused, ProcessEnded
from .folios import heads_from_flags, heads_from_shape, in_huge_folios
from .hidden import UNKNOWN_NODE, FrameMap, absent, frame_map, missing_pages, place_hidden
from .kernel import Kernel
from .mappings import Kind, Mapping, bytes_by_numa_node, page_class, parse_numa_maps, parse_smaps, parse_tmpfs_devices
from .pagemap import EXCLUSIVE, FILE_OR_SHARED, FRAME, NO_PAGE, PRESENT, ZERO_PAGE, WordFile, frame_flags
from .survey import FILE, HEAD, HIDDEN, HUGE, SHARED, MappingPages, Survey, class_rows, survey_of
from .verdict import PageClass

_WINDOW = 1 << 18
"""Base pages looked at at once: 1 GiB of 4 KiB pages. A multiple of any transparent huge page."""
_QUERY = 1 << 15
"""Pages asked about in one call: some milliseconds."""


def read_mappings(pid: int, kernel: Kernel) -> tuple[Mapping, ...]:
    """Return the mappings of a process. Raises ProcessEnded, and EngineError where they may not be read."""
    with reading(pid):
        devices = parse_tmpfs_devices(kernel.read(kernel.process(pid, "mountinfo")))
        mappings = parse_smaps(kernel.read(kernel.process(pid, "smaps")), devices)
    if not mappings:
        raise ProcessEnded
    return mappings


@contextmanager
def reading(pid: int) -> Iterator[None]:
    """Tell an ended process (ProcessEnded) from files that may not be read (EngineError)."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessEnded from error
    except PermissionError as error:
        raise EngineError(
            f"cannot read {error.filename or f'/proc/{pid}'}: run as root with CAP_SYS_PTRACE in the host's own user"
            " namespace, and with hostPID"
        ) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # what mountinfo says of a zombie, fs/proc_namespace.c
            raise ProcessEnded from error
        raise EngineError(f"cannot read /proc/{pid}: {error}; mount the host's /proc") from error


def survey(pid: int, kernel: Kernel) -> Survey:
    """Look at every page of a process.

    Raises ProcessEnded, LocatingRefused where move_pages(2) is not permitted, and EngineError where files may not be
    read. Pages that appear, vanish or move meanwhile are seen as they are at the moment their window is read.
    """
    mappings = read_mappings(pid, kernel)
    with reading(pid):
        surveyor = _Surveyor(pid, kernel, kernel.huge_page_size(), frame_map(kernel.read(kernel.proc / "zoneinfo")))
    with reading(pid), ExitStack() as stack:
        pagemap = stack.enter_context(WordFile(kernel.process(pid, "pagemap")))
        kpageflags = _open_kpageflags(kernel, stack)
        pages = tuple(
            surveyor.pages_of(mapping, pagemap, kpageflags)
            for mapping in mappings
            if mapping.resident and mapping.kind is not Kind.OF_THE_CPU
        )
    return survey_of(tuple(part for part in pages if part.page.size), mappings)


def coarse_survey(pid: int, kernel: Kernel) -> Survey:
    """Return what numa_maps alone tells, for when pages may not be located. Raises as survey() does."""
    mappings = read_mappings(pid, kernel)
    kinds = {mapping.start: mapping.kind for mapping in mappings}
    with reading(pid):
        rows = parse_numa_maps(kernel.read(kernel.process(pid, "numa_maps")))
    sums: dict[tuple[int, PageClass], int] = {}
    for row in rows:
        kind = page_class(kinds.get(row.start, Kind.HUGETLB if row.huge else Kind.ANON))
        for numa_node, count in row.bytes_by_numa_node.items():
            sums[numa_node, kind] = sums.get((numa_node, kind), 0) + count
    return Survey(mappings=mappings, rows=class_rows(sums), located=False)


def located_bytes(pid: int, kernel: Kernel) -> dict[int, int]:
    """Return the bytes of a process by NUMA node, cheaply, from numa_maps. Raises as survey() does."""
    with reading(pid):
        return bytes_by_numa_node(parse_numa_maps(kernel.read(kernel.process(pid, "numa_maps"))))


def _open_kpageflags(kernel: Kernel, stack: ExitStack) -> WordFile | None:
    try:
        return stack.enter_context(WordFile(kernel.proc / "kpageflags"))
    except OSError:
        return None


@dataclass
class _Surveyor:
    """Looks at one process once; reads numa_maps only when a page hides and its frame is not shown."""

    pid: int
    kernel: Kernel
    huge: int
    frames: FrameMap | None
    base: int = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE"))
    _numa_maps: dict[int, Table[int, int]] | None = None

    def pages_of(self, mapping: Mapping, pagemap: WordFile, kpageflags: WordFile | None) -> MappingPages:
        """Return the pages of one mapping."""
        huge_left = mapping.huge // self.huge
        parts: list[_Part] = []
        for first, count in _windows(mapping.start // self.base, mapping.end // self.base):
            part = self._window(mapping, pagemap.read(first, count), first, kpageflags, huge_left)
            huge_left -= int(np.count_nonzero(part.flags & HUGE)) * self.base // self.huge
            parts.append(part)
        numa_node = np.concatenate([part.numa_node for part in parts])
        keep = self._place_hidden(mapping, numa_node)
        return MappingPages(
            mapping=mapping,
            page=np.concatenate([part.page for part in parts])[keep],
            numa_node=numa_node[keep],
            flags=np.concatenate([part.flags for part in parts])[keep],
        )

    def _window(
        self, mapping: Mapping, words: NDArray[np.uint64], first: int, kpageflags: WordFile | None, huge_left: int
    ) -> _Part:
        """Return the pages of one window, from pagemap's words for the base pages from number `first` on."""
        ratio = max(1, mapping.page_size // self.base)
        position = np.flatnonzero(words[::ratio] & PRESENT)
        words = words[::ratio][position]
        number = first + position * ratio
        status = self._locate(number)
        where = self._nodes(mapping, words, status, kpageflags)
        known = where != _NOWHERE
        number, words, numa_node = number[known], words[known], where[known]
        hidden = status[known] < 0
        flags = np.where(words & FILE_OR_SHARED, FILE, np.uint8(0))
        flags |= np.where(words & EXCLUSIVE, np.uint8(0), SHARED)
        flags |= np.where(hidden, HIDDEN, np.uint8(0))
        heads = np.ones(number.size, dtype=np.bool_)
        if ratio == 1 and number.size:
            huge_pages = self.huge // self.base
            heads, exact = _heads(number, words, numa_node, kpageflags, huge_pages if mapping.huge else 0)
            huge = in_huge_folios(heads, huge_pages=huge_pages, at_most=number.size if exact else huge_left)
            flags |= np.where(huge, HUGE, np.uint8(0))
        flags |= np.where(heads, HEAD, np.uint8(0))
        relative = (number - mapping.start // self.base) // ratio
        return _Part(page=relative.astype(np.uint32), numa_node=numa_node, flags=flags.astype(np.uint8))

    def _locate(self, number: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return what move_pages(2) says, int32[n], of page numbers int64[n]."""
        status = np.empty(number.size, dtype=np.int32)
        for start in range(0, number.size, _QUERY):
            part = number[start : start + _QUERY]
            result = self.kernel.locate_pages(self.pid, part.astype(np.uint64) * np.uint64(self.base))
            if result.errno:
                raise_for_query(result.errno)
            status[start : start + _QUERY] = result.status
        return status

    def _nodes(
        self, mapping: Mapping, words: NDArray[np.uint64], status: NDArray[np.int32], kpageflags: WordFile | None
    ) -> NDArray[np.int16]:
        """Return where pages are, int16[n]: a NUMA node, or one of the three constants below."""
        where = np.where(status >= 0, status, _NOWHERE).astype(np.int16)
        if mapping.kind is Kind.DEVICE or not (status < 0).any():
            return where
        unseen = absent(words, status)
        frame = words & FRAME
        if kpageflags is not None and self.frames is not None and frame.any():
            asked = np.flatnonzero(unseen.hidden | unseen.doubtful)
            zero = (frame_flags(kpageflags, frame[asked]) & (ZERO_PAGE | NO_PAGE)) != 0
            where[asked] = np.where(zero, _NOWHERE, self.frames.numa_nodes(frame[asked]))
            where[asked[where[asked] == UNKNOWN_NODE]] = _NOWHERE
            return where
        where[unseen.hidden] = _SOMEWHERE
        where[unseen.doubtful] = _PERHAPS
        return where

    def _place_hidden(self, mapping: Mapping, numa_node: NDArray[np.int16]) -> NDArray[np.bool_]:
        """Give the pages that are somewhere a NUMA node, and return which pages, bool[n], are at all."""
        somewhere, perhaps = np.flatnonzero(numa_node == _SOMEWHERE), np.flatnonzero(numa_node == _PERHAPS)
        keep = np.ones(numa_node.size, dtype=np.bool_)
        if somewhere.size + perhaps.size == 0:
            return keep
        if self._numa_maps is None:
            rows = parse_numa_maps(self.kernel.read(self.kernel.process(self.pid, "numa_maps")))
            self._numa_maps = {row.start: row.bytes_by_numa_node for row in rows}
        missing = missing_pages(
            self._numa_maps.get(mapping.start, {}), numa_node[numa_node >= 0], page_size=mapping.page_size
        )
        hiding = max(0, min(perhaps.size, sum(missing.values()) - somewhere.size))
        keep[perhaps[hiding:]] = False
        placed = np.concatenate((somewhere, perhaps[:hiding]))
        numa_node[placed] = place_hidden(placed.size, missing)
        return keep


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Pages of one window; arrays as in MappingPages."""

    page: NDArray[np.uint32]
    numa_node: NDArray[np.int16]
    flags: NDArray[np.uint8]


_NOWHERE = -2
"""Not memory of the process: the zero page, or gone meanwhile."""
_SOMEWHERE = -3
"""Memory of the process on a NUMA node that numa_maps will tell."""
_PERHAPS = -4
"""One of the two."""


def raise_for_query(number: int) -> None:
    """Raise what an error of a whole query means."""
    if number in {errno.EPERM, errno.EACCES, errno.ENOSYS}:
        raise LocatingRefused(number)
    if number in {errno.ESRCH, errno.EINVAL}:
        raise ProcessEnded
    raise EngineError(f"the kernel would not say where pages are: {os.strerror(number)}")


def _windows(first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of base pages in windows that end at multiples of _WINDOW."""
    while first < end:
        stop = min(end, (first // _WINDOW + 1) * _WINDOW)
        yield first, stop - first
        first = stop


def _heads(
    number: NDArray[np.int64],
    words: NDArray[np.uint64],
    numa_node: NDArray[np.int16],
    kpageflags: WordFile | None,
    huge_pages: int,
) -> tuple[NDArray[np.bool_], bool]:
    """Return which pages begin a folio, and whether that is known for certain."""
    frame = words & FRAME
    if kpageflags is not None and frame.any():
        return heads_from_flags(page=number, frame=frame, flags=frame_flags(kpageflags, frame)), True
    if huge_pages:
        return heads_from_shape(page=number, numa_node=numa_node, huge_pages=huge_pages), False
    return np.ones(number.size, dtype=np.bool_), False
