# SPDX-License-Identifier: Apache-2.0
"""Reads what a move may be doing to the VM and to the target's neighbours, and holds the movers back by it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .backoff import AT_MOST_EVERY, BackOff, Pace, Sample, shares
from .kernel import Kernel

_TOTAL = re.compile(r"^(some|full) .*\btotal=(\d+)$", re.MULTILINE)
_MICROSECONDS, _NANOSECONDS = 1e-6, 1e-9
_RAN, _WAITED = 0, 1
"""Fields of schedstat: nanoseconds on a CPU, and ready but without one (Documentation/scheduler/sched-stats.rst)."""
_MOST_VCPUS = 24
"""Threads in a sample, each some 30 microseconds: a sample is to take less than a millisecond."""
_ROUNDING = 0.001
"""Seconds waited too long rather than too short."""
_KTHREADD = "2"
"""Process id of the parent of all kernel threads."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The files a sample is read from; see find_sources()."""

    memory: Path | None = None
    of_vm: bool = True
    of_vcpus: bool = True
    kswapd: Mapping[int, Path] = field(default_factory=dict)
    vcpus: Mapping[int, Path] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.memory or self.kswapd or self.vcpus)


def find_sources(
    kernel: Kernel, *, pid: int, targets: Collection[int], cgroup: str, vcpus: Collection[int], of_vcpus: bool = True
) -> Sources:
    """Find, once for a run, the files sample() reads. What cannot be read is left out.

    `cgroup` is the VM's as cgroup_path() returns it; where it cannot be read, the pressure of the whole host is taken.
    `vcpus` are thread ids of process `pid`, all of them when it is not known which run vCPUs (not `of_vcpus`); of more
    than _MOST_VCPUS, every second or third is watched. Kernels up to
    6.18 do not count reclaim by NUMA node (nodeN/vmstat has no pgscan): what is read is how long the NUMA node's own
    kswapd has run.
    """
    memory, of_vm = _memory_pressure(kernel, cgroup)
    threads = sorted(vcpus)[:: max(1, -(-len(vcpus) // _MOST_VCPUS))]
    tasks = {thread: kernel.process(pid, "task") / str(thread) / "schedstat" for thread in threads}
    return Sources(
        memory=memory,
        of_vm=of_vm,
        of_vcpus=of_vcpus,
        kswapd=_counting(kernel, _kswapd(kernel, targets)),
        vcpus=_counting(kernel, tasks),
    )


def sample(kernel: Kernel, sources: Sources) -> Sample:
    """Read the counters now: one small file for each of them."""
    pressure = _pressure(kernel, sources.memory) if sources.memory is not None else {}
    kswapd = {node: _schedstat(kernel, path, _RAN) for node, path in sources.kswapd.items()}
    waits = {thread: _schedstat(kernel, path, _WAITED) for thread, path in sources.vcpus.items()}
    return Sample(
        of_vm=sources.of_vm,
        of_vcpus=sources.of_vcpus,
        some=pressure.get("some"),
        full=pressure.get("full"),
        kswapd={node: seconds for node, seconds in kswapd.items() if seconds is not None},
        waits={thread: seconds for thread, seconds in waits.items() if seconds is not None},
    )


class Throttle:
    """Tells mover threads at which pace to go; all threads of a run share one.

    Made before the VM is looked at; settle(), once that is done and before anything is changed, takes what was there in
    between for the baseline; begin() comes right before the first call.
    """

    def __init__(self, *, kernel: Kernel, sources: Sources, clock: Callable[[], float]) -> None:
        self._kernel = kernel
        self._sources = sources
        self._clock = clock
        self._lock = threading.Lock()
        self._back_off = BackOff()
        self._pace = Pace()
        self._sampled_at = clock()
        self._sample = sample(kernel, sources)
        self._go_at = self._sampled_at

    def settle(self) -> None:
        """Take the time since this was made for what there is without the move.

        That must be a quarter of a second: it waits for what is missing of it, where there is anything to see.
        """
        missing = self._sampled_at + AT_MOST_EVERY - self._clock()
        if missing > 0 and self._sources.any:
            self._kernel.sleep(missing + _ROUNDING)
        with self._lock:
            previous, seconds = self._look(self._clock())
            if seconds >= AT_MOST_EVERY:
                self._back_off.baseline = shares(previous, self._sample, seconds)

    def begin(self) -> None:
        """Look anew: what the preparations did to the VM and its neighbours is over."""
        with self._lock:
            self._look(self._clock())

    def pace(self) -> Pace:
        """Return the pace now; `pause` is what is left of it. Reads the counters when it is time to."""
        with self._lock:
            now = self._clock()
            if now >= max(self._sampled_at + AT_MOST_EVERY, self._go_at):
                previous, seconds = self._look(now)
                self._pace = self._back_off.decide(previous, self._sample, seconds)
                self._go_at = now + self._pace.pause
            return Pace(pause=max(0.0, self._go_at - now), share=self._pace.share, reason=self._pace.reason)

    def _look(self, now: float) -> tuple[Sample, float]:
        """Sample anew; return the sample before and the seconds since."""
        previous, seconds = self._sample, now - self._sampled_at
        self._sample, self._sampled_at = sample(self._kernel, self._sources), now
        return previous, seconds


def _memory_pressure(kernel: Kernel, cgroup: str) -> tuple[Path | None, bool]:
    """Return the memory pressure file to read and whether it is the VM's, or else the host's.

    QEMU's main thread may be in a threaded cgroup below the container's, without the vCPUs (KubeVirt's `housekeeping`).
    """
    if cgroup.startswith("/") and "/.." not in cgroup and cgroup != "/":
        directory = kernel.sys / "fs/cgroup" / cgroup.lstrip("/")
        while _text(kernel, directory / "cgroup.type").strip() == "threaded":
            directory = directory.parent
        if _pressure(kernel, directory / "memory.pressure"):
            return directory / "memory.pressure", True
    host = kernel.proc / "pressure/memory"
    return host if _pressure(kernel, host) else None, False


def _pressure(kernel: Kernel, path: Path) -> dict[str, float]:
    """Return the seconds of stall by kind; empty where the kernel was started without PSI: reading fails then."""
    return {kind: int(total) * _MICROSECONDS for kind, total in _TOTAL.findall(_text(kernel, path))}


def _kswapd(kernel: Kernel, targets: Collection[int]) -> dict[int, Path]:
    """Return the schedstat of the kswapd of each NUMA node, where this process sees the host's process ids."""
    wanted = {f"(kswapd{node})": node for node in targets}
    found: dict[int, Path] = {}
    for pid in _pids(kernel):
        if not wanted:
            break
        name, _, rest = _text(kernel, kernel.process(pid, "stat")).partition(" ")[2].partition(" ")
        if name in wanted and rest.split()[1] == _KTHREADD:
            found[wanted.pop(name)] = kernel.process(pid, "schedstat")
    return found


def _pids(kernel: Kernel) -> list[int]:
    try:
        return sorted(int(name) for name in kernel.names(kernel.proc) if name.isdigit())
    except OSError:
        return []


def _counting(kernel: Kernel, paths: Mapping[int, Path]) -> dict[int, Path]:
    return {number: path for number, path in paths.items() if _schedstat(kernel, path, _RAN) is not None}


def _schedstat(kernel: Kernel, path: Path, index: int) -> float | None:
    """Return one time in seconds; None where there is none: all fields are 0 in a kernel that does not count."""
    fields = _text(kernel, path).split()
    if len(fields) < _WAITED + 1 or set(fields) == {"0"}:
        return None
    return int(fields[index]) * _NANOSECONDS


def _text(kernel: Kernel, path: Path) -> str:
    """Return the text of a file, empty when it cannot be read."""
    try:
        return kernel.read(path)
    except OSError:
        return ""
