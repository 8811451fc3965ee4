# SPDX-License-Identifier: Apache-2.0
"""Guest cells on QEMU's command line, and which mappings are their memory."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaplacement.engine.cell_memory import CellsUnknown, assign_cells, places_of_cells
from numaplacement.engine.cells import Backend, Cell, backends_of, cells_of
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.mappings import Kind, Mapping, NumaMapsRow, parse_numa_maps, parse_smaps
from numaplacement.engine.qemu_options import parse_option, size_of
from numaplacement.engine.ram_blocks import ram_block_addresses
from numaplacement.engine.ram_ranges import fits, ram_ranges

MIB = 1 << 20
SIZE = 64 * MIB

# As KubeVirt 1.9 starts a VM with guestMappingPassthrough, and what the kernel says of it.
KUBEVIRT_NUMA = [
    "/usr/bin/qemu-system-x86_64",
    "-machine",
    "pc-q35-10.0,usb=off,vmport=off,dump-guest-core=off,acpi=on",
    "-m",
    "size=131072k",
    "-overcommit",
    "mem-lock=off",
    "-smp",
    "2,sockets=1,dies=1,clusters=1,cores=2,threads=1",
    "-object",
    '{"qom-type":"thread-context","id":"tc-ram-node0","node-affinity":[1]}',
    "-object",
    (
        '{"qom-type":"memory-backend-memfd","id":"ram-node0","hugetlb":true,"hugetlbsize":2097152,"prealloc":true,'
        '"size":67108864,"host-nodes":[1],"policy":"bind","prealloc-context":"tc-ram-node0"}'
    ),
    "-numa",
    "node,nodeid=0,cpus=0,memdev=ram-node0",
    "-object",
    '{"qom-type":"thread-context","id":"tc-ram-node1","node-affinity":[2]}',
    "-object",
    (
        '{"qom-type":"memory-backend-memfd","id":"ram-node1","hugetlb":true,"hugetlbsize":2097152,"prealloc":true,'
        '"size":67108864,"host-nodes":[2],"policy":"bind","prealloc-context":"tc-ram-node1"}'
    ),
    "-numa",
    "node,nodeid=1,cpus=1,memdev=ram-node1",
    "-device",
    '{"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}',
]
KUBEVIRT_SMAPS = """\
7fe13dc00000-7fe141c00000 rw-s 00000000 00:0f 14840                      /memfd:memory-backend-memfd (deleted)
KernelPageSize:     2048 kB
VmFlags: rd wr sh mr mw me ms dc de ht
7fe141c00000-7fe141e00000 ---p 00000000 00:00 0
KernelPageSize:        4 kB
VmFlags: mr mw me nr
7fe141e00000-7fe145e00000 rw-s 00000000 00:0f 14839                      /memfd:memory-backend-memfd (deleted)
KernelPageSize:     2048 kB
VmFlags: rd wr sh mr mw me ms dc de ht
"""
KUBEVIRT_NUMA_MAPS = """\
7fe13dc00000 bind:2 file=/memfd:memory-backend-memfd\\040(deleted) huge dirty=32 N2=32 kernelpagesize_kB=2048
7fe141c00000 bind:1-2
7fe141e00000 bind:1 file=/memfd:memory-backend-memfd\\040(deleted) huge dirty=32 N1=32 kernelpagesize_kB=2048
"""
# As KubeVirt 1.9 starts a VM without NUMA.
KUBEVIRT_PLAIN = [
    "/usr/bin/qemu-system-x86_64",
    "-machine",
    "pc-q35-10.0,usb=off,vmport=off,dump-guest-core=off,memory-backend=pc.ram,acpi=on",
    "-m",
    "size=262144k",
    "-object",
    '{"qom-type":"memory-backend-ram","id":"pc.ram","size":268435456}',
    "-smp",
    "1,maxcpus=4,sockets=4,dies=1,clusters=1,cores=1,threads=1",
]
LOW, HIGH, HIGHER = 0x7FE13DC00000, 0x7FE141E00000, 0x7FE151E00000


def qemu(*words: str) -> list[str]:
    return ["qemu-system-x86_64", *words]


def ram(*backends: str) -> list[str]:
    """The command line of a guest with one cell for each memory backend."""
    words = ["-smp", str(len(backends))]
    for number, backend in enumerate(backends):
        words += ["-object", backend, "-numa", f"node,nodeid={number},cpus={number},memdev=m{number}"]
    return qemu(*words)


def mapping(start: int = LOW, size: int = SIZE, **more: Any) -> Mapping:
    facts: dict[str, Any] = {"path": "", "kind": Kind.ANON, "flags": frozenset({"rd", "wr", "dc"})}
    return Mapping(start=start, end=start + size, **(facts | more))


def memfd(start: int = LOW, size: int = SIZE, inode: int = 1, **more: Any) -> Mapping:
    facts: dict[str, Any] = {"path": "/memfd:memory-backend-memfd (deleted)", "kind": Kind.SHMEM, "permissions": "rw-s"}
    return mapping(start, size, inode=inode, **(facts | more))


def file(path: str, start: int = LOW, **more: Any) -> Mapping:
    return mapping(start, path=path, kind=Kind.FILE, permissions="rw-s", inode=7, **more)


def row(start: int, policy: str) -> NumaMapsRow:
    return NumaMapsRow(start=start, policy=policy, bytes_by_numa_node={})


def starts(assigned: tuple[tuple[Mapping, int], ...] | CellsUnknown) -> dict[int, int]:
    assert not isinstance(assigned, CellsUnknown), assigned.evidence
    return {each.start: numa_node for each, numa_node in assigned}


def evidence(assigned: tuple[tuple[Mapping, int], ...] | CellsUnknown) -> str:
    assert isinstance(assigned, CellsUnknown)
    return assigned.evidence


# The command line.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("memory-backend-ram,id=a,size=64M", {"type": ("memory-backend-ram",), "id": ("a",), "size": ("64M",)}),
        ("id=a,,b,path=/x,,,share=on", {"id": ("a,b",), "path": ("/x,",), "share": ("on",)}),
        ("node,cpus=0-1,cpus=4", {"type": ("node",), "cpus": ("0-1", "4")}),
        ("a=1,readonly", {"a": ("1",), "readonly": ("on",)}),
        ("host-nodes.0=1,host-nodes.1=3", {"host-nodes": ("1", "3")}),
        (
            '{"id":"a","size":5,"share":true,"host-nodes":[1,2]}',
            {"id": ("a",), "size": ("5",), "share": ("on",), "host-nodes": ("1", "2")},
        ),
        ("{broken", {}),
        ("", {"type": ("",)}),
    ],
)
def test_options(text: str, found: dict[str, tuple[str, ...]]) -> None:
    assert parse_option(text, implied="type") == found


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [
        ("67108864", "b", 64 * MIB),
        ("262144k", "m", 256 * MIB),
        ("128", "m", 128 * MIB),
        ("2G", "b", 2048 * MIB),
        ("1.5G", "b", 1536 * MIB),
        ("0x100000", "b", MIB),
        ("1T", "b", 1 << 40),
        ("", "b", 0),
        ("much", "b", 0),
    ],
)
def test_sizes(text: str, unit: str, size: int) -> None:
    assert size_of(text, unit=unit) == size


@given(st.lists(st.text(max_size=40), max_size=6))
def test_any_command_line_is_read_without_a_fault(words: list[str]) -> None:
    line = [part for word in words for part in ("-object", f"memory-backend-ram,{word}", "-numa", f"node,{word}")]
    cells_of([*line, *(part for word in words for part in ("-smp", word, "-m", word, "-numa", word, "-device", word))])


def test_cells_as_kubevirt_writes_them() -> None:
    first, second = cells_of(KUBEVIRT_NUMA)
    assert (first.number, first.vcpus, first.size) == (0, {0}, SIZE)
    assert (second.number, second.vcpus) == (1, {1})
    assert second.backends == (
        Backend(
            id="ram-node1",
            kind="memfd",
            size=SIZE,
            shared=True,
            hugetlb=True,
            page_size=2 * MIB,
            policy="bind",
            host_nodes=frozenset({2}),
        ),
    )


def test_a_guest_without_numa_is_one_cell() -> None:
    (cell,) = cells_of(KUBEVIRT_PLAIN)
    assert (cell.number, cell.vcpus, cell.size, cell.backends[0].id) == (0, set(range(4)), 256 * MIB, "pc.ram")


@pytest.mark.parametrize(
    ("words", "backend"),
    [
        ([], Backend(id="pc.ram", size=128 * MIB)),
        (["-m", "512"], Backend(id="pc.ram", size=512 * MIB)),
        (["-m", "1G,slots=2,maxmem=4G"], Backend(id="pc.ram", size=1024 * MIB)),
        (["-m", "size=1048577b"], Backend(id="pc.ram", size=MIB + 8192)),
        (["-m", "64", "-mem-path", "/hp"], Backend(id="pc.ram", kind="file", size=SIZE, path="/hp")),
        (["-M", "q35,memory-backend=a", "-object", "memory-backend-ram,id=a,size=64M"], Backend(id="a", size=SIZE)),
        (["-numa", "node", "-m", "64"], Backend(id="pc.ram", size=SIZE)),
    ],
)
def test_the_memory_of_a_guest_without_backends_for_cells(words: list[str], backend: Backend) -> None:
    (cell,) = cells_of(qemu(*words))
    assert cell.backends == (backend,)


def test_vcpus_of_cells() -> None:
    line = ram("memory-backend-ram,id=m0,size=64M", "memory-backend-ram,id=m1,size=64M")
    more = ["-numa", "node,nodeid=2,cpus=4-5,cpus=8"]
    assert [cell.vcpus for cell in cells_of([*line, *more])] == [{0}, {1}, {4, 5, 8}]


def test_vcpus_by_their_place_in_the_machine() -> None:
    line = qemu(
        *("-smp", "4,maxcpus=16,sockets=2,dies=2,cores=2,threads=2", "-numa", "node,nodeid=0,memdev=a"),
        *("-object", "memory-backend-ram,id=a,size=1G", "-numa", "node,nodeid=1", "-numa", "cpu,node-id=0,socket-id=0"),
        *("-numa", "cpu,node-id=1,socket-id=1,die-id=1,core-id=0,thread-id=1"),
    )
    assert [cell.vcpus for cell in cells_of(line)] == [set(range(8)), {13}]
    unclear = [word.replace("dies=2,cores=2,threads=2", "cores=2") for word in line]
    assert [cell.vcpus for cell in cells_of(unclear)] == [set(), set()]


def test_numbers_beyond_any_machine_name_nothing() -> None:
    (cell,) = cells_of(qemu("-smp", "4000000000", "-object", "memory-backend-ram,id=a,host-nodes=0-4000000000"))
    assert len(cell.vcpus) == 65536
    huge = "sockets=90000,cores=90000,threads=90000"
    line = qemu("-smp", huge, "-numa", "node,cpus=0-4000000000", "-numa", "node", "-numa", "cpu,node-id=0")
    assert [cell.vcpus for cell in cells_of(line)] == [set(), set()]


def test_memory_devices_belong_to_their_cell() -> None:
    line = [
        *ram("memory-backend-ram,id=m0,size=64M", "memory-backend-ram,id=m1,size=64M"),
        *("-object", "memory-backend-ram,id=d0,size=1G", "-device", "pc-dimm,id=x,memdev=d0,node=1"),
        *("-object", "memory-backend-ram,id=d1,size=2G", "-device", '{"driver":"virtio-mem-pci","memdev":"d1"}'),
        *("-object", "memory-backend-ram,id=s,size=2G", "-device", "ivshmem-plain,memdev=s"),
    ]
    first, second = cells_of(line)
    assert [backend.id for backend in first.backends] == ["m0", "d1"]
    assert [(backend.id, backend.pluggable) for backend in second.backends] == [("m1", False), ("d0", True)]


# Ranges and what fits.


def test_split_mappings_are_one_range() -> None:
    parts = [
        mapping(0x10000, 0x4000),
        mapping(0x14000, 0x4000, permissions="---p"),
        mapping(0x18000, 0x1000, flags=frozenset({"rd"})),  # a stack
        memfd(0x20000, 0x1000, offset=0),
        memfd(0x21000, 0x1000, offset=0x1000),
        memfd(0x22000, 0x1000, offset=0x5000),
        memfd(0x23000, 0x1000, inode=2),
        mapping(0x30000, 0x1000, kind=Kind.DEVICE, path="/dev/vfio/1"),
    ]
    assert [(each.start, each.size) for each in ram_ranges(reversed(parts))] == [
        (0x10000, 0x8000),
        (0x20000, 0x2000),
        (0x22000, 0x1000),
        (0x23000, 0x1000),
    ]


HUGETLB = {"kind": Kind.HUGETLB, "page_size": 2 * MIB}


@pytest.mark.parametrize(
    ("backend", "one", "fit"),
    [
        ({}, mapping(), True),
        ({}, mapping(size=SIZE - 4096), False),
        ({"size": SIZE - 100}, mapping(), True),
        ({}, memfd(), False),
        ({"shared": True}, mapping(path="/dev/zero (deleted)", kind=Kind.SHMEM), True),
        ({"shared": True}, mapping(), False),
        ({"kind": "memfd"}, memfd(), True),
        ({"kind": "memfd"}, mapping(), False),
        ({"kind": "memfd"}, memfd(path="/memfd:other (deleted)"), False),
        ({"kind": "memfd"}, memfd(**HUGETLB), False),
        ({"kind": "memfd", "hugetlb": True}, memfd(), False),
        ({"kind": "memfd", "hugetlb": True}, memfd(**HUGETLB), True),
        ({"kind": "memfd", "hugetlb": True, "size": SIZE - MIB}, memfd(**HUGETLB), True),
        ({"kind": "memfd", "hugetlb": True, "page_size": 1 << 30}, memfd(**HUGETLB), False),
        ({"kind": "file", "path": "/hp"}, file("/hp/qemu_back_mem._objects_a.Xy12zW (deleted)"), True),
        ({"kind": "file", "path": "/hp"}, file("/hp/qemu_back_mem.a.Xy12zW (deleted)"), True),
        ({"kind": "file", "path": "/hp"}, file("/hp/qemu_back_mem._objects_ba.Xy12zW (deleted)"), False),
        ({"kind": "file", "path": "/ram/a"}, file("/ram/a"), True),
        ({"kind": "file", "path": "/ram/a"}, file("/ram/b"), False),
        ({"kind": "file", "path": "/ram/a", "offset": 4096}, file("/ram/a"), False),
        ({"kind": "file", "path": "/ram/a", "offset": 4096}, file("/ram/a", offset=4096), True),
        ({"kind": "shm", "shared": True}, mapping(path="/dev/shm/q (deleted)", kind=Kind.SHMEM), True),
        ({"kind": "shm", "shared": True}, mapping(), False),
    ],
)
def test_what_fits(backend: dict[str, Any], one: Mapping, fit: bool) -> None:
    (each,) = ram_ranges([one])
    assert fits(Backend(**{"id": "a", "size": SIZE, **backend}), each) == fit


# Which range is which cell's.

TWO = ram("memory-backend-ram,id=m0,size=64M", "memory-backend-ram,id=m1,size=64M")
TWO_BOUND = ram(
    "memory-backend-ram,id=m0,size=64M,host-nodes=1,policy=bind",
    "memory-backend-ram,id=m1,size=64M,host-nodes=2-3,policy=bind",
)
EQUAL = (mapping(LOW), mapping(HIGH))


def test_cells_as_kubevirt_makes_them_are_told_apart_by_their_policies() -> None:
    mappings, rows = parse_smaps(KUBEVIRT_SMAPS), parse_numa_maps(KUBEVIRT_NUMA_MAPS)
    assert starts(assign_cells(KUBEVIRT_NUMA, mappings, rows, {0: 3, 1: 0})) == {HIGH: 3, LOW: 0}
    first, second = places_of_cells(KUBEVIRT_NUMA, mappings, rows)
    assert (first.mappings, second.mappings) == ((mappings[2],), (mappings[0],))


def test_what_was_not_asked_is_not_assigned() -> None:
    mappings, rows = parse_smaps(KUBEVIRT_SMAPS), parse_numa_maps(KUBEVIRT_NUMA_MAPS)
    assert starts(assign_cells(KUBEVIRT_NUMA, mappings, rows, {1: 0})) == {LOW: 0}


def test_different_sizes_are_told_apart() -> None:
    line = ram("memory-backend-ram,id=m0,size=64M", "memory-backend-ram,id=m1,size=32M")
    assert starts(assign_cells(line, [mapping(LOW, SIZE // 2), mapping(HIGH)], (), {0: 3, 1: 0})) == {HIGH: 3, LOW: 0}


def test_every_part_of_a_split_range_is_assigned() -> None:
    line = ram("memory-backend-ram,id=m0,size=64M", "memory-backend-ram,id=m1,size=32M")
    parts = [mapping(HIGH, MIB), mapping(HIGH + MIB, SIZE - MIB, permissions="r--p"), mapping(LOW, SIZE // 2)]
    assert starts(assign_cells(line, parts, (), {0: 3})) == {HIGH: 3, HIGH + MIB: 3}


def test_equal_memory_without_a_proof_is_unknown_unless_it_goes_to_one_numa_node() -> None:
    assert evidence(assign_cells(TWO, EQUAL, (), {0: 3, 1: 0})) == (
        "2 mappings of 64.0 MiB fit memory backend m0 and m1 alike"
    )
    assert "alike" in evidence(assign_cells(TWO, EQUAL, (), {0: 3}))
    assert starts(assign_cells(TWO, EQUAL, (), {0: 3, 1: 3})) == {LOW: 3, HIGH: 3}
    assert [place.mappings for place in places_of_cells(TWO, EQUAL, ())] == [None, None]


def test_a_mapping_that_may_be_no_cells_at_all_is_unknown() -> None:
    plugged = (*EQUAL, mapping(HIGHER))
    assert evidence(assign_cells(TWO, plugged, (), {0: 3, 1: 3})).startswith("3 mappings of 64.0 MiB")
    assert starts(assign_cells(TWO, plugged, (), {0: 3, 1: 3}, {"m0": HIGHER, "m1": LOW})) == {HIGHER: 3, LOW: 3}


def test_qemus_own_records_are_proof() -> None:
    assert starts(assign_cells(TWO, EQUAL, (), {0: 3, 1: 0}, {"m0": LOW})) == {LOW: 3, HIGH: 0}
    assert starts(assign_cells(TWO, EQUAL, (), {0: 3, 1: 0}, {"m1": LOW})) == {HIGH: 3, LOW: 0}
    assert "alike" in evidence(assign_cells(TWO, EQUAL, (), {0: 3, 1: 0}, {"m0": HIGHER}))


@pytest.mark.parametrize(
    ("low", "high", "assigned"),
    [
        ("bind:2-3", "bind:1", {HIGH: 3, LOW: 0}),
        ("bind:1", "bind:2-3", {LOW: 3, HIGH: 0}),
        ("bind=static:1", "bind:2-3", {LOW: 3, HIGH: 0}),
        ("bind:0-1", "bind:1", None),  # rebound by a write to cpuset.mems
        ("bind:1", "bind:1", None),
        ("prefer:1", "bind:2-3", None),
        ("default", "bind:2-3", None),
    ],
)
def test_policies_count_for_all_or_for_none(low: str, high: str, assigned: dict[int, int] | None) -> None:
    found = assign_cells(TWO_BOUND, EQUAL, [row(LOW, low), row(HIGH, high)], {0: 3, 1: 0})
    assert isinstance(found, CellsUnknown) if assigned is None else starts(found) == assigned


def test_records_outweigh_policies() -> None:
    rows = [row(LOW, "bind:1"), row(HIGH, "bind:2-3")]
    assert starts(assign_cells(TWO_BOUND, EQUAL, rows, {0: 3, 1: 0}, {"m0": HIGH, "m1": LOW})) == {HIGH: 3, LOW: 0}


@pytest.mark.parametrize("policy", ["preferred", "interleave"])
def test_other_policies(policy: str) -> None:
    word = {"preferred": "prefer"}.get(policy, policy)
    line = ram(f"memory-backend-ram,id=m0,size=64M,host-nodes=1,policy={policy}", "memory-backend-ram,id=m1,size=64M")
    rows = [row(LOW, f"{word}:1"), row(HIGH, "default")]
    assert starts(assign_cells(line, EQUAL, rows, {0: 3, 1: 0})) == {LOW: 3, HIGH: 0}


def test_cells_that_do_not_exist() -> None:
    assert evidence(assign_cells(TWO, EQUAL, (), {0: 1, 2: 1})) == (
        "guest cell 2 does not exist: the VM has guest cells 0-1"
    )
    assert evidence(assign_cells(KUBEVIRT_PLAIN, EQUAL, (), {1: 1})) == (
        "guest cell 1 does not exist: the VM has guest cell 0 only"
    )


def test_memory_that_is_not_mapped() -> None:
    assert evidence(assign_cells(TWO, [mapping(size=MIB)], (), {0: 1})) == (
        "QEMU has mapped no memory that fits memory backend m0 (64.0 MiB)"
    )
    assert "pc.ram (256.0 MiB)" in evidence(assign_cells(KUBEVIRT_PLAIN, [mapping()], (), {0: 1}))
    assert "alike" in evidence(assign_cells(TWO, [mapping()], (), {0: 1}))


def test_cells_with_one_backend_together() -> None:
    line = qemu("-m", "64", "-numa", "node,nodeid=0,mem=32", "-numa", "node,nodeid=1,mem=32")
    assert evidence(assign_cells(line, [mapping()], (), {0: 1})) == (
        "guest cells 0-1 have one memory backend together, pc.ram"
    )
    assert starts(assign_cells(line, [mapping()], (), {0: 1, 1: 1})) == {LOW: 1}


def test_to_an_only_cell_belongs_all_guest_ram() -> None:
    ours = [mapping(LOW, 256 * MIB), mapping(HIGHER, MIB), memfd(HIGHER * 2)]
    others = [memfd(HIGHER * 3, path="/memfd:pulse (deleted)"), mapping(HIGHER * 4, flags=frozenset({"rd", "wr"}))]
    assert starts(assign_cells(KUBEVIRT_PLAIN, [*ours, *others], (), {0: 2})) == {each.start: 2 for each in ours}


def test_a_memory_device_may_have_been_unplugged() -> None:
    def line(size: str) -> list[str]:
        device = ["-object", f"memory-backend-ram,id=d,size={size}", "-device", "pc-dimm,memdev=d,node=1"]
        return [*ram("memory-backend-ram,id=m0,size=64M", "memory-backend-ram,id=m1,size=32M"), *device]

    there = [mapping(LOW), mapping(HIGH, SIZE // 2)]
    assert starts(assign_cells(line("16M"), there, (), {0: 3, 1: 0})) == {LOW: 3, HIGH: 0}
    plugged = [*there, mapping(HIGHER, 16 * MIB)]
    assert starts(assign_cells(line("16M"), plugged, (), {0: 3, 1: 0})) == {LOW: 3, HIGH: 0, HIGHER: 0}
    assert starts(assign_cells(line("64M"), there, (), {0: 3, 1: 0})) == {LOW: 3, HIGH: 0}
    both = [*there, mapping(HIGHER)]
    assert "alike" in evidence(assign_cells(line("64M"), both, (), {0: 3, 1: 0}))
    twice = [*line("64M"), "-object", "memory-backend-ram,id=e,size=8M", "-device", "pc-dimm,memdev=e,node=0"]
    twice += ["-object", "memory-backend-ram,id=f,size=8M", "-device", "pc-dimm,memdev=f,node=1"]
    assert "alike" in evidence(assign_cells(twice, [*there, mapping(HIGHER, 8 * MIB)], (), {0: 3, 1: 0}))


def test_policies_count_beside_a_memory_device_that_was_unplugged() -> None:
    bound = "memory-backend-ram,id=m{},size=32M,policy=bind,host-nodes={}"
    line = [
        *ram("memory-backend-ram,id=m0,size=64M", bound.format(1, 1), bound.format(2, 2)),
        *("-object", "memory-backend-ram,id=d,size=64M", "-device", "pc-dimm,memdev=d,node=1"),
    ]
    there = [mapping(LOW), mapping(HIGH, SIZE // 2), mapping(HIGHER, SIZE // 2)]
    rows = [row(HIGH, "bind:2"), row(HIGHER, "bind:1")]
    assert starts(assign_cells(line, there, rows, {0: 3, 1: 0, 2: 1})) == {LOW: 3, HIGHER: 0, HIGH: 1}


def test_a_memory_device_whose_policy_was_rebound_is_not_taken_for_unplugged() -> None:
    line = [
        *ram("memory-backend-ram,id=m0,size=32M", "memory-backend-ram,id=m1,size=16M"),
        *("-object", "memory-backend-ram,id=d,size=64M,host-nodes=1,policy=bind", "-device", "pc-dimm,memdev=d,node=1"),
    ]
    there = [mapping(LOW), mapping(HIGH, SIZE // 2), mapping(HIGHER, SIZE // 4)]
    assert starts(assign_cells(line, there, [row(LOW, "bind:2")], {1: 0})) == {LOW: 0, HIGHER: 0}


# QEMU's records of its RAM blocks.


def record(address: int, name: str, size: int = SIZE, second_size: int | None = None) -> bytes:
    """As QEMU 7.2 has it: address, colour cache, offset, lengths, callback, flags, name."""
    lengths = struct.pack("=5Q", address, 0, 0x4000000, size, size if second_size is None else second_size)
    return lengths + struct.pack("=QI", 0, 0x10) + name.encode().ljust(256, b"\0")


HEAP = 0x5000


def found_in(
    heap: bytes, tmp_path: Path, line: list[str] = TWO, mappings: tuple[Mapping, ...] = EQUAL
) -> dict[str, int]:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "mem").write_bytes(bytes(HEAP) + heap)
    end = HEAP + -(-len(heap) // 4096) * 4096
    own = Mapping(start=HEAP, end=end, path="[heap]", kind=Kind.ANON)
    return ram_block_addresses(7, Kernel(proc=tmp_path), backends_of(cells_of(line)).values(), [own, *mappings])


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([(HIGH, "m0"), (LOW, "/objects/m1")], {"m0": HIGH, "m1": LOW}),
        ([(HIGH, "0000:00:03.0/virtio-mem//objects/m0")], {"m0": HIGH}),
        ([(HIGH, "m0"), (HIGH, "m0")], {"m0": HIGH}),
        ([(HIGH, "m0"), (LOW, "m0")], {}),  # contradictions prove nothing
        ([(HIGH, "m0"), (HIGH, "m1"), (LOW, "m1")], {}),
        ([(HIGHER, "m0")], {}),
        ([(HIGH, "m0", SIZE // 2)], {}),
        ([(HIGH, "m0", SIZE, 2 * SIZE)], {}),
        ([(HIGH, "xm0"), (LOW, "m00")], {}),
    ],
)
def test_records_in_the_heap(records: list[Any], found: dict[str, int], tmp_path: Path) -> None:
    heap = b"noise" * 97 + b"m0\0" + b"".join(b"\xfe" * 11 + record(*each) for each in records)
    assert found_in(heap, tmp_path) == found


def test_a_record_across_two_reads_is_found(tmp_path: Path) -> None:
    heap = bytes((4 * MIB) - 20) + record(HIGH, "m0")
    assert found_in(heap, tmp_path) == {"m0": HIGH}


def test_a_record_cut_off_at_the_end_of_the_heap_is_none(tmp_path: Path) -> None:
    assert found_in(record(HIGH, "m0")[:30], tmp_path) == {}


def test_without_the_right_to_read_nothing_is_known(tmp_path: Path) -> None:
    assert ram_block_addresses(7, Kernel(proc=tmp_path), backends_of(cells_of(TWO)).values(), EQUAL) == {}
    own = Mapping(start=HEAP, end=HEAP + 4096, path="[heap]", kind=Kind.ANON)
    assert ram_block_addresses(7, Kernel(proc=tmp_path), backends_of(cells_of(TWO)).values(), [own, *EQUAL]) == {}


def test_a_cell_counts_all_its_memory() -> None:
    assert Cell(number=0, backends=(Backend(id="a", size=5), Backend(id="b", size=7))).size == 12
