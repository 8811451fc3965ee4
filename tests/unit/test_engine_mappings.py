# SPDX-License-Identifier: Apache-2.0
"""What smaps, numa_maps and lists of numbers say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaplacement.engine.listformat import format_list, parse_list
from numaplacement.engine.mappings import (
    Kind,
    bytes_by_numa_node,
    page_class,
    parse_numa_maps,
    parse_smaps,
    parse_tmpfs_devices,
)
from numaplacement.engine.verdict import PageClass
from numaplacement.engine.wording import count_text, size_text

BODY = """Size:               1024 kB
KernelPageSize:        {page} kB
MMUPageSize:           {page} kB
Rss:                 800 kB
Pss:                 800 kB
AnonHugePages:      {huge} kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Private_Hugetlb:       0 kB
THPeligible:    1
VmFlags: {flags}
"""


def smaps(header: str, *, flags: str = "rd wr mr mw me ac", huge: int = 0, page: int = 4) -> str:
    return header + "\n" + BODY.format(flags=flags, huge=huge, page=page)


@pytest.mark.parametrize(
    ("path", "more", "kind"),
    [
        ("", {}, Kind.ANON),
        ("[heap]", {}, Kind.ANON),
        ("[stack]", {}, Kind.ANON),
        ("[anon:guest ram]", {}, Kind.ANON),
        ("[anon_shmem:ram]", {"permissions": "rw-s"}, Kind.SHMEM),
        ("/memfd:pc.ram (deleted)", {"permissions": "rw-s"}, Kind.SHMEM),
        ("/dev/zero (deleted)", {"permissions": "rw-s"}, Kind.SHMEM),
        ("/dev/shm/ram", {"permissions": "rw-s"}, Kind.SHMEM),
        ("/SYSV00000000 (deleted)", {"permissions": "rw-s"}, Kind.SHMEM),
        ("/run/ram", {"device": "00:1a"}, Kind.SHMEM),
        ("/dev/nvidia0", {"device": "00:1a"}, Kind.DEVICE),
        ("/usr/lib/libc.so.6", {"permissions": "r-xp"}, Kind.FILE),
        ("/var/lib/with blank (deleted)", {}, Kind.FILE),
        ("/memfd:ram (deleted)", {"flags": "rd wr sh ht"}, Kind.HUGETLB),
        ("", {"flags": "rd wr ht"}, Kind.HUGETLB),
        ("/anon_hugepage (deleted)", {"flags": "rd wr ht"}, Kind.HUGETLB),
        ("[vdso]", {"flags": "rd ex de"}, Kind.OF_THE_CPU),
        ("[vvar]", {"flags": "rd io pf dd"}, Kind.OF_THE_CPU),
        ("/dev/vfio/11", {"flags": "rd wr io pf"}, Kind.DEVICE),
        ("socket:[4711]", {"flags": "rd wr sh mr mw me ms dd mm"}, Kind.DEVICE),
        ("anon_inode:kvm-vcpu:0", {"permissions": "rw-s"}, Kind.DEVICE),
        ("anon_inode:[io_uring]", {"permissions": "rw-s", "flags": "rd wr sh dd"}, Kind.DEVICE),
        ("/dev/kvm", {}, Kind.DEVICE),
        ("/secretmem (deleted)", {"permissions": "rw-s", "flags": "rd wr lo"}, Kind.SECRET),
        ("/[aio] (deleted)", {"permissions": "rw-s"}, Kind.FILE),
    ],
)
def test_kinds(path: str, more: dict[str, str], kind: Kind) -> None:
    header = f"7f0000000000-7f0000100000 {more.get('permissions', 'rw-p')} 00000000 {more.get('device', '00:00')} 77"
    text = smaps(f"{header}                    {path}".rstrip(), flags=more.get("flags", "rd wr"))
    (mapping,) = parse_smaps(text, frozenset({"00:1a"}))
    assert (mapping.kind, mapping.path) == (kind, path)


def test_numbers_and_flags_of_each_mapping_are_its_own() -> None:
    text = smaps("7f0000000000-7f0000400000 rw-p 00000000 00:00 0 ", huge=2048, flags="rd wr lo hg")
    text += smaps("7f0000400000-7f0000800000 r-xp 00001000 fe:01 12   /bin/qemu", flags="rd ex")
    text += smaps("7f0000800000-7f0000c00000 rw-s 00000000 00:0f 12   /x", flags="rd wr sh ht", page=2048)
    first, second, third = parse_smaps(text)
    assert (first.start, first.end, first.huge, first.flags) == (
        0x7F0000000000,
        0x7F0000400000,
        2 << 20,
        {"rd", "wr", "lo", "hg"},
    )
    assert (second.huge, second.page_size, second.only_cached) == (0, 4096, True)
    assert (third.page_size, third.shared, third.writable) == (2 << 20, True, True)


@pytest.mark.parametrize(
    ("permissions", "only_cached"), [("r-xp", True), ("rw-p", True), ("r--s", True), ("rw-s", False)]
)
def test_what_is_no_more_than_page_cache(permissions: str, only_cached: bool) -> None:
    (mapping,) = parse_smaps(smaps(f"1000-2000 {permissions} 00000000 fe:01 12   /data"))
    assert mapping.only_cached == only_cached


@given(st.text(max_size=400))
def test_any_text_is_read_without_a_fault(text: str) -> None:
    parse_smaps(text)
    parse_numa_maps(text)
    parse_tmpfs_devices(text)


def test_the_truncated_last_mapping_of_a_process_that_ended_is_not_one() -> None:
    text = smaps("1000-2000 rw-p 00000000 00:00 0 ") + "3000-4000 rw-p 00000000 00:00 0 \nRss: 4 kB\n"
    assert len(parse_smaps(text)) == 1


NUMA_MAPS = """\
55a000000000 default file=/usr/bin/qemu-system-x86_64 mapped=1200 mapmax=2 N0=1000 N2=200 kernelpagesize_kB=4
7f0000000000 bind:1 file=/memfd:ram-node0\\040(deleted) huge dirty=32 N1=32 kernelpagesize_kB=2048
7f1000000000 bind=static:0-1,3 anon=3 dirty=3 active=1 N3=3 kernelpagesize_kB=4
7f2000000000 prefer:2
7ffc00000000 interleave:0-3 stack anon=4 dirty=4 N0=4 kernelpagesize_kB=4
"""


def test_numa_maps() -> None:
    rows = parse_numa_maps(NUMA_MAPS)
    assert [row.bound_to for row in rows] == [None, {1}, {0, 1, 3}, None, None]
    assert rows[1].bytes_by_numa_node == {1: 64 << 20}
    assert [row.huge for row in rows] == [False, True, False, False, False]
    assert bytes_by_numa_node(rows) == {0: 1004 * 4096, 1: 64 << 20, 2: 200 * 4096, 3: 3 * 4096}


def test_tmpfs_devices_are_written_as_smaps_writes_them() -> None:
    text = "31 1 0:26 / /run rw,nosuid shared:5 - tmpfs tmpfs rw\n32 1 254:1 / / rw - ext4 /dev/vda1 rw\n"
    assert parse_tmpfs_devices(text) == {"00:1a"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.ANON, PageClass.ANON),
        (Kind.SHMEM, PageClass.SHMEM),
        (Kind.HUGETLB, PageClass.HUGETLB),
        (Kind.FILE, PageClass.FILE),
        (Kind.DEVICE, PageClass.FILE),
    ],
)
def test_classes_of_kinds(kind: Kind, expected: PageClass) -> None:
    assert page_class(kind) is expected


@given(st.frozensets(st.integers(min_value=0, max_value=300)))
def test_lists_of_numbers_come_back(numbers: frozenset[int]) -> None:
    assert parse_list(format_list(numbers)) == numbers


@pytest.mark.parametrize(
    ("text", "numbers"), [("", set()), ("\n", set()), ("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("0-0", {0})]
)
def test_lists_of_numbers(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers


@pytest.mark.parametrize("text", ["x", "1-x", "1-2-3"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        parse_list(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 KiB"),
        (4096, "4 KiB"),
        (100, "100 B"),
        (1 << 20, "1.0 MiB"),
        (1536 << 20, "1.5 GiB"),
        (1 << 43, "8.0 TiB"),
    ],
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert size_text(count) == text


def test_nouns_agree() -> None:
    assert (count_text(1, "thread"), count_text(2, "thread")) == ("1 thread", "2 threads")
