# SPDX-License-Identifier: Apache-2.0
"""Holds a NUMA node's free memory on the emulated host but a rest: ``python -m tests.rig.hog NUMA_NODE MEBIBYTES``.

Prints a line when it holds it, and holds it until it is killed.
"""

import ctypes
import mmap
import re
import signal
import sys
from pathlib import Path

MPOL_PREFERRED = 1  # MPOL_BIND would have the hog OOM-killed at its node's limit instead of going elsewhere
SET_MEMPOLICY = 238  # x86-64
MASK_BITS = 64


def free_bytes(numa_node: int) -> int:
    """Return what is free on a NUMA node."""
    text = Path(f"/sys/devices/system/node/node{numa_node}/meminfo").read_text()
    match = re.search(r"MemFree:\s+(\d+) kB", text)
    assert match is not None
    return int(match[1]) * 1024


def main(numa_node: int, leave: int) -> None:
    """Take all but `leave` bytes and wait."""
    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.c_ulong(1 << numa_node)
    if libc.syscall(SET_MEMPOLICY, MPOL_PREFERRED, ctypes.byref(mask), MASK_BITS):
        raise OSError(ctypes.get_errno(), "set_mempolicy")
    held = []
    while (size := free_bytes(numa_node) - leave) > 1 << 20:
        area = mmap.mmap(-1, size)
        area.madvise(mmap.MADV_POPULATE_WRITE if hasattr(mmap, "MADV_POPULATE_WRITE") else 23)
        held.append(area)
    print(f"holding, {free_bytes(numa_node) >> 20} MiB left free", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) << 20)
