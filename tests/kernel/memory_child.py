# SPDX-License-Identifier: Apache-2.0
"""A process whose memory lies where a test wants it; takes a JSON specification, then commands.

Runs on the bare interpreter (python -I -S) and imports little: every file it opens comes over 9p in the guest.
"""

import ctypes
import json
import mmap
import os
import sys
import threading

PAGE = 4096
THP = 2 << 20
MADV_HUGEPAGE, MADV_NOHUGEPAGE = 14, 15
MAP_HUGETLB = 0x40000
NR_VMSPLICE = 278
NR_SET_MEMPOLICY = 238
NR_MBIND = 237
MPOL_PREFERRED = 1
MPOL_BIND = 2
PR_SET_NAME = 15
LIBC = ctypes.CDLL(None, use_errno=True)


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def cpus_of(numa_node):
    with open(f"/sys/devices/system/node/node{numa_node}/cpulist") as file:  # noqa: PTH123 - pathlib is slow to import here
        first, _, last = file.read().strip().partition("-")
    return set(range(int(first), int(last or first) + 1))


class Region:
    """Memory of one kind, in equal parts on some NUMA nodes; every page begins with its own number."""

    def __init__(self, spec):
        self.kind, self.size = spec["kind"], spec["size"]
        lead = 0
        self.guards = [mmap.mmap(-1, PAGE, prot=0)]  # or the kernel makes one mapping of neighbours
        if self.kind == "memfd":
            self.file = os.memfd_create("ram")
            os.ftruncate(self.file, self.size)
            self.area = mmap.mmap(self.file, self.size)
        elif self.kind == "hugetlb":
            self.area = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)
        else:
            self.area = mmap.mmap(-1, self.size + THP, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            lead = -ctypes.addressof(ctypes.c_char.from_buffer(self.area)) % THP
            self.area.madvise(MADV_HUGEPAGE if self.kind == "thp" else MADV_NOHUGEPAGE)
        self.guards.append(mmap.mmap(-1, PAGE, prot=0))
        self.words = memoryview(self.area)[lead : lead + self.size].cast("Q")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.area, lead))
        nodes = spec["nodes"]
        block = THP if self.kind in ("thp", "hugetlb") else PAGE
        blocks = self.size // block
        for position, node in enumerate(nodes):  # none where mlock(2) is to bring the pages in
            os.sched_setaffinity(0, cpus_of(node))
            for page in range(
                blocks * position // len(nodes) * block, blocks * (position + 1) // len(nodes) * block, PAGE
            ):
                self.words[page // 8] = page
        os.sched_setaffinity(0, range(os.cpu_count()))

    def intact(self):
        """Whether every page still begins with its own number."""
        return all(self.words[page // 8] == page for page in range(0, self.size, PAGE))

    def rewrite(self, times):
        """Count up in the second word of every page, and see that nothing else did."""
        for count in range(times):
            for word in range(1, self.size // 8, PAGE // 8):
                if self.words[word] != count:
                    return False
                self.words[word] = count + 1
        return True


def hold_references(region, count):
    """Keep a reference to the first pages of a region, as vmsplice(2) does until the pipe is read."""
    reader, writer = os.pipe()
    LIBC.fcntl(writer, 1031, count * PAGE)
    vector = Vector(region.address, count * PAGE)
    if LIBC.syscall(NR_VMSPLICE, writer, ctypes.byref(vector), 1, 0) != count * PAGE:
        raise OSError(ctypes.get_errno(), "vmsplice")
    return reader, writer


def share(regions):
    """Fork a process that keeps every page mapped until this one is gone."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        for region in regions:
            region.intact()
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    return writer


class Commands:
    """What the process does when it is told to, one line a command; each is answered by one line."""

    def __init__(self, regions):
        self.regions = regions
        self.kept = []
        self.writer = None
        self.written_well = False

    def intact(self):
        return all(region.intact() for region in self.regions)

    def rewrite(self, times):
        def write():
            self.written_well = self.regions[0].rewrite(int(times))

        self.writer = threading.Thread(target=write, daemon=True)
        self.writer.start()
        return "started"

    def written(self):
        self.writer.join()
        return self.written_well

    def more(self, size, numa_node):
        self.regions.append(Region({"kind": "base", "size": int(size), "nodes": [int(numa_node)]}))
        return "done"

    def bind(self, region, numa_node):
        """Bind a region to a NUMA node, as QEMU binds guest RAM (mbind(2))."""
        area, mask = self.regions[int(region)], ctypes.c_ulong(1 << int(numa_node))
        arguments = ctypes.c_void_p(area.address), ctypes.c_ulong(area.size), MPOL_BIND, ctypes.byref(mask)
        return LIBC.syscall(NR_MBIND, *arguments, ctypes.c_ulong(64), 0)

    def sparse(self, size, numa_node):
        """Touch one page in every 2 MiB, so that the kernel needs a page table for each."""
        area = mmap.mmap(-1, int(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        area.madvise(MADV_NOHUGEPAGE)
        os.sched_setaffinity(0, cpus_of(int(numa_node)))
        for position in range(0, int(size), THP):
            area[position] = 1
        self.kept.append(area)
        return "done"

    def thread(self, numa_node):
        """Start a thread that touches the first region's pages for ever, on the CPUs of one NUMA node."""

        def touch():
            os.sched_setaffinity(0, cpus_of(int(numa_node)))
            while True:
                self.regions[0].intact()

        toucher = threading.Thread(target=touch, daemon=True)
        toucher.start()
        return toucher.native_id


def main():
    spec = json.loads(sys.argv[1])
    if "preferred" in spec:
        mask = ctypes.c_ulong(1 << spec["preferred"])
        LIBC.syscall(NR_SET_MEMPOLICY, MPOL_PREFERRED, ctypes.byref(mask), ctypes.c_ulong(64))
    if "name" in spec:
        LIBC.prctl(PR_SET_NAME, spec["name"].encode())
    regions = [Region(each) for each in spec["regions"]]
    kept = []
    if spec.get("share"):
        kept.append(share(regions))
    if spec.get("hold"):
        kept.append(hold_references(regions[0], spec["hold"]))
    for region in regions if spec.get("lock") else ():
        if LIBC.mlock(ctypes.c_void_p(region.address), ctypes.c_size_t(region.size)):
            raise OSError(ctypes.get_errno(), "mlock")
    print(json.dumps([region.address for region in regions]), flush=True)
    commands = Commands(regions)
    for line in sys.stdin:
        name, *arguments = line.split()
        print(getattr(commands, name)(*arguments), flush=True)


if __name__ == "__main__":
    main()
