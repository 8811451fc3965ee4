# SPDX-License-Identifier: Apache-2.0
"""Where every page of a process is: page tables for which there are, move_pages(2) without nodes for where they are."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .errors import EngineError, FramesUnreadable, ProcessEnded, remedy_of
from .hidden import FrameMap, frame_map
from .kernel import Kernel
from .ksm import MergedFrames
from .looker import Looker
from .mappings import (
    Kind,
    Mapping,
    NumaMapsRow,
    bytes_by_numa_node,
    page_class,
    parse_numa_maps,
    parse_smaps,
    parse_tmpfs_devices,
)
from .pagemap import WordFile
from .survey import Survey, class_rows, survey_of_blocks
from .verdict import PageClass


def read_mappings(pid: int, kernel: Kernel) -> tuple[Mapping, ...]:
    """Return the mappings of a process. Raises ProcessEnded, and EngineError where they may not be read."""
    with reading(pid):
        devices = parse_tmpfs_devices(kernel.read(kernel.process(pid, "mountinfo")))
        mappings = parse_smaps(kernel.read(kernel.process(pid, "smaps")), devices)
    if not mappings:
        raise ProcessEnded
    return mappings


def read_numa_maps(pid: int, kernel: Kernel) -> tuple[NumaMapsRow, ...]:
    """Return the memory policy and the bytes by NUMA node of each mapping. Raises as read_mappings() does."""
    with reading(pid):
        return parse_numa_maps(kernel.read(kernel.process(pid, "numa_maps")))


@contextmanager
def reading(pid: int) -> Iterator[None]:
    """Tell an ended process (ProcessEnded) from files that may not be read (EngineError)."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessEnded from error
    except PermissionError as error:
        raise EngineError(
            f"cannot read {error.filename or f'/proc/{pid}'}: run it as root (sudo numaplace …); in a container give it"
            " CAP_SYS_PTRACE and the host's process IDs; if you are root already, a security module denies it"
        ) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # what mountinfo says of a zombie, fs/proc_namespace.c
            raise ProcessEnded from error
        remedy = remedy_of(error, "mount the host's /proc")
        raise EngineError(f"cannot read /proc/{pid}: {error}; {remedy}") from error


def survey(pid: int, kernel: Kernel) -> Survey:
    """Look at every page of a process.

    Raises ProcessEnded, LocatingRefused where move_pages(2) is not permitted, and EngineError where files may not be
    read. Pages that appear, vanish or move meanwhile are seen as they are at the moment their batch is read.
    """
    try:
        return _survey(pid, kernel, frames=True)
    except FramesUnreadable:
        return _survey(pid, kernel, frames=False)


def _survey(pid: int, kernel: Kernel, *, frames: bool) -> Survey:
    """Look, with the help of what is told of page frames or without it. Raises FramesUnreadable."""
    mappings = read_mappings(pid, kernel)
    with reading(pid), ExitStack() as stack:
        counted = read_numa_maps(pid, kernel)
        kpageflags = _opened(kernel, "kpageflags", stack) if frames else None
        looker = Looker(
            pid=pid,
            kernel=kernel,
            pagemap=stack.enter_context(WordFile(kernel.process(pid, "pagemap"))),
            kpageflags=kpageflags,
            frames=_frame_map(kernel),
            merged=MergedFrames(kpageflags, _opened(kernel, "kpagecount", stack) if frames else None),
            huge=kernel.huge_page_size(),
            counted={row.start: row.bytes_by_numa_node for row in counted},
        )
        return survey_of_blocks(looker.blocks(mappings), mappings)


def coarse_survey(pid: int, kernel: Kernel) -> Survey:
    """Return what numa_maps alone tells, for when pages may not be located. Raises as survey() does."""
    mappings = read_mappings(pid, kernel)
    kinds = {mapping.start: mapping.kind for mapping in mappings}
    rows = read_numa_maps(pid, kernel)
    sums: dict[tuple[int, PageClass], int] = {}
    for row in rows:
        if kinds.get(row.start) is Kind.OF_THE_CPU:
            continue
        kind = page_class(kinds.get(row.start, Kind.HUGETLB if row.huge else Kind.ANON))
        for numa_node, count in row.bytes_by_numa_node.items():
            sums[numa_node, kind] = sums.get((numa_node, kind), 0) + count
    return Survey(mappings=mappings, rows=class_rows(sums), located=False)


def located_bytes(pid: int, kernel: Kernel) -> dict[int, int]:
    """Return the bytes of a process by NUMA node, cheaply, from numa_maps. Raises as survey() does."""
    return bytes_by_numa_node(read_numa_maps(pid, kernel))


def _frame_map(kernel: Kernel) -> FrameMap | None:
    """Return which NUMA node frames belong to; None where that cannot be read."""
    try:
        return frame_map(kernel.read(kernel.proc / "zoneinfo"))
    except OSError:
        return None


def _opened(kernel: Kernel, name: str, stack: ExitStack) -> WordFile | None:
    """Return one of the files of words for each page frame; None where it may not be read."""
    try:
        return stack.enter_context(WordFile(kernel.proc / name))
    except OSError:
        return None
