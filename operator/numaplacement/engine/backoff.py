# SPDX-License-Identifier: Apache-2.0
"""Whether to move on, in smaller chunks or not for a while, by what the VM and the target's neighbours feel. Pure.

Our own calls do not look like pressure by themselves: a vCPU that touches a page on its way sleeps in
mm/filemap.c, migration_entry_wait_on_locked, which counts as memory pressure only for a page not read in yet and never
as waiting for a CPU. What does show is what a move must not do: make others reclaim, or take the vCPUs' CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

AT_MOST_EVERY = 0.25
"""Seconds between two samples at least."""
LEAST_SHARE = 1 / 8
_CALM = 2
"""Samples without pressure, one after the other, that ease the pace by one step: so it does not flap."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was counted so far, in seconds; a signal that cannot be read is None or not in the table.

    `some` and `full` are the memory pressure of the VM, or of the whole host when not `of_vm`
    (Documentation/accounting/psi.rst); `kswapd` the time a NUMA node's kswapd has run; `waits` that of each thread
    which was ready to run and had no CPU: of vCPUs, or of any threads of the VM when not `of_vcpus`.
    """

    of_vm: bool = True
    of_vcpus: bool = True
    some: float | None = None
    full: float | None = None
    kswapd: Mapping[int, float] = field(default_factory=dict)
    waits: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Wait `pause` seconds, then move chunks of `share` of their size. `reason` is empty when all is well."""

    pause: float = 0.0
    share: float = 1.0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Shares of the time, above what was there before the move, from which on a signal halves or pauses.

    `first` and `longest` are the seconds of the first pause and of the longest. `heals` says whether waiting helps
    when the pressure is not of our making: it does not get a vCPU the CPU another VM is using, nor a container far from
    the target the memory it lacks.
    """

    halve: float
    pause: float
    first: float = 0.25
    longest: float = 5.0
    heals: bool = True


SOME = Limit(halve=0.05, pause=0.10)
FULL = Limit(halve=0.01, pause=0.05)
KSWAPD = Limit(halve=0.01, pause=0.05)
HOST_SOME = replace(SOME, heals=False)
HOST_FULL = replace(FULL, heals=False)
WAIT = Limit(halve=0.10, pause=0.25, longest=1.0, heals=False)

Signal = tuple[str, int]
"""Which signal, and the NUMA node or thread it is of."""
_LIMITS = {
    "some": SOME,
    "full": FULL,
    "host some": HOST_SOME,
    "host full": HOST_FULL,
    "kswapd": KSWAPD,
    "wait": WAIT,
    "thread wait": WAIT,
}


@dataclass(frozen=True, kw_only=True)
class _Rise:
    signal: Signal
    share: float
    before: float
    limit: Limit

    @property
    def halves(self) -> bool:
        return self.share - self.before >= self.limit.halve


def shares(previous: Sample, now: Sample, seconds: float) -> dict[Signal, float]:
    """Return which share of the seconds between two samples each signal was there, for those in both samples."""
    return {signal: max(0.0, grown) / seconds for signal, grown in _grown(previous, now)} if seconds > 0 else {}


def _grown(previous: Sample, now: Sample) -> Iterator[tuple[Signal, float]]:
    if previous.of_vm == now.of_vm:
        for name, before, after in (("some", previous.some, now.some), ("full", previous.full, now.full)):
            if before is not None and after is not None:
                yield (name if now.of_vm else f"host {name}", 0), after - before
    wait = "wait" if now.of_vcpus else "thread wait"
    for name, was, became in (("kswapd", previous.kswapd, now.kswapd), (wait, previous.waits, now.waits)):
        for number in was.keys() & became.keys():
            yield (name, number), became[number] - was[number]


@dataclass
class BackOff:
    """Decides the pace of a run from one sample to the next; `baseline` is what shares() said before the move.

    Pressure of the pausing kind pauses, each time twice as long up to the limit's longest, and then some is moved all
    the same: a move never stops for ever, its deadline decides. The time of a pause shows what there is without us.
    What heals is waited for until it is gone or the longest pause is over; the rest becomes the baseline.
    """

    baseline: dict[Signal, float] = field(default_factory=dict)
    _length: float = 0.0
    _share: float = 1.0
    _calm: int = 0
    _waited: float = 0.0

    def decide(self, previous: Sample, now: Sample, seconds: float) -> Pace:
        """Return the pace from `now` on. `seconds` are those between the samples; they span a pause told before."""
        found = shares(previous, now, seconds)
        if self._waited:
            self._learn(found)
        rises = [
            _Rise(signal=signal, share=share, before=self.baseline.get(signal, 0.0), limit=_LIMITS[signal[0]])
            for signal, share in found.items()
        ]
        rises = [rise for rise in rises if rise.halves]
        if self._waited:
            return self._after_pause([rise for rise in rises if rise.limit.heals], seconds)
        worst = max(rises, key=_weight, default=None)
        if worst is None:
            self._ease()
            return Pace(share=self._share)
        self._calm = 0
        self._share = max(LEAST_SHARE, self._share / 2)
        if _weight(worst) >= 1:
            return self._pause(worst, seconds)
        return Pace(share=self._share, reason=f"goes slower: {_told(worst, seconds)}")

    def _learn(self, found: Mapping[Signal, float]) -> None:
        for signal, share in found.items():
            if not _LIMITS[signal[0]].heals:
                self.baseline[signal] = (self.baseline.get(signal, 0.0) + share) / 2

    def _after_pause(self, rises: list[_Rise], seconds: float) -> Pace:
        worst = max(rises, key=_weight, default=None)
        if worst is not None and self._waited < worst.limit.longest:
            return self._pause(worst, seconds)
        self._waited = 0.0
        return Pace(share=self._share)

    def _pause(self, worst: _Rise, seconds: float) -> Pace:
        limit = worst.limit
        self._length = min(limit.longest, max(limit.first, self._length * 2))
        pause = min(self._length, limit.longest - self._waited)
        self._waited += pause
        return Pace(pause=pause, share=self._share, reason=f"waits: {_told(worst, seconds)}")

    def _ease(self) -> None:
        self._calm += 1
        if self._calm == _CALM:
            self._calm = 0
            self._length /= 2
            self._share = min(1.0, self._share * 2)


def _weight(rise: _Rise) -> float:
    """Return how far it is on the way to a pause; 1 and above pauses."""
    return (rise.share - rise.before) / rise.limit.pause


def _told(rise: _Rise, seconds: float) -> str:
    name, number = rise.signal
    seen = f"{rise.share:.0%} of the last {seconds:.1f} s"
    before = f" ({rise.before:.0%} without the move)" if rise.before >= rise.limit.halve else ""
    what = {
        "some": "memory pressure of the VM",
        "full": "memory pressure on all tasks of the VM",
        "host some": "memory pressure of the host",
        "host full": "memory pressure on all tasks of the host",
        "kswapd": f"the kernel took memory back on NUMA node {number} for",
        "wait": f"vCPU thread {number} was without a CPU",
        "thread wait": f"thread {number} of the VM was without a CPU",
    }
    return f"{what[name]} {seen}{before}"
