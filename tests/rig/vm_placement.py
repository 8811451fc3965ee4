# SPDX-License-Identifier: Apache-2.0
"""Puts a new VM's threads and memory where its spec wants them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rig.vm_memory import VmError
from tests.rig.vm_spec import HUGE_PAGE

_NR_MOVE_PAGES = 279
_MPOL_MF_MOVE = 2


@contextmanager
def numa_balancing_off() -> Iterator[None]:
    """While memory is being placed: AutoNUMA's scan hides pages from move_pages (ENOENT, EFAULT) and moves some of its
    own accord.
    """
    setting = Path("/proc/sys/kernel/numa_balancing")
    before = setting.read_text()
    setting.write_text("0")
    try:
        yield
    finally:
        setting.write_text(before)


def let_run_anywhere(*pids: int) -> None:
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), range(os.cpu_count() or 1))


def spread(pid: int, address: int, size: int, *, numa_nodes: tuple[int, ...], page_size: int) -> None:
    """Move equal parts of a stopped VM's RAM to the given nodes, in their order; parts begin at 2 MiB borders.

    Raises VmError when a page cannot be brought where it should be.
    """
    blocks = size // HUGE_PAGE
    for position, node in enumerate(numa_nodes):
        first, last = (blocks * part // len(numa_nodes) * HUGE_PAGE for part in (position, position + 1))
        if position == len(numa_nodes) - 1:
            last = size
        wrong = list(range(address + first, address + last, page_size))
        before = len(wrong) + 1
        while wrong := [
            page for page, found in zip(wrong, _move_pages(pid, wrong, None), strict=True) if found != node
        ]:
            if len(wrong) >= before:
                raise VmError(f"{len(wrong)} pages of the VM do not go to NUMA node {node}")
            before = len(wrong)
            # The kernel ends a call at the first page it cannot move, and cannot move a huge page a second time in one
            # call, so first one address for each of those.
            _move_pages(pid, [page for page in wrong if page % HUGE_PAGE == 0] or wrong, node)


def _move_pages(pid: int, addresses: list[int], numa_node: int | None) -> list[int]:
    """move_pages(2) to a NUMA node; with None the NUMA node (or negative errno) where each page is."""
    count = len(addresses)
    pages = (ctypes.c_void_p * count)(*addresses)
    nodes = None if numa_node is None else (ctypes.c_int * count)(*[numa_node] * count)
    status = (ctypes.c_int * count)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_NR_MOVE_PAGES, pid, ctypes.c_ulong(count), pages, nodes, status, _MPOL_MF_MOVE) < 0:
        raise VmError(f"move_pages for process {pid}: {os.strerror(ctypes.get_errno())}")
    return list(status)
