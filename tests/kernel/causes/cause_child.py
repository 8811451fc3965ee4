# SPDX-License-Identifier: Apache-2.0
"""memory_child.py with the kinds of memory that do not move, and with commands that make memory so.

Kinds: secret (memfd_secret), mergeable (for KSM), file (`path`, from `offset` on, and only `pages` of it are touched),
private (a private mapping of a memfd, every second page of it written to), packet (a socket's ring), vcpu (what KVM
maps for one), firmware (/dev/mem), forbidden (PROT_NONE), bound (to the NUMA node it is on), scattered (each page 2 MiB
from the next, so that each needs a page table of its own), gigantic (pages of 1 GiB of a pool, looked at in every 2
MiB).
"""

import ctypes
import fcntl
import mmap
import os
import pathlib
import socket
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import memory_child

PAGE, THP, LIBC = memory_child.PAGE, memory_child.THP, memory_child.LIBC
MADV_MERGEABLE, MADV_PAGEOUT, MADV_DONTNEED_LOCKED = 12, 21, 24
NR_MBIND, NR_IO_URING_SETUP, NR_IO_URING_REGISTER, NR_MEMFD_SECRET = 237, 425, 427, 447
MPOL_BIND, MLOCK_ONFAULT = 2, 1
KVM_CREATE_VM, KVM_CREATE_VCPU = 0xAE01, 0xAE41
SOL_PACKET, PACKET_RX_RING = 263, 5
FIRMWARE = 0xF0000
MAP_NORESERVE, MAP_HUGE_1GB, PR_SET_DUMPABLE = 0x4000, 30 << 26, 4
CONTENTS = 4  # of mergeable pages


def checked(name, returned):
    if returned < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return returned


def of_secret(spec):
    file = checked("memfd_secret", LIBC.syscall(NR_MEMFD_SECRET, 0))
    os.ftruncate(file, spec["size"])
    return mmap.mmap(file, spec["size"])


def of_file(spec):
    file = os.open(spec["path"], os.O_RDWR | os.O_CREAT)
    if not spec["path"].startswith("/dev/"):
        os.ftruncate(file, spec.get("offset", 0) + spec["size"])
    return mmap.mmap(file, spec["size"], offset=spec.get("offset", 0))


