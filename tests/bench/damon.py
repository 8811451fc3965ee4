# SPDX-License-Identifier: Apache-2.0
"""The kernel's own mover: DAMON's scheme migrate_cold over the address space of one process (newest kernels).

It is told of one NUMA node to move to, and says of no page whether it moved or why not; what it did is seen in
numa_maps. Documentation/admin-guide/mm/damon/usage.rst.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from .subject import Subject

ADMIN = Path("/sys/kernel/mm/damon/admin/kdamonds")
STATISTICS = Path("/sys/module/damon_stat/parameters/enabled")
_AGGREGATION = 100_000
"""Microseconds between two applications of the scheme: the kernel's default."""
_SETTLED = 10.0
"""Seconds without a page moving after which it is taken to have done what it does. Beside a writer it begins late."""
_LIMIT = 60.0


def available() -> bool:
    """Say whether this kernel can do it."""
    return ADMIN.exists()


def move(subject: Subject, _source: int, target: int) -> float:
    """Let DAMON move a process's memory to a NUMA node; return the seconds until the last page that moved.

    Where none does, it is all the seconds that were waited for one.
    """
    begin = time.monotonic()
    with _kdamond(subject.pid, target):
        left = all_of_it = subject.off(target)
        last = begin
        while left and time.monotonic() - last < _SETTLED and time.monotonic() - begin < _LIMIT:
            time.sleep(0.02)
            now = subject.off(target)
            if now != left:
                left, last = now, time.monotonic()
    return (last if 0 < left < all_of_it else time.monotonic()) - begin


@contextlib.contextmanager
def _kdamond(pid: int, target: int) -> Iterator[None]:
    if STATISTICS.exists():  # it watches the whole host, and keeps all others out
        _write(STATISTICS, "N")
    _write(ADMIN / "nr_kdamonds", 1)
    kdamond = ADMIN / "0"
    _write(kdamond / "contexts/nr_contexts", 1)
    context = kdamond / "contexts/0"
    _write(context / "operations", "vaddr")
    _write(context / "monitoring_attrs/intervals/aggr_us", _AGGREGATION)
    _write(context / "targets/nr_targets", 1)
    _write(context / "targets/0/pid_target", pid)
    _write(context / "schemes/nr_schemes", 1)
    scheme = context / "schemes/0"
    _write(scheme / "action", "migrate_cold")
    _write(scheme / "target_nid", target)
    for name, most in (("sz", 1 << 62), ("nr_accesses", 1 << 30), ("age", 1 << 30)):
        _write(scheme / f"access_pattern/{name}/min", 0)
        _write(scheme / f"access_pattern/{name}/max", most)
    _write(kdamond / "state", "on")
    try:
        yield
    finally:
        _write(kdamond / "state", "off")
        _write(ADMIN / "nr_kdamonds", 0)


def _write(path: Path, value: object) -> None:
    path.write_text(str(value))
