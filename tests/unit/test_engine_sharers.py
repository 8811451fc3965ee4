# SPDX-License-Identifier: Apache-2.0
"""Which other processes map the memory of a VM."""

from __future__ import annotations

from pathlib import Path

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.mappings import Kind, Mapping
from numaplacement.engine.sharers import Sharer, Sharers, find_sharers

RAM = "7fe13dc00000-7fe141c00000 rw-s 00000000 00:0f 14840                      /memfd:memory-backend-memfd (deleted)\n"
RAM_PART = "7fe141c00000-7fe141e00000 r--s 00200000 00:0f 14840                      /memfd:ram (deleted)\n"
OTHER_INODE = "7fe141e00000-7fe145e00000 rw-s 00000000 00:0f 14839 /memfd:memory-backend-memfd (deleted)\n"
OTHER_DEVICE = "7fe141e00000-7fe145e00000 rw-s 00000000 00:1f 14840 /memfd:memory-backend-memfd (deleted)\n"
PRIVATE = "7fe141e00000-7fe145e00000 rw-p 00000000 00:0f 14840 /memfd:memory-backend-memfd (deleted)\n"
ANONYMOUS = "7fe145e39000-7fe145e3a000 rw-p 00000000 00:00 0 \n"


class Host(Kernel):
    """A host with processes by number, each with its maps; None where they may not be read."""

    def __init__(self, root: Path, processes: dict[int, str | None]) -> None:
        super().__init__(proc=root)
        self.processes = processes
        self.looked_at: list[int] = []
        for name in (*map(str, processes), "sys"):
            (root / name).mkdir()

    def read(self, path: Path) -> str:
        pid = int(path.parent.name)
        if path.name == "comm":
            return f"process {pid}\n"
        self.looked_at.append(pid)
        text = self.processes[pid]
        if text is None:
            raise PermissionError
        if text == "ended":
            raise ProcessLookupError
        return text


def mapping(kind: Kind = Kind.HUGETLB, permissions: str = "rw-s", inode: int = 14840) -> Mapping:
    return Mapping(start=0, end=4096, path="", kind=kind, permissions=permissions, device="00:0f", inode=inode)


def test_who_maps_the_same_file_is_told_with_its_bytes(tmp_path: Path) -> None:
    host = Host(
        tmp_path,
        {
            5: RAM,
            7: ANONYMOUS + RAM + RAM_PART + ANONYMOUS,
            8: OTHER_INODE + OTHER_DEVICE + PRIVATE + ANONYMOUS,
            9: None,
            10: "",
            11: "ended",
            12: RAM_PART,
        },
    )
    assert find_sharers(5, [mapping()], host, clock=lambda: 0.0) == Sharers(
        found=(Sharer(pid=7, name="process 7", bytes=66 << 20), Sharer(pid=12, name="process 12", bytes=2 << 20)),
        unread=1,
    )


def test_a_process_that_shares_nothing_needs_no_look_at_others(tmp_path: Path) -> None:
    host = Host(tmp_path, {7: RAM})
    alone = [mapping(permissions="rw-p"), mapping(Kind.ANON, inode=0), mapping(Kind.FILE), mapping(Kind.DEVICE)]
    assert find_sharers(5, alone, host, clock=lambda: 0.0) == Sharers()
    assert host.looked_at == []


def test_the_time_is_bounded(tmp_path: Path) -> None:
    host = Host(tmp_path, {7: RAM, 8: RAM, 9: RAM})
    ticks = iter([0.0, 0.4, 0.9, 1.1])
    found = find_sharers(5, [mapping(Kind.SHMEM)], host, clock=lambda: next(ticks), limit=1.0)
    assert (host.looked_at, found.complete, len(found.found)) == ([7, 8], False, 2)
