# SPDX-License-Identifier: Apache-2.0
"""Memory that a device or the kernel holds in place, found before the first page is touched.

The kernel says of no page whether it is pinned. There are three traces. Whoever pins for long accounts it to the
process: VFIO type 1 to VmLck (drivers/vfio/vfio_iommu_type1.c, vfio_lock_acct), iommufd, vDPA, RDMA and io_uring to
VmPin (iommufd/pages.c, vhost/vdpa.c, core/umem.c, io_uring/rsrc.c); SEV to neither (kvm/svm/sev.c). mlock(2) adds the
length of its mappings to VmLck too; these carry the flag `lo` in smaps and are taken off. Second, the files the
process has open. Third, each NUMA node counts the pins of all processes of the host together (mm/gup.c); pages that
are only referenced, as vmsplice(2) does, are not in it.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Mapping as Table
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .kernel import Kernel
from .listformat import parse_list
from .mappings import Kind, Mapping
from .process import ProcessFacts
from .qemu_options import last, options
from .reasons import Reason
from .survey import Survey
from .verdict import NO_NUMA_NODE


class Holder(enum.StrEnum):
    """What may hold memory in place, by the files a process has open; and in words."""

    VFIO = "VFIO"
    IOMMUFD = "iommufd"
    VDPA = "vDPA"
    RDMA = "RDMA"
    SEV = "SEV"
    GUEST_MEMFD = "guest-memfd"
    IO_URING = "io_uring"


_FILES = {
    Holder.VFIO: re.compile(r"^(/dev/vfio/(?!devices/)\S+|anon_inode:\[?(kvm-vfio|vfio-device)\]?)$"),
    Holder.IOMMUFD: re.compile(r"^(/dev/iommu|/dev/vfio/devices/\S+)$"),
    Holder.VDPA: re.compile(r"^/dev/vhost-vdpa-\d+$"),
    Holder.RDMA: re.compile(r"^/dev/infiniband/uverbs\d+$"),
    Holder.SEV: re.compile(r"^/dev/sev$"),
    Holder.GUEST_MEMFD: re.compile(r"\[(kvm-gmem|guest_memfd|guest-memfd)\]$"),
    Holder.IO_URING: re.compile(r"^anon_inode:\[io_uring\]$"),
}
_DEVICES = frozenset({Holder.VFIO, Holder.IOMMUFD, Holder.VDPA, Holder.RDMA})
_ENCRYPTED = frozenset({"sev-guest", "sev-snp-guest", "tdx-guest"})
"""Types of QEMU's objects that make a guest confidential (qemu(1), -object)."""
_IO_BUFFERS = 16 << 20
"""Pinned memory below which, without any device, registered I/O buffers are the likely cause."""
_HOLDS_RAM = frozenset({Kind.ANON, Kind.SHMEM, Kind.HUGETLB, Kind.FILE})
_PINS = re.compile(r"^nr_foll_pin_(acquired|released) (\d+)$", re.MULTILINE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Pins:
    """What speaks for pinned memory.

    `files` are those open by what they speak for, `confidential` what QEMU's command line has for an encrypted guest,
    empty for nothing.
    In bytes: what the process is accounted (`mlocked` is the part of `locked`, VmLck, that mlock(2) explains; `pinned`
    is VmPin). `counted` are the pins of the whole host by NUMA node, in pages; empty where the kernel does not say.
    """

    files: Table[Holder, tuple[str, ...]] = field(default_factory=dict)
    confidential: str = ""
    locked: int = 0
    mlocked: int = 0
    pinned: int = 0
    counted: Table[int, int] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        """The open files of devices that pin."""
        return tuple(name for holder, names in self.files.items() if holder in _DEVICES for name in names)

    @property
    def bytes(self) -> int:
        """Bytes that are pinned by the process's account."""
        return max(0, self.locked - self.mlocked) + self.pinned

    @property
    def by_device(self) -> bool:
        """Whether a device holds them, as far as can be told."""
        return self.bytes > 0 and (bool(self.devices) or self.bytes > _IO_BUFFERS)

    def evidence(self) -> str:
        """Say what was seen of devices and accounts."""
        held = f"QEMU holds {', '.join(self.devices)}" if self.devices else "no file of a device is open"
        return (
            f"{held}; VmLck {self.locked // 1024:,} kB of which {self.mlocked // 1024:,} kB is mlock;"
            f" VmPin {self.pinned // 1024:,} kB"
        )

    def encrypted(self) -> str:
        """Say what speaks for an encrypted guest; empty for nothing."""
        if self.confidential:
            return f"QEMU's command line has {self.confidential}"
        return "QEMU holds /dev/sev" if Holder.SEV in self.files else ""

    def consistent_with(self, numa_node: int) -> str:
        """Say how many pages are pinned on a NUMA node, whoever pinned them; empty where that is not known."""
        if numa_node not in self.counted:
            return ""
        pages = self.counted[numa_node]
        return (
            f"consistent with {pages:,} pinned pages on NUMA node {numa_node} (of all processes of the host together)"
        )


def find_pins(process: ProcessFacts, mappings: Sequence[Mapping], counted: Table[int, int] | None = None) -> Pins:
    """Return what speaks for pinned memory of a process; `counted` as read_pin_counters() returns it."""
    files = {
        holder: tuple(name for name in process.open_files if pattern.search(name)) for holder, pattern in _FILES.items()
    }
    return Pins(
        files={holder: names for holder, names in files.items() if names},
        confidential=_confidential(process.command_line),
        locked=process.locked,
        mlocked=sum(mapping.end - mapping.start for mapping in mappings if "lo" in mapping.flags),
        pinned=process.pinned,
        counted=counted or {},
    )


def _confidential(command_line: Sequence[str]) -> str:
    """Return what on QEMU's command line makes a guest confidential, in words; empty for nothing.

    The machine names the object that does, of whatever type: newer versions of QEMU have more types than are known
    here, and the object itself may be in a file (-readconfig).
    """
    objects = [
        (last(each, "id"), last(each, "qom-type")) for each in options(command_line, "object", implied="qom-type")
    ]
    for machine in options(command_line, "machine", "M", implied="type"):
        if named := last(machine, "confidential-guest-support"):
            kind = next((kind for name, kind in objects if name == named), "")
            return f"confidential-guest-support={named}" + (f", a {kind}" if kind else "")
    found = next((kind for _, kind in objects if kind in _ENCRYPTED), "")
    return f"an object {found}" if found else ""


def read_pin_counters(kernel: Kernel) -> dict[int, int]:
    """Return how many pages of each NUMA node are pinned, by all processes of the host; empty where it is not told.

    CPUs keep part of the counts to themselves until they are told to give it up. That is not done on a host that
    keeps CPUs for real-time work (isolcpus): the kernel waits for each CPU, and such a CPU may never come to it.
    """
    if not _text(kernel, "devices/system/cpu/isolated"):
        with contextlib.suppress(OSError):
            kernel.write(kernel.proc / "sys/vm/stat_refresh", "1\n")
    counted = {}
    for numa_node in sorted(parse_list(_text(kernel, "devices/system/node/online"))):
        found = dict(_PINS.findall(_text(kernel, f"devices/system/node/node{numa_node}/vmstat")))
        if len(found) == len(("acquired", "released")):
            counted[numa_node] = max(0, int(found["acquired"]) - int(found["released"]))
    return counted


def meaning_of_refusal(pins: Pins, *, numa_node: int, pages: int) -> tuple[Reason, str]:
    """Return what it means, and what speaks for it, that so many base pages of a NUMA node are refused one by one.

    No page tells who holds it: what is known of the process comes first, then the pins counted on the NUMA node, which
    can be no fewer than these pages if it is pins that hold them.
    """
    counter = pins.consistent_with(numa_node)
    if pins.by_device:
        return Reason.PINNED_BY_DEVICE, _clauses(pins.evidence(), counter)
    if pins.encrypted():
        private = "guest_memfd is open" if Holder.GUEST_MEMFD in pins.files else ""
        return Reason.ENCRYPTED_GUEST, _clauses(pins.encrypted(), private, counter)
    covered = pins.counted.get(numa_node, pages) >= pages
    ring = Holder.IO_URING in pins.files
    # Linux 7 does not account the buffers of a privileged process's rings as pinned any more (VmPin).
    if covered and (pins.bytes or (ring and numa_node in pins.counted)):
        return Reason.PINNED_BY_IO, _clauses(pins.evidence(), "an io_uring is open" if ring else "", counter)
    if not covered:
        told = f"only {pins.counted[numa_node]:,} pages are pinned on NUMA node {numa_node}, so not all of these"
        return Reason.EXTRA_REFERENCE, f"{told}; vmsplice and the like take references that are no pins"
    return Reason.EXTRA_REFERENCE, _clauses("the process is accounted no pinned memory", counter)


def _clauses(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _text(kernel: Kernel, name: str) -> str:
    try:
        return kernel.read(kernel.sys / name).strip()
    except OSError:
        return ""


def attribute(pinned: int, survey: Survey) -> dict[int, int]:
    """Return which mappings, by start address, hold how many of the pinned bytes.

    Guest RAM is what devices pin, and the biggest mappings are guest RAM: they are taken first, whole. What is left
    over after the last mapping is accounted twice somewhere (a page both mlocked and mapped for DMA counts twice).
    """
    sizes: dict[int, int] = {}
    for part in survey.pages.where(lambda mapping: mapping.kind in _HOLDS_RAM and not mapping.only_cached):
        there = int(np.count_nonzero(part.numa_node != NO_NUMA_NODE)) * part.mapping.page_size
        sizes[part.mapping.start] = sizes.get(part.mapping.start, 0) + there
    held: dict[int, int] = {}
    for start, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        taken = min(pinned, size)
        if taken == 0:
            break
        held[start] = taken
        pinned -= taken
    return held
