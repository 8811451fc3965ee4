# SPDX-License-Identifier: Apache-2.0
"""Faults at the shell over the kernel: which calls there are, and what each can end with by its man page."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from numaplacement.engine import lockfiles, pagemap
from numaplacement.engine.kernel import UNWRITTEN, Kernel, MoveResult

E = errno
_OPEN = (E.EACCES, E.EPERM, E.ENOENT, E.EMFILE, E.ENFILE, E.ENOMEM)
_READ = (*_OPEN, E.ESRCH, E.EIO, E.EINVAL, E.EAGAIN)
ERRORS: dict[str, tuple[int, ...]] = {
    "read": _READ,
    "write": (*_OPEN, E.EROFS, E.EIO, E.EINVAL, E.EBUSY, E.ENOSPC, E.ENODEV, E.EAGAIN),
    "names": (*_OPEN, E.ESRCH, E.EIO),
    "open_files": (*_OPEN, E.ESRCH, E.EIO),
    "read_memory": (*_OPEN, E.ESRCH, E.EIO, E.EFAULT),
    "word_open": (*_OPEN, E.ESRCH),
    "word_read": (E.EIO, E.EINVAL, E.EPERM, E.ESRCH, E.ENOMEM, E.EFAULT),
    "locate_pages": (E.EPERM, E.EACCES, E.ESRCH, E.EINVAL, E.ENOMEM, E.EFAULT, E.E2BIG, E.ENOENT, E.ENOSYS),
    "move_pages": (
        E.EPERM, E.EACCES, E.ESRCH, E.EINVAL, E.ENOMEM, E.EFAULT, E.E2BIG, E.ENOENT, E.ENOSYS, E.ENODEV, E.EIO,
    ),
    "touch": (E.EFAULT, E.EINVAL, E.ENOMEM, E.EPERM, E.ESRCH, E.ENOSYS),
    "collapse": (E.EBADF, E.EFAULT, E.EINVAL, E.ENOMEM, E.EPERM, E.ESRCH, E.EAGAIN, E.EBUSY, E.ENOSYS),
    "open_pidfd": (E.EINVAL, E.EMFILE, E.ENFILE, E.ENODEV, E.ENOMEM, E.EPERM, E.ESRCH, E.ENOSYS),
    "has_ended": (E.ENOMEM, E.EFAULT, E.EINVAL),
    "set_affinity": (E.EINVAL, E.EPERM, E.ESRCH, E.EFAULT),
    "set_own_affinity": (E.EINVAL, E.EPERM, E.EFAULT),
    "ledger open": (*_OPEN, E.ENOSPC, E.EROFS, E.EIO),
    "ledger pread": (E.EIO, E.EINVAL, E.EISDIR),
    "ledger pwrite": (E.EIO, E.ENOSPC, E.EDQUOT, E.EFBIG),
    "ledger unlink": (E.EACCES, E.EIO, E.EROFS, E.ENOENT, E.EBUSY),
    "ledger scandir": (E.EMFILE, E.ENFILE, E.ENOMEM, E.EIO),
    "ledger fstat": (E.ENOMEM, E.EIO),
    "ledger flock": (E.ENOLCK, E.EINTR, E.EINVAL),
}  # fmt: skip
"""move_pages(2), process_madvise(2), process_vm_readv(2), pidfd_open(2), poll(2), sched_setaffinity(2), flock(2),
open(2), read(2), write(2), getdents(2), unlink(2), stat(2), proc(5)."""
_IN_RESULT = frozenset({"locate_pages", "move_pages"})
_RETURNED = frozenset({"touch", "collapse"})


@dataclass(frozen=True)
class Fault:
    """At its n-th call (from 1) a site ends with an errno; `lasting` for that and every later one."""

    site: str
    at: int
    number: int
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.site} #{self.at}{'+' * self.lasting} {errno.errorcode[self.number]}"


@dataclass
class Faults:
    """Counts the calls of all sites, and has one of them fail."""

    fault: Fault | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def of(self, site: str) -> int:
        """Return the errno with which this call is to end, 0 for none."""
        self.counts[site] += 1
        fault = self.fault
        if fault is None or fault.site != site:
            return 0
        count = self.counts[site]
        return fault.number if count == fault.at or (fault.lasting and count > fault.at) else 0

    def see(self, site: str, path: object = None) -> None:
        """Count a call, and raise what it is to end with."""
        number = self.of(site)
        if number:
            raise OSError(number, os.strerror(number), *([str(path)] if path else []))

    def everywhere(self, *, latest: int = 2) -> Iterator[Fault]:
        """Yield each fault there can be at the first calls and the last of each site seen, once and lasting."""
        for site, count in sorted(self.counts.items()):
            for at in sorted({*range(1, min(latest, count) + 1), count}):
                for number in ERRORS[method_of(site)]:
                    yield Fault(site, at, number)
                    yield Fault(site, at, number, lasting=True)

    def each_errno(self) -> Iterator[Fault]:
        """Yield one fault for each site and errno: calls, and whether it lasts, take turns."""
        turns = itertools.count()
        found = sorted(self.everywhere(), key=lambda fault: (fault.site, fault.number))
        for _, faults in itertools.groupby(found, lambda fault: (fault.site, fault.number)):
            each = list(faults)
            yield each[next(turns) % len(each)]

    def some(self) -> Iterator[Fault]:
        """Yield one fault for each site and call that everywhere() does: the errnos take turns."""
        turns = itertools.count()
        for _, faults in itertools.groupby(self.everywhere(), lambda fault: (fault.site, fault.at)):
            each = list(faults)
            yield each[next(turns) % len(each)]


def method_of(site: str) -> str:
    """Return the key of ERRORS for a site: sites of files have the path behind it."""
    return site if site in ERRORS else site.partition(" ")[0]


def put_faults(kernel: Kernel, faults: Faults) -> None:
    """Have the methods of a kernel's shell fail."""

    def failing(method: str, original: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        files = method in {"read", "write", "names"}
        path = arguments[0] if files else None
        site = f"{method} {re.sub(r'[0-9]+', 'N', str(path.relative_to(kernel.proc.parent)))}" if path else method
        if method not in _IN_RESULT | _RETURNED:
            faults.see(site, path)
            return original(*arguments, **more)
        number = faults.of(site)
        if not number:
            return original(*arguments, **more)
        if method in _RETURNED:
            return number
        return MoveResult(errno=number, not_moved=0, status=np.full(arguments[1].size, UNWRITTEN, dtype=np.int32))

    for method in ERRORS:
        if hasattr(Kernel, method):
            setattr(kernel, method, partial(failing, method, getattr(kernel, method)))


def put_faults_in_files(monkeypatch: Any, faults: Faults) -> None:
    """Have pagemap's calls fail, and those of the ledger."""

    def failing(site: str, original: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        path = arguments[0] if arguments and isinstance(arguments[0], Path) else None
        faults.see(site, path)
        return original(*arguments, **more)

    def calls(module: ModuleType, sites: dict[str, str]) -> SimpleNamespace:
        mocked = {name: partial(failing, site, getattr(module, name)) for name, site in sites.items()}
        return SimpleNamespace(**{**vars(module), **mocked})

    monkeypatch.setattr(pagemap, "os", calls(os, {"open": "word_open", "preadv": "word_read"}))
    names = ("open", "pread", "pwrite", "unlink", "scandir", "fstat")
    monkeypatch.setattr(lockfiles, "os", calls(os, {name: f"ledger {name}" for name in names}))
    monkeypatch.setattr(lockfiles, "fcntl", calls(lockfiles.fcntl, {"flock": "ledger flock"}))
