# SPDX-License-Identifier: Apache-2.0
"""The mappings of a process, from /proc/PID/smaps and /proc/PID/numa_maps (proc(5), numa(7))."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from collections.abc import Mapping as Table
from dataclasses import dataclass

from .listformat import parse_list
from .verdict import PageClass

_SMAPS = re.compile(
    r"^(?:(?P<key>KernelPageSize|Swap|AnonHugePages|ShmemPmdMapped|FilePmdMapped): +(?P<value>\d+) kB"
    r"|VmFlags:(?P<flags>.*)"
    r"|(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<permissions>\S{4}) (?P<offset>[0-9a-f]+)"
    r" (?P<device>[0-9a-f]+:[0-9a-f]+) (?P<inode>\d+) *(?P<path>.*))$",
    re.MULTILINE | re.ASCII,
)
_NUMA_MAPS = re.compile(r"^(?P<start>[0-9a-f]+) (?P<policy>\S+)(?P<rest>.*)$")
_PAGE_SIZE = re.compile(r" kernelpagesize_kB=(\d+)", re.ASCII)
_ON_NODE = re.compile(r" N(\d+)=(\d+)", re.ASCII)
_TMPFS = re.compile(r"^\d+ \d+ (\d+):(\d+) .* - (?:dev)?tmpfs ", re.MULTILINE | re.ASCII)
_BIND = re.compile(r"^bind(?:=[^:]*)?:(.*)$")
_KIB = 1024
_OF_THE_CPU = frozenset({"[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"})
_SHMEM_PREFIXES = ("/memfd:", "/SYSV", "/dev/shm/", "/dev/zero (deleted)", "[anon_shmem")  # noqa: S108 - names to recognise
_NO_DEVICE = ("/dev/zero", "/dev/shm/", "/dev/hugepages")  # noqa: S108 - names to recognise


class Kind(enum.StrEnum):
    """What a mapping maps."""

    ANON = "anon"
    SHMEM = "shmem"
    FILE = "file"
    HUGETLB = "hugetlb"
    DEVICE = "device"
    """Pages of a driver or of the kernel: VM_IO, VM_PFNMAP and VM_MIXEDMAP (also DAX), device files, anon_inode files
    such as kvm-vcpu.
    """
    SECRET = "secret"  # noqa: S105 - memfd_secret(2)
    OF_THE_CPU = "cpu"
    """vdso and its like: pages of the kernel itself that every process maps; numa_maps counts some from Linux 7 on."""


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """One mapping: addresses `start` to `end`, and in bytes what smaps says of it.

    `huge` are transparent huge pages mapped whole, `swapped` is what is swapped out. `flags` are the VmFlags
    (Documentation/filesystems/proc.rst): lo locked, io, pf, ht huge-page pool, mg mergeable, sh shared, wr writable,
    dc not copied on fork. `offset` is where in the file it begins; `device` (as smaps writes it) and `inode` name the
    file, 0 for none.
    """

    start: int
    end: int
    path: str
    kind: Kind
    flags: frozenset[str] = frozenset()
    permissions: str = "rw-p"
    huge: int = 0
    swapped: int = 0
    page_size: int = 4096
    offset: int = 0
    device: str = ""
    inode: int = 0

    @property
    def shared(self) -> bool:
        """Whether other processes see what is written here."""
        return self.permissions[3] == "s"

    @property
    def writable(self) -> bool:
        """Whether the process may write here."""
        return self.permissions[1] == "w"

    @property
    def only_cached(self) -> bool:
        """Whether file pages here are no more than page cache: private or read-only."""
        return self.kind is Kind.FILE and not (self.shared and self.writable)


def parse_smaps(text: str, tmpfs_devices: frozenset[str] = frozenset()) -> tuple[Mapping, ...]:
    """Return the mappings in the text of /proc/PID/smaps; `tmpfs_devices` as smaps writes devices, such as 00:1a."""
    mappings: list[Mapping] = []
    header: re.Match[str] | None = None
    numbers: dict[str, int] = {}
    for line in _SMAPS.finditer(text):
        if line["key"]:
            numbers[line["key"]] = int(line["value"]) * _KIB
        elif line["start"]:
            header, numbers = line, {}
        elif header is not None:  # VmFlags, the last line of each mapping
            mappings.append(_mapping(header, numbers, frozenset(line["flags"].split()), tmpfs_devices))
            header = None
    return tuple(mappings)


def _mapping(
    header: re.Match[str], numbers: Table[str, int], flags: frozenset[str], tmpfs_devices: frozenset[str]
) -> Mapping:
    path, permissions = header["path"], header["permissions"]
    return Mapping(
        start=int(header["start"], 16),
        end=int(header["end"], 16),
        path=path,
        kind=_kind(path, flags, on_tmpfs=header["device"] in tmpfs_devices, shared=permissions[3] == "s"),
        flags=flags,
        permissions=permissions,
        huge=sum(numbers.get(key, 0) for key in ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")),
        swapped=numbers.get("Swap", 0),
        page_size=numbers.get("KernelPageSize", 4 * _KIB),
        offset=int(header["offset"], 16),
        device=header["device"],
        inode=int(header["inode"]),
    )


def _kind(path: str, flags: frozenset[str], *, on_tmpfs: bool, shared: bool) -> Kind:
    tests = {
        Kind.HUGETLB: "ht" in flags,
        Kind.OF_THE_CPU: path in _OF_THE_CPU,
        Kind.SECRET: path.startswith("/secretmem"),
        Kind.DEVICE: bool(flags & {"io", "pf", "mm"}) or path.startswith("anon_inode:"),
        Kind.SHMEM: path.startswith(_SHMEM_PREFIXES) or (on_tmpfs and not _is_device(path)),
        Kind.ANON: not path or (path.startswith("[") and not shared),
        Kind.FILE: not _is_device(path),
    }
    return next((kind for kind, holds in tests.items() if holds), Kind.DEVICE)


def _is_device(path: str) -> bool:
    return path.startswith("/dev/") and not path.startswith(_NO_DEVICE)


def parse_tmpfs_devices(mountinfo: str) -> frozenset[str]:
    """Return the devices of tmpfs mounts in the text of /proc/PID/mountinfo, written as smaps writes them."""
    return frozenset(f"{int(major):02x}:{int(minor):02x}" for major, minor in _TMPFS.findall(mountinfo))


@dataclass(frozen=True, kw_only=True)
class NumaMapsRow:
    """One line of numa_maps: the memory policy, and bytes by NUMA node."""

    start: int
    policy: str
    bytes_by_numa_node: Table[int, int]
    huge: bool = False

    @property
    def bound_to(self) -> frozenset[int] | None:
        """The NUMA nodes a bind policy allows; None for any other policy."""
        bind = _BIND.match(self.policy)
        return parse_list(bind[1]) if bind else None


def parse_numa_maps(text: str) -> tuple[NumaMapsRow, ...]:
    """Return the rows of /proc/PID/numa_maps; its counts are pages of kernelpagesize_kB each."""
    return tuple(filter(None, map(_numa_maps_row, text.splitlines())))


def _numa_maps_row(line: str) -> NumaMapsRow | None:
    row = _NUMA_MAPS.match(line)
    if row is None:
        return None
    page_size = _PAGE_SIZE.search(row["rest"])
    unit = int(page_size[1]) * _KIB if page_size else 4 * _KIB
    return NumaMapsRow(
        start=int(row["start"], 16),
        policy=row["policy"],
        bytes_by_numa_node={int(node): int(count) * unit for node, count in _ON_NODE.findall(row["rest"])},
        huge=" huge" in row["rest"],
    )


def bytes_by_numa_node(rows: Iterable[NumaMapsRow]) -> dict[int, int]:
    """Return the sum of rows by NUMA node."""
    total: dict[int, int] = {}
    for row in rows:
        for numa_node, count in row.bytes_by_numa_node.items():
            total[numa_node] = total.get(numa_node, 0) + count
    return dict(sorted(total.items()))


def page_class(kind: Kind) -> PageClass:
    """Return the class of a mapping's pages as far as its kind tells."""
    return {
        Kind.ANON: PageClass.ANON,
        Kind.SHMEM: PageClass.SHMEM,
        Kind.SECRET: PageClass.SHMEM,
        Kind.HUGETLB: PageClass.HUGETLB,
    }.get(kind, PageClass.FILE)
