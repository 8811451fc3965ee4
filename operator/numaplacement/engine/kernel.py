# SPDX-License-Identifier: Apache-2.0
"""The thin shell over Linux: system calls, and files below /proc and /sys. Decides nothing."""

from __future__ import annotations

import ctypes
import os
import platform
import select
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .mappings import Mapping
from .shared_swap import SharedFile, open_shared

MPOL_MF_MOVE = 1 << 1
"""Move pages that only this process maps (linux/mempolicy.h)."""
MPOL_MF_MOVE_ALL = 1 << 2
"""Move pages that other processes map too; needs CAP_SYS_NICE (linux/mempolicy.h)."""
UNWRITTEN = -9999
"""Status no kernel writes, put in beforehand: what still reads so afterwards was not reached."""

MADV_COLLAPSE = 25
"""Make transparent huge pages of a range now (madvise(2), Linux 6.1)."""

_AT_ONCE = 1 << 16
"""Bytes of a file asked for in one read."""
_MOVE_PAGES_NUMBER = {"x86_64": 279, "aarch64": 239}
_PROCESS_MADVISE_NUMBER = 440
"""The same on all architectures (process_madvise(2))."""


class Kernel:
    """One host's kernel, as seen from below the two roots given; the files of tests lie elsewhere."""

    def __init__(self, *, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self.proc = proc
        self.sys = sys
        self.page_size = os.sysconf("SC_PAGE_SIZE")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype = ctypes.c_long
        self._libc.process_vm_readv.restype = ctypes.c_ssize_t
        number = _MOVE_PAGES_NUMBER.get(platform.machine())
        self._move_pages_number = number if number is not None else -1

    def read(self, path: Path) -> str:
        """Return the text of a small file; raises OSError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(descriptor, _AT_ONCE):
                parts.append(part)
        finally:
            os.close(descriptor)
        return b"".join(parts).decode(errors="replace")

    def keep(self, path: Path) -> KeptFile:
        """Open a small file to be read again and again; raises OSError."""
        return KeptFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def write(self, path: Path, text: str) -> None:
        """Write a setting below /proc or /sys in one go; raises OSError."""
        with path.open("w", encoding="ascii") as file:
            file.write(text)

    def names(self, path: Path) -> tuple[str, ...]:
        """Return the names of what a directory has in it, sorted; raises OSError."""
        return tuple(sorted(entry.name for entry in path.iterdir()))

    def process(self, pid: int, name: str) -> Path:
        """Return the path of one of the process's files."""
        return self.proc / str(pid) / name

    def move_pages(self, pid: int, addresses: NDArray[np.uint64], *, numa_node: int, flags: int) -> MoveResult:
        """Ask the kernel to move pages to a NUMA node; `addresses` uint64[n], one for each folio.

        The lock of the interpreter is free while the call runs. An error of the call is in the result, not raised.
        """
        nodes = np.full(addresses.size, numa_node, dtype=np.int32)
        return self._move_pages(pid, addresses, nodes=nodes, flags=flags)

    def locate_pages(self, pid: int, addresses: NDArray[np.uint64]) -> MoveResult:
        """Ask on which NUMA node pages are (move_pages(2) without nodes); `addresses` uint64[n]."""
        return self._move_pages(pid, addresses, nodes=None, flags=0)

    def _move_pages(
        self, pid: int, addresses: NDArray[np.uint64], *, nodes: NDArray[np.int32] | None, flags: int
    ) -> MoveResult:
        pages = np.ascontiguousarray(addresses, dtype=np.uint64)
        status = np.full(pages.size, UNWRITTEN, dtype=np.int32)
        ctypes.set_errno(0)
        returned = self._libc.syscall(
            ctypes.c_long(self._move_pages_number),
            ctypes.c_int(pid),
            ctypes.c_ulong(pages.size),
            ctypes.c_void_p(pages.ctypes.data),
            ctypes.c_void_p(None if nodes is None else nodes.ctypes.data),
            ctypes.c_void_p(status.ctypes.data),
            ctypes.c_int(flags),
        )
        if returned < 0:
            return MoveResult(errno=ctypes.get_errno(), not_moved=0, status=status)
        return MoveResult(errno=0, not_moved=int(returned), status=status)

    def touch(self, pid: int, addresses: NDArray[np.uint64]) -> int:
        """Read one byte at each address of another process with process_vm_readv(2); `addresses` uint64[n], n <= 1024.

        Return the errno, 0 for none. The read faults a page in for good that a NUMA hint has marked, as the process's
        own read would. It ends at the first address that cannot be read.
        """
        bytes_read = np.empty(addresses.size, dtype=np.uint8)
        remote = np.empty((addresses.size, 2), dtype=np.uint64)
        remote[:, 0], remote[:, 1] = addresses, 1
        local = np.array([[bytes_read.ctypes.data, addresses.size]], dtype=np.uint64)
        ctypes.set_errno(0)
        returned = self._libc.process_vm_readv(
            ctypes.c_int(pid),
            ctypes.c_void_p(local.ctypes.data),
            ctypes.c_ulong(1),
            ctypes.c_void_p(remote.ctypes.data),
            ctypes.c_ulong(addresses.size),
            ctypes.c_ulong(0),
        )
        return ctypes.get_errno() if returned < 0 else 0

    def read_memory(self, pid: int, address: int, length: int) -> bytes:
        """Return up to `length` bytes of another process's memory, from /proc/PID/mem; raises OSError."""
        descriptor = os.open(self.process(pid, "mem"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, length, address)
        finally:
            os.close(descriptor)

    def shared_file(self, pid: int, mapping: Mapping) -> SharedFile:
        """Open the file behind a shared mapping of a process; raises OSError."""
        return open_shared(self.proc / str(pid), mapping)

    def collapse(self, pidfd: int, address: int, length: int) -> int:
        """Ask the kernel to make transparent huge pages of a range of another process, with process_madvise(2).

        Return the errno, 0 for none. It takes memory where most of the range is (mm/khugepaged.c, madvise_collapse).
        """
        vector = np.array([[address, length]], dtype=np.uint64)
        ctypes.set_errno(0)
        returned = self._libc.syscall(
            ctypes.c_long(_PROCESS_MADVISE_NUMBER),
            ctypes.c_int(pidfd),
            ctypes.c_void_p(vector.ctypes.data),
            ctypes.c_ulong(1),
            ctypes.c_int(MADV_COLLAPSE),
            ctypes.c_uint(0),
        )
        return ctypes.get_errno() if returned < 0 else 0

    def huge_page_size(self) -> int:
        """Return the bytes of a transparent huge page; 2 MiB where the kernel has none."""
        try:
            return int(self.read(self.sys / "kernel/mm/transparent_hugepage/hpage_pmd_size"))
        except OSError:
            return 2 << 20

    def own_page(self) -> NDArray[np.uint64]:
        """Return the address, uint64[1], of a page of this process that is present."""
        status = np.ones(1, dtype=np.int64)
        self._kept = status
        return np.array([status.ctypes.data], dtype=np.uint64)

    def open_pidfd(self, pid: int) -> int:
        """Return a pidfd (pidfd_open(2)); raises ProcessLookupError when there is no such process."""
        return os.pidfd_open(pid)

    def has_ended(self, pidfd: int) -> bool:
        """Say whether the process behind a pidfd has terminated: it polls readable then (pidfd_open(2))."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self, descriptor: int) -> None:
        """Close a file descriptor."""
        os.close(descriptor)

    def open_files(self, pid: int) -> tuple[str, ...]:
        """Return what the process's file descriptors name, sorted, each once; raises OSError."""
        names: set[str] = set()
        directory = self.process(pid, "fd")
        for name in self.names(directory):
            try:
                names.add(str((directory / name).readlink()))
            except FileNotFoundError:
                continue
        return tuple(sorted(names))

    def set_affinity(self, thread_id: int, cpus: Collection[int]) -> None:
        """Let one thread run on these CPUs only (sched_setaffinity(2)); raises OSError."""
        os.sched_setaffinity(thread_id, cpus)

    def own_affinity(self) -> frozenset[int]:
        """Return the CPUs the calling thread may run on."""
        return frozenset(os.sched_getaffinity(0))

    def set_own_affinity(self, cpus: Collection[int]) -> None:
        """Let the calling thread run on these CPUs only; raises OSError."""
        os.sched_setaffinity(0, cpus)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class KeptFile:
    """A small file below /proc or /sys that stays open, and says each time anew what is so now."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self) -> str:
        """Return its text; raises OSError."""
        return os.pread(self._descriptor, _AT_ONCE, 0).decode(errors="replace")

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


class MoveResult:
    """What one move_pages(2) came to.

    `errno` is 0 when the call returned; `not_moved` is what it returned then, the pages that failed in the copy phase
    and those after them; `status` int32[n] holds a NUMA node, a negative errno or UNWRITTEN for each page.
    """

    __slots__ = ("errno", "not_moved", "status")

    def __init__(self, *, errno: int, not_moved: int, status: NDArray[np.int32]) -> None:
        self.errno = errno
        self.not_moved = not_moved
        self.status = status
