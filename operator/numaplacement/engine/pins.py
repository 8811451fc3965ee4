# SPDX-License-Identifier: Apache-2.0
"""Memory that a device holds in place, found before the first page is touched.

The kernel says of no page whether it is pinned. But whoever pins for long accounts it to the process: VFIO type 1 to
VmLck (drivers/vfio/vfio_iommu_type1.c, vfio_lock_acct), iommufd and vDPA and io_uring to VmPin. mlock(2) adds the
length of its mappings to VmLck too; these carry the flag `lo` in smaps and are taken off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .mappings import Kind, Mapping
from .process import ProcessFacts
from .survey import Survey

_DEVICES = re.compile(
    r"^(/dev/vfio/(?!vfio$)\S+|/dev/vfio/vfio|/dev/iommu|/dev/vhost-vdpa-\d+|anon_inode:\[?kvm-vfio\]?)$"
)
_IO_BUFFERS = 16 << 20
"""Pinned memory below which, without any device, registered I/O buffers are the likely cause."""
_HOLDS_RAM = frozenset({Kind.ANON, Kind.SHMEM, Kind.HUGETLB, Kind.FILE})


@dataclass(frozen=True, kw_only=True)
class Pins:
    """What speaks for pinned memory: files of devices, and what the process is accounted, in bytes.

    `mlocked` is the part of `locked` (VmLck) that mlock(2) explains; `pinned` is VmPin.
    """

    devices: tuple[str, ...] = ()
    locked: int = 0
    mlocked: int = 0
    pinned: int = 0

    @property
    def bytes(self) -> int:
        """Bytes that are pinned by this account."""
        return max(0, self.locked - self.mlocked) + self.pinned

    @property
    def by_device(self) -> bool:
        """Whether a device holds them, as far as can be told."""
        return self.bytes > 0 and (bool(self.devices) or self.bytes > _IO_BUFFERS)

    def evidence(self) -> str:
        """Say what was seen."""
        held = f"QEMU holds {', '.join(self.devices)}" if self.devices else "no file of a device is open"
        return (
            f"{held}; VmLck {self.locked // 1024:,} kB of which {self.mlocked // 1024:,} kB is mlock;"
            f" VmPin {self.pinned // 1024:,} kB"
        )


def find_pins(process: ProcessFacts, mappings: Sequence[Mapping]) -> Pins:
    """Return what speaks for pinned memory of a process."""
    return Pins(
        devices=tuple(name for name in process.open_files if _DEVICES.match(name)),
        locked=process.locked,
        mlocked=sum(mapping.end - mapping.start for mapping in mappings if "lo" in mapping.flags),
        pinned=process.pinned,
    )


def attribute(pinned: int, survey: Survey) -> dict[int, int]:
    """Return which mappings, by start address, hold how many of the pinned bytes.

    Guest RAM is what devices pin, and the biggest mappings are guest RAM: they are taken first, whole. What is left
    over after the last mapping is accounted twice somewhere (a page both mlocked and mapped for DMA counts twice).
    """
    parts = sorted(
        (part for part in survey.pages if part.mapping.kind in _HOLDS_RAM and not part.mapping.only_cached),
        key=lambda part: (-part.page.size * part.mapping.page_size, part.mapping.start),
    )
    held: dict[int, int] = {}
    for part in parts:
        taken = min(pinned, part.page.size * part.mapping.page_size)
        if taken == 0:
            break
        held[part.mapping.start] = taken
        pinned -= taken
    return held
