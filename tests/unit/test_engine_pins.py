# SPDX-License-Identifier: Apache-2.0
"""What speaks for pinned memory, and what is made of it.

Rows marked "recorded" need hardware this project's tests do not have (SEV, TDX, vDPA, RDMA, iommufd): they are made of
what the kernel's sources say such a process shows, and test the decision alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.mappings import Kind, Mapping
from numaplacement.engine.pins import Holder, Pins, find_pins, meaning_of_refusal, read_pin_counters
from numaplacement.engine.process import ProcessFacts
from numaplacement.engine.reasons import Reason

GIB, KIB, PAGE = 1 << 30, 1 << 10, 4096
RAM = 4 * GIB
ALWAYS_OPEN = ("/dev/kvm", "/dev/null", "/dev/vhost-net", "anon_inode:[eventfd]", "anon_inode:kvm-vm", "socket:[7]")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A process as it shows itself, and what that is taken for when all its RAM is refused."""

    files: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    locked: int = 0
    mlocked: int = 0
    pinned: int = 0
    counted: dict[int, int] = field(default_factory=lambda: {2: RAM // PAGE})
    pages: int = RAM // PAGE
    holders: tuple[Holder, ...] = ()
    reason: Reason = Reason.EXTRA_REFERENCE
    words: tuple[str, ...] = ()

    def pins(self) -> Pins:
        process = ProcessFacts(
            command_line=("/usr/bin/qemu-kvm", *self.arguments),
            threads=(),
            open_files=(*ALWAYS_OPEN, *self.files),
            locked=self.locked,
            pinned=self.pinned,
            swapped=0,
        )
        mappings = [Mapping(start=0, end=self.mlocked, path="", kind=Kind.ANON, flags=frozenset({"lo"}))]
        return find_pins(process, mappings, self.counted)


ROWS = {
    "VFIO type 1": Row(
        files=("/dev/vfio/vfio", "/dev/vfio/17", "anon_inode:kvm-vfio"),
        locked=RAM,
        holders=(Holder.VFIO,),
        reason=Reason.PINNED_BY_DEVICE,
        words=("/dev/vfio/17", "VmLck 4,194,304 kB", "consistent with 1,048,576 pinned pages on NUMA node 2"),
    ),
    "VFIO beside mlock": Row(
        files=("/dev/vfio/vfio", "/dev/vfio/noiommu-0"),
        locked=RAM + 64 * KIB,
        mlocked=64 * KIB,
        holders=(Holder.VFIO,),
        reason=Reason.PINNED_BY_DEVICE,
        words=("of which 64 kB is mlock",),
    ),
    "iommufd (recorded)": Row(
        files=("/dev/iommu", "/dev/vfio/devices/vfio0"),
        pinned=RAM,
        holders=(Holder.IOMMUFD,),
        reason=Reason.PINNED_BY_DEVICE,
        words=("/dev/iommu", "VmPin 4,194,304 kB"),
    ),
    "vDPA (recorded)": Row(
        files=("/dev/vhost-vdpa-0",),
        pinned=RAM,
        holders=(Holder.VDPA,),
        reason=Reason.PINNED_BY_DEVICE,
        words=("/dev/vhost-vdpa-0",),
    ),
    "RDMA (recorded)": Row(
        files=("/dev/infiniband/uverbs0",),
        pinned=RAM,
        holders=(Holder.RDMA,),
        reason=Reason.PINNED_BY_DEVICE,
        words=("uverbs0",),
    ),
    "a device whose files are gone": Row(locked=RAM, reason=Reason.PINNED_BY_DEVICE, words=("no file of a device",)),
    "SEV (recorded)": Row(
        files=("/dev/sev",),
        arguments=("-object", "sev-guest,id=lsec0,cbitpos=51"),
        holders=(Holder.SEV,),
        reason=Reason.ENCRYPTED_GUEST,
        words=("sev-guest", "consistent with"),
    ),
    "SEV, its object by another name (recorded)": Row(
        files=("/dev/sev",), holders=(Holder.SEV,), reason=Reason.ENCRYPTED_GUEST, words=("/dev/sev",)
    ),
    "SEV-SNP (recorded)": Row(
        files=("/dev/sev", "anon_inode:[kvm-gmem]"),
        arguments=("-object", '{"qom-type":"sev-snp-guest","id":"lsec0"}'),
        counted={},
        holders=(Holder.SEV, Holder.GUEST_MEMFD),
        reason=Reason.ENCRYPTED_GUEST,
        words=("sev-snp-guest", "guest_memfd"),
    ),
    "TDX (recorded)": Row(
        files=("anon_inode:[kvm-gmem]",),
        arguments=("-object", "tdx-guest,id=lsec0"),
        holders=(Holder.GUEST_MEMFD,),
        reason=Reason.ENCRYPTED_GUEST,
        words=("tdx-guest", "guest_memfd"),
    ),
    "guest_memfd without encryption (recorded)": Row(
        files=("anon_inode:[kvm-gmem]",), counted={2: 0}, holders=(Holder.GUEST_MEMFD,), words=("only 0 pages",)
    ),
    "io_uring with registered buffers": Row(
        files=("anon_inode:[io_uring]",),
        pinned=256 * KIB,
        pages=64,
        counted={2: 64},
        holders=(Holder.IO_URING,),
        reason=Reason.PINNED_BY_IO,
        words=("VmPin 256 kB", "io_uring", "consistent with 64 pinned pages"),
    ),
    "an account without a counter": Row(
        files=("anon_inode:[io_uring]",),
        pinned=256 * KIB,
        pages=64,
        counted={},
        holders=(Holder.IO_URING,),
        reason=Reason.PINNED_BY_IO,
        words=("io_uring",),
    ),
    "registered buffers elsewhere": Row(
        files=("anon_inode:[io_uring]",),
        pinned=256 * KIB,
        pages=64,
        counted={0: 64, 2: 3},
        holders=(Holder.IO_URING,),
        words=("only 3 pages are pinned on NUMA node 2", "vmsplice"),
    ),
    "vmsplice": Row(pages=64, counted={2: 0}, words=("only 0 pages", "vmsplice")),
    "pins of somebody else, perhaps": Row(
        pages=64, counted={2: 99}, words=("accounted no pinned memory", "consistent with 99 pinned pages")
    ),
    "nothing known": Row(pages=1, counted={}, words=("accounted no pinned memory",)),
    "mlock alone": Row(locked=RAM, mlocked=RAM, counted={2: 0}, words=("only 0 pages",)),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_what_a_refused_page_means(row: Row) -> None:
    pins = row.pins()
    assert tuple(pins.files) == row.holders
    reason, evidence = meaning_of_refusal(pins, numa_node=2, pages=row.pages)
    assert reason is row.reason
    for words in row.words:
        assert words in evidence
    assert pins.by_device is (reason is Reason.PINNED_BY_DEVICE)
    assert bool(pins.encrypted()) is (reason is Reason.ENCRYPTED_GUEST)


def test_what_every_vm_has_open_holds_nothing() -> None:
    assert Row().pins().files == {}
    assert Row().pins().devices == ()


def host(root: Path, **vmstat: str) -> Kernel:
    (root / "sys/devices/system/cpu").mkdir(parents=True)
    (root / "proc/sys/vm").mkdir(parents=True)
    for name, text in vmstat.items():
        directory = root / "sys/devices/system/node" / name
        directory.mkdir(parents=True)
        (directory / "vmstat").write_text(text)
    (root / "sys/devices/system/node").mkdir(exist_ok=True)
    (root / "sys/devices/system/node/online").write_text("0-1\n")
    return Kernel(proc=root / "proc", sys=root / "sys")


COUNTS = "nr_free_pages 7\nnr_foll_pin_acquired {}\nnr_foll_pin_released {}\n"


def test_counters_are_the_difference_and_never_negative(tmp_path: Path) -> None:
    kernel = host(tmp_path, node0=COUNTS.format(6154, 10), node1=COUNTS.format(3, 5))
    assert read_pin_counters(kernel) == {0: 6144, 1: 0}
    assert (tmp_path / "proc/sys/vm/stat_refresh").read_text().strip() == "1"


def test_kernels_without_counters_and_no_right_to_refresh(tmp_path: Path) -> None:
    kernel = host(tmp_path, node0="nr_free_pages 7\n", node1=COUNTS.format(9, 1))
    (tmp_path / "proc/sys/vm").rmdir()
    assert read_pin_counters(kernel) == {1: 8}


def test_no_refresh_waits_for_a_cpu_that_is_kept_for_realtime_work(tmp_path: Path) -> None:
    kernel = host(tmp_path, node0=COUNTS.format(9, 1))
    (tmp_path / "sys/devices/system/cpu/isolated").write_text("2-3\n")
    assert read_pin_counters(kernel) == {0: 8}
    assert not (tmp_path / "proc/sys/vm/stat_refresh").exists()


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    assert read_pin_counters(Kernel(proc=tmp_path, sys=tmp_path)) == {}


CONFIDENTIAL = {
    "an object in words": (("-object", "sev-guest,id=lsec0,cbitpos=51"), "an object sev-guest"),
    "an object with its key": (("--object", "id=t,qom-type=tdx-guest"), "an object tdx-guest"),
    "an object in JSON": (("-object", '{"qom-type":"tdx-guest","id":"t"}'), "an object tdx-guest"),
    "an object of many": (
        ("-object", "memory-backend-ram,id=ram0,size=1G", "-object", "sev-snp-guest,id=sev0", "-object", "rng-builtin"),
        "an object sev-snp-guest",
    ),
    "the machine's object": (
        ("-machine", "q35,confidential-guest-support=lsec0", "-object", "tdx-guest,id=lsec0"),
        "confidential-guest-support=lsec0, a tdx-guest",
    ),
    "the machine's object, of a type of a later day": (
        ("-M", "q35,confidential-guest-support=c", "-object", '{"qom-type":"next-guest","id":"c"}'),
        "confidential-guest-support=c, a next-guest",
    ),
    "the machine's object, in a file": (
        ("-machine", "confidential-guest-support=c,type=q35", "-readconfig", "vm.cfg"),
        "confidential-guest-support=c",
    ),
    "a VM of that name": (("-name", "guest=tdx-guest,debug-threads=on"), ""),
    "a disk of that name": (("-blockdev", '{"driver":"file","filename":"/vms/sev-guest/tdx-guest.img"}'), ""),
    "an object that only bears the name": (
        ("-object", "memory-backend-file,id=tdx-guest,mem-path=/sev-guest", "-M", "q35,memory-backend=tdx-guest"),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), CONFIDENTIAL.values(), ids=CONFIDENTIAL.keys())
def test_what_makes_a_guest_confidential(arguments: tuple[str, ...], words: str) -> None:
    assert Row(arguments=arguments).pins().encrypted() == (f"QEMU's command line has {words}" if words else "")
