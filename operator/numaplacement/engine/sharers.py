# SPDX-License-Identifier: Apache-2.0
"""Other processes that map the same memory: virtiofsd, vhost-user back ends and their like, whose pages move along."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .kernel import Kernel
from .mappings import Kind, Mapping

_MAPS = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) \S{3}s [0-9a-f]+ ([0-9a-f]+:[0-9a-f]+) ([1-9][0-9]*) ", re.MULTILINE | re.ASCII
)
_LIMIT = 1.0
"""Seconds that looking through the host's processes may take."""


@dataclass(frozen=True, order=True, kw_only=True)
class Sharer:
    """A process, its name, and the bytes of address space in which it maps the same files."""

    pid: int
    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Sharers:
    """Who shares memory.

    `unread` are processes that may not be looked at; `complete` says whether the time sufficed for all others.
    """

    found: tuple[Sharer, ...] = ()
    unread: int = 0
    complete: bool = True


def find_sharers(
    pid: int, mappings: Iterable[Mapping], kernel: Kernel, *, clock: Callable[[], float], limit: float = _LIMIT
) -> Sharers:
    """Look for other processes that map the memfds, tmpfs and hugetlbfs files that a process maps to be shared.

    `mappings` are those of the process `pid`; `limit` is in seconds of `clock`. Processes that end meanwhile are none.
    """
    files = {
        (mapping.device, mapping.inode)
        for mapping in mappings
        if mapping.shared and mapping.inode and mapping.kind in {Kind.SHMEM, Kind.HUGETLB}
    }
    if not files:
        return Sharers()
    end = clock() + limit
    found: list[Sharer] = []
    unread = 0
    try:
        pids = sorted(int(name) for name in kernel.names(kernel.proc) if name.isdigit())
    except OSError:
        return Sharers(complete=False)
    for other in pids:
        if other == pid:
            continue
        if clock() > end:
            return Sharers(found=tuple(found), unread=unread, complete=False)
        try:
            shared = shared_bytes(kernel.read(kernel.process(other, "maps")), files)
            if shared:
                name = kernel.read(kernel.process(other, "comm")).rstrip("\n")
                found.append(Sharer(pid=other, name=name, bytes=shared))
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            unread += 1
    return Sharers(found=tuple(found), unread=unread)


def shared_bytes(maps: str, files: set[tuple[str, int]]) -> int:
    """Return the bytes of shared mappings of `files`, each device and inode, in the text of /proc/PID/maps."""
    return sum(
        int(end, 16) - int(start, 16)
        for start, end, device, inode in _MAPS.findall(maps)
        if (device, int(inode)) in files
    )
