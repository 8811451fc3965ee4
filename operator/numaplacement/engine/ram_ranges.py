# SPDX-License-Identifier: Apache-2.0
"""The mappings of QEMU that could be guest RAM, and which of them could be which memory backend's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .cells import Backend
from .mappings import Kind, Mapping

_DELETED = " (deleted)"
_FILE_OF_BACKEND = re.compile(r"/qemu_back_mem\.(?:_objects_)?(?P<id>.+)\.[^.]{6}$")
"""A file QEMU makes in the folder of mem-path (softmmu/physmem.c, file_ram_open)."""


@dataclass(frozen=True, kw_only=True)
class RamRange:
    """Adjacent mappings of one backing, in bytes from `start` to `end`: mprotect, madvise and mbind split mappings."""

    mappings: tuple[Mapping, ...]

    @property
    def start(self) -> int:
        """First address."""
        return self.mappings[0].start

    @property
    def size(self) -> int:
        """Bytes."""
        return self.mappings[-1].end - self.start


def ram_ranges(mappings: Iterable[Mapping]) -> tuple[RamRange, ...]:
    """Return mappings that could be guest RAM, adjacent ones of one backing as one."""
    runs: list[list[Mapping]] = []
    for mapping in sorted(mappings, key=lambda each: each.start):
        if mapping.kind in {Kind.DEVICE, Kind.OF_THE_CPU, Kind.SECRET} or (
            mapping.kind is Kind.ANON and not _kept(mapping)
        ):
            continue
        if runs and _continues(runs[-1][-1], mapping):
            runs[-1].append(mapping)
        else:
            runs.append([mapping])
    return tuple(RamRange(mappings=tuple(run)) for run in runs)


def _kept(mapping: Mapping) -> bool:
    """Say whether a mapping is kept from children: QEMU marks each RAM block so (ram_block_add, MADV_DONTFORK)."""
    return "dc" in mapping.flags


def _continues(before: Mapping, mapping: Mapping) -> bool:
    same = (before.kind, before.path, before.device, before.inode) == (
        mapping.kind,
        mapping.path,
        mapping.device,
        mapping.inode,
    )
    in_step = not mapping.inode or before.offset + before.end - before.start == mapping.offset
    return same and in_step and before.end == mapping.start


def looks_like_guest_ram(each: RamRange) -> bool:
    """Say whether a range is guest RAM by its looks, whatever the command line knows of."""
    first = each.mappings[0]
    if first.kind is Kind.ANON:
        return True  # ram_ranges() keeps only what QEMU marks
    return first.path.startswith("/memfd:memory-backend-") or "/qemu_back_mem." in first.path


def fits(backend: Backend, each: RamRange) -> bool:
    """Say whether a range can be the memory of a backend by kind, name and size; huge pages round the size up."""
    first = each.mappings[0]
    page = first.page_size
    if -(-backend.size // page) * page != each.size:
        return False
    if backend.kind == "ram":
        return first.kind is (Kind.SHMEM if backend.shared else Kind.ANON)
    if backend.kind == "memfd":
        pool = first.kind is Kind.HUGETLB
        right_pages = pool == backend.hugetlb and (not pool or backend.page_size in {0, page})
        return first.path.startswith("/memfd:memory-backend-memfd") and right_pages
    if backend.kind == "file":
        return _is_file_of(backend, first)
    return first.kind in {Kind.SHMEM, Kind.HUGETLB, Kind.FILE}


def _is_file_of(backend: Backend, mapping: Mapping) -> bool:
    path = mapping.path.removesuffix(_DELETED)
    named = _FILE_OF_BACKEND.search(path)
    if named is not None:
        return named["id"] == backend.id
    return path.endswith(backend.path) and mapping.offset == backend.offset