def of_private(spec):
    file = os.memfd_create("ram")
    for page in range(spec["size"] // PAGE):
        os.write(file, struct.pack("Q", page).ljust(PAGE, b"\0"))
    return mmap.mmap(file, spec["size"], flags=mmap.MAP_PRIVATE)


def of_gigantic(spec):
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | memory_child.MAP_HUGETLB | MAP_HUGE_1GB
    return mmap.mmap(-1, spec["size"], flags=flags)


def of_packets(spec):
    ring = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    count = spec["size"] // PAGE
    ring.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("IIII", PAGE, count, PAGE // 2, count * 2))
    spec["kept"] = ring
    return mmap.mmap(ring.fileno(), spec["size"])


def of_vcpu(spec):
    kvm = os.open("/dev/kvm", os.O_RDWR)
    vcpu = fcntl.ioctl(fcntl.ioctl(kvm, KVM_CREATE_VM, 0), KVM_CREATE_VCPU, 0)
    return mmap.mmap(vcpu, spec["size"])


def of_firmware(spec):
    file = os.open("/dev/mem", os.O_RDONLY)
    return mmap.mmap(file, spec["size"], prot=mmap.PROT_READ, offset=FIRMWARE)


def anonymous(spec):
    size = spec["size"] * step(spec["kind"]) // PAGE
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    area.madvise(memory_child.MADV_NOHUGEPAGE)
    if spec["kind"] == "mergeable":
        area.madvise(MADV_MERGEABLE)
    return area


MAKERS = {
    "secret": of_secret,
    "file": of_file,
    "private": of_private,
    "gigantic": of_gigantic,
    "packet": of_packets,
    "vcpu": of_vcpu,
    "firmware": of_firmware,
    "mergeable": anonymous,
    "forbidden": anonymous,
    "bound": anonymous,
    "scattered": anonymous,
}


def step(kind):
    """Bytes from one page that is used to the next."""
    return THP if kind in ("scattered", "gigantic") else PAGE


class Region(memory_child.Region):
    """Memory of one kind on one NUMA node."""

    def __init__(self, spec):
        if spec["kind"] not in MAKERS:
            super().__init__(spec)
            return
        self.kind, self.size, self.spec = spec["kind"], spec["size"], spec
        os.sched_setaffinity(0, memory_child.cpus_of(spec["nodes"][0]))
        self.guards = [mmap.mmap(-1, PAGE, prot=0)]
        self.area = MAKERS[self.kind](spec)
        self.guards.append(mmap.mmap(-1, PAGE, prot=0))
        self.words = memoryview(self.area).cast("Q")[:: step(self.kind) // 8][: spec.get("pages")]
        if self.kind == "firmware":
            self.address = 0
            self.known = list(self.words)
        else:
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.area))
            different = CONTENTS if self.kind == "mergeable" else len(self.words)
            self.known = [page % different for page in range(len(self.words))]
            for page, content in enumerate(self.known):
                if self.kind != "private" or page % 2 or self.words[page] != content:
                    self.words[page] = content
        if self.kind == "bound":
            mask = ctypes.c_ulong(1 << spec["nodes"][0])
            where = ctypes.c_void_p(self.address), ctypes.c_ulong(self.size)
            checked("mbind", LIBC.syscall(NR_MBIND, *where, MPOL_BIND, ctypes.byref(mask), ctypes.c_ulong(64), 0))
        if self.kind == "forbidden":
            self.protect(0)
        os.sched_setaffinity(0, range(os.cpu_count()))

    def protect(self, permissions):
        where = ctypes.c_void_p(self.address), ctypes.c_size_t(self.size)
        checked("mprotect", LIBC.mprotect(*where, permissions))

    def intact(self):
        if self.kind not in MAKERS:
            return super().intact()
        if self.kind == "forbidden":
            self.protect(mmap.PROT_READ | mmap.PROT_WRITE)
        return list(self.words) == self.known


def free_blocks(numa_node):
    """Blocks of the size of a huge page that are free on a NUMA node; those of old devices (DMA) are kept from us."""
    for line in pathlib.Path("/proc/buddyinfo").read_text().splitlines():
        words = line.split()
        if int(words[1].rstrip(",")) == numa_node and words[3] != "DMA":
            yield sum(int(count) << order for order, count in enumerate(words[13:]))


class Commands(memory_child.Commands):
    """More to tell it."""

    def register(self, count):
        """Register the first pages of the first region with io_uring."""
        self.ring = checked("io_uring_setup", LIBC.syscall(NR_IO_URING_SETUP, 4, ctypes.create_string_buffer(120)))
        vector = memory_child.Vector(self.regions[0].address, int(count) * PAGE)
        arguments = self.ring, 0, ctypes.byref(vector), 1
        checked("io_uring_register", LIBC.syscall(NR_IO_URING_REGISTER, *arguments))
        return "done"

    def become(self, user):
        """Go on as a user that is not root, and may be looked at by that user's other processes."""
        os.setresuid(int(user), int(user), int(user))
        LIBC.prctl(PR_SET_DUMPABLE, 1)
        return "done"

    def pageout(self, region):
        """Have the kernel write a region to swap."""
        self.regions[int(region)].area.madvise(MADV_PAGEOUT)
        return "done"

    def unmap(self, region):
        """Give a region back."""
        gone = self.regions.pop(int(region))
        checked("munmap", LIBC.munmap(ctypes.c_void_p(gone.address), ctypes.c_size_t(gone.size)))
        return "done"

    def promise(self, size):
        """Map a page of a 1 GiB pool, which reserves it, and leave it untouched."""
        self.promised = of_gigantic({"size": int(size)})
        return "done"

    def redeem(self):
        """Touch what was promised."""
        self.promised[0] = 1
        return "done"

    def lay(self, size):
        """Lock so much memory in base pages, where this process prefers it."""
        area, self.laid = aligned(int(size))
        self.held = [area]
        area.madvise(memory_child.MADV_NOHUGEPAGE)
        checked("mlock", LIBC.mlock(ctypes.c_void_p(self.laid), ctypes.c_size_t(int(size))))
        return "done"

    def lock(self, size):
        """Lock so much memory in huge pages, where this process prefers it."""
        area, address = aligned(int(size))
        self.held.append(area)
        area.madvise(memory_child.MADV_HUGEPAGE)
        checked("mlock", LIBC.mlock(ctypes.c_void_p(address), ctypes.c_size_t(int(size))))
        return "done"

    def pierce(self, size):
        """Leave every second page free of what was laid."""
        for page in range(0, int(size), 2 * PAGE):
            checked("madvise", LIBC.madvise(ctypes.c_void_p(self.laid + page), PAGE, MADV_DONTNEED_LOCKED))
        return "done"

    def take(self):
        """Take the blocks of the size of a huge page that are free where this process prefers its memory."""
        left = sum(free_blocks(0))
        while left:
            area, address = aligned((left + 1) * THP)
            self.held.append(area)
            area.madvise(memory_child.MADV_HUGEPAGE)
            checked("mlock2", LIBC.mlock2(ctypes.c_void_p(address), ctypes.c_size_t((left + 1) * THP), MLOCK_ONFAULT))
            for block in range(left + 1):  # one byte each: where there is no block, hardly anything is taken
                ctypes.memset(address + block * THP, 1, 1)
            before, left = left, sum(free_blocks(0))
            if left >= before:
                break
        return "done"


def aligned(size):
    """Memory that begins where a huge page does, and its address."""
    area = mmap.mmap(-1, size + THP, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    return area, address + -address % THP


if __name__ == "__main__":
    memory_child.Region, memory_child.Commands = Region, Commands
    memory_child.main()
