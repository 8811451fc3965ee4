# SPDX-License-Identifier: Apache-2.0
"""The cgroup v2 a process belongs to, as a directory that can be read and written (cgroups(7)).

Threads of one process may be in several cgroups, all below the same one of type "domain threaded": KubeVirt keeps
QEMU's threads but the vCPUs in a threaded child `housekeeping`, libvirt one for each vCPU. What is said of the process
as a whole, its memory above all, is said by that domain.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .kernel import Kernel
from .process import cgroup_path
from .surveyor import reading

_OF_ONE_CONTAINER = re.compile(r"(^|[/-])pod[0-9a-f]{8}[-_][0-9a-f]{4}[-_]|/machine-[^/]+\.scope(/|$)")
"""Paths of cgroups that belong to one pod (kubelet's names, both spellings of the UID) or one machine of systemd's."""


class NoCgroup(Exception):
    """The cgroup of a process cannot be found; the message is one clause of why, and `remedy` what to do."""

    def __init__(self, evidence: str, remedy: str) -> None:
        super().__init__(evidence)
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class Container:
    """The cgroup of a process.

    `directory` is that of the domain, `inner` those below it that hold threads of the process, parents first.
    `processes` are all in the domain, as this process sees their ids; `dedicated` says whether the path is that of a
    container or a machine, whose processes all belong together.
    """

    directory: Path
    inner: tuple[Path, ...] = ()
    processes: frozenset[int] = frozenset()
    dedicated: bool = False


def find_container(pid: int, kernel: Kernel) -> Container:
    """Return the cgroup of a process. Raises NoCgroup and ProcessEnded."""
    directories = {_locate(path, thread, kernel) for path, thread in _paths(pid, kernel).items()}
    domains = {_domain(directory, kernel) for directory in directories}
    if len(domains) != 1:
        raise NoCgroup("the process changes its cgroup right now", "Try again.")
    domain = domains.pop()
    inner = {directory for leaf in directories for directory in _between(domain, leaf)}
    return Container(
        directory=domain,
        inner=tuple(sorted(inner, key=lambda path: (len(path.parts), path))),
        processes=_ids(domain / "cgroup.procs", kernel),
        dedicated=bool(_OF_ONE_CONTAINER.search(str(domain.relative_to(_root(kernel))))),
    )


def _paths(pid: int, kernel: Kernel) -> dict[str, int]:
    """Return the cgroups that hold threads of a process, each with one of these threads."""
    with reading(pid):
        threads = sorted(map(int, kernel.names(kernel.process(pid, "task"))))
    paths: dict[str, int] = {}
    for thread in threads:
        try:
            text = kernel.read(kernel.process(pid, "task") / str(thread) / "cgroup")
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            evidence = f"the cgroup of thread {thread} cannot be read: {error}"
            raise NoCgroup(evidence, "Mount the host's /proc.") from error
        paths.setdefault(cgroup_path(text), thread)
    if not paths or "" in paths:
        raise NoCgroup("the process is in no cgroup v2", "Run the host with cgroup v2 alone (the unified hierarchy).")
    return paths


def _locate(path: str, thread: int, kernel: Kernel) -> Path:
    """Return the directory of a cgroup, and be sure of it: it is the one that lists the thread.

    A path that climbs out of this process's own cgroup namespace (/../..) cannot be opened, but what follows the
    climbing is the end of the real path: cgroup_namespaces(7).
    """
    root = _root(kernel)
    end = path.lstrip("/")
    climbs = end.startswith("..")
    while end.startswith(".."):
        end = end[2:].lstrip("/")
    candidates = _ending_in(root, end) if climbs else iter([root / end])
    for directory in candidates:
        if thread in _ids(directory / "cgroup.threads", kernel):
            return directory
    raise NoCgroup(
        f"no directory below {root} is the process's cgroup {path}",
        "Mount the host's /sys/fs/cgroup into this program's container.",
    )


def _ending_in(root: Path, end: str) -> Iterator[Path]:
    """Yield the directories below the root whose path ends in these parts."""
    first, _, rest = end.partition("/")
    for above, names, _ in os.walk(root):
        if first in names:
            yield Path(above) / first / rest if rest else Path(above) / first


def _domain(directory: Path, kernel: Kernel) -> Path:
    """Return the nearest cgroup from here upwards that is no threaded one."""
    while directory != _root(kernel) and _text(directory / "cgroup.type", kernel) == "threaded":
        directory = directory.parent
    return directory


def _between(domain: Path, leaf: Path) -> Iterator[Path]:
    """Yield the directories below the domain down to a leaf."""
    while leaf != domain:
        yield leaf
        leaf = leaf.parent


def _ids(path: Path, kernel: Kernel) -> frozenset[int]:
    return frozenset(int(word) for word in _text(path, kernel).split())


def _text(path: Path, kernel: Kernel) -> str:
    """Return the text of a file, empty where it is not there or says nothing (cgroup.procs of a threaded cgroup)."""
    try:
        return kernel.read(path).strip()
    except OSError:
        return ""


def _root(kernel: Kernel) -> Path:
    return kernel.sys / "fs/cgroup"
