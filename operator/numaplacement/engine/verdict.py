# SPDX-License-Identifier: Apache-2.0
"""What is asked of the engine and what it answers, as plain data."""

from __future__ import annotations

import enum
from collections.abc import Mapping as Table
from dataclasses import dataclass, field
from typing import Protocol

from .reasons import Reason


class PageClass(enum.StrEnum):
    """What kind of page memory is made of."""

    ANON = "Anon"
    ANON_HUGE = "AnonHuge"
    SHMEM = "Shmem"
    FILE = "File"
    HUGETLB = "Hugetlb"
    SWAPPED = "Swapped"


NO_NUMA_NODE = -1
"""Where memory is that is swapped out, and what a note is about that concerns the whole host."""


class Allow(enum.StrEnum):
    """What a run may do that is not harmless."""

    RECLAIM = "Reclaim"
    GROW_HUGE_PAGES = "GrowHugePages"
    REBIND_CPUSET = "RebindCpuset"
    STRICT_BINDING = "StrictBinding"
    REALTIME = "Realtime"
    PINNED_PART = "PinnedPart"


class Outcome(enum.StrEnum):
    """How a run ended."""

    PLACED = "Placed"
    RESIDUE = "Residue"
    REFUSED = "Refused"
    PLANNED = "Planned"
    CANCELLED = "Cancelled"
    DEADLINE = "DeadlineExceeded"
    PROCESS_GONE = "ProcessGone"


class Stage(enum.StrEnum):
    """What a run is doing."""

    SURVEY = "Survey"
    THREADS = "Threads"
    MOVE = "Move"
    VERIFY = "Verify"
    STAY = "Stay"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Move the memory of one process to one NUMA node, or that of guest cells to one each.

    Exactly one of `target` and `cells` (guest cell to NUMA node) is given. `movers` are the threads that move at once.
    `call_latency` is the 99th percentile of one kernel call to aim at, in seconds; `bandwidth` the most bytes per
    second, or None for no limit; `deadline` the most seconds from the start. Residue of at most `tolerance_bytes` plus
    `tolerance_share` of what is asked still counts as placed.
    """

    target: int | None = None
    cells: Table[int, int] = field(default_factory=dict)
    allow: frozenset[Allow] = frozenset()
    movers: int = 2
    follow_threads: bool = True
    dry_run: bool = False
    call_latency: float = 0.020
    bandwidth: int | None = None
    deadline: float = 600.0
    tolerance_bytes: int = 0
    tolerance_share: float = 0.0


@dataclass(frozen=True, order=True)
class ClassBytes:
    """Bytes of one page class on one NUMA node."""

    numa_node: int
    page_class: PageClass
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ResidueRow:
    """Memory that is not on target, why, and what can be done. `evidence` says what was seen, not what is guessed."""

    reason: Reason
    numa_node: int
    bytes: int
    permanent: bool
    evidence: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something to know that is no residue, such as huge pages that were split; `bytes` 0 where none are meant."""

    reason: Reason
    numa_node: int = NO_NUMA_NODE
    bytes: int = 0
    evidence: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why nothing was touched: one sentence of what was seen, and what can be done."""

    reason: Reason
    evidence: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class ThreadOutcome:
    """What became of the process's threads; `cpus` are those the followers were given.

    `earlier` are the CPUs that threads had before they were given others, by thread id.
    """

    followed: int = 0
    left: int = 0
    cpus: frozenset[int] = frozenset()
    message: str = ""
    earlier: tuple[tuple[int, frozenset[int]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class CallTimes:
    """Durations of the kernel calls that moved memory, in seconds."""

    count: int = 0
    p50: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was done and what the kernel says afterwards.

    The sums close: bytes of `before` - `freed` + `grown` = bytes of `after`, and the bytes of `after` that are not on
    target are those of `residue`. `asked` is `after` without the residue of `reasons.NOT_ASKED`: page cache that other
    processes map too, and memory of the kernel or a device that the process maps (such as KVM's page for each vCPU).
    That is not the process's own memory; it is left alone, stands in `residue` and does not count against the
    tolerance.

    `refusals` is empty unless the outcome is Refused, and then has the first reason first. `split` are bytes that were
    in transparent huge pages before and are in base pages after. `stayed` says whether the memory was still on target
    after two scans of AutoNUMA; None where nobody has looked.
    """

    outcome: Outcome
    message: str
    before: tuple[ClassBytes, ...] = ()
    after: tuple[ClassBytes, ...] = ()
    asked: int = 0
    on_target: int = 0
    moved: int = 0
    freed: int = 0
    grown: int = 0
    split: int = 0
    residue: tuple[ResidueRow, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[Note, ...] = ()
    stayed: bool | None = None
    threads: ThreadOutcome = ThreadOutcome()
    calls: CallTimes = CallTimes()
    seconds: float = 0.0
    move_seconds: float = 0.0
    passes: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    `call_p99` is the 99th percentile of the calls so far, in seconds; `waiting` says for what the run waits.
    """

    stage: Stage
    pass_number: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second: int = 0
    call_p99: float = 0.0
    waiting: str = ""


class Watcher(Protocol):
    """Whoever follows a run; both are called between two kernel calls, from the run's own thread."""

    def progressed(self, progress: Progress, /) -> None:
        """Take note of how far the run is."""

    def cancelled(self) -> bool:
        """Say whether the run is to end before the next kernel call."""
