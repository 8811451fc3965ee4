# SPDX-License-Identifier: Apache-2.0
"""Our engine against migratepages(8) and a plain loop of move_pages(2) in C, on the same processes in turns.

Runs inside the emulated host; tests/bench/engine.py boots that. Each pair moves the memory of one process from NUMA
node 1 to 0 by one side and back by the other, in turns which goes first, so that both meet the same pages and the same
neighbours. Speeds under emulation mean nothing; the ratios of one run do. Writes engine.json into the folder given.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from numaplacement.engine.kernel import MPOL_MF_MOVE_ALL, Kernel
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Progress, Request, Stage, Verdict

from . import damon
from .subject import PAGE_SIZES, Stalls, Subject, programs, subject

MIB = 1 << 20
FLAT_OUT = 5.0
"""Seconds no call reaches: chunks grow to the greatest size."""


class _Unwatched:
    def progressed(self, progress: Progress, /) -> None:
        pass

    def cancelled(self) -> bool:
        return False


@dataclass(frozen=True)
class Moved:
    """One move: seconds of moving and in all, bytes left behind, what the writer saw, and what our verdict says.

    `unreported` are the bytes of huge pages that were split and that the verdict does not tell of.
    """

    seconds: float
    whole: float
    left: int
    stalls: Stalls | None = None
    p99: float = 0.0
    split: int = 0
    unreported: int = 0
    residue: int = 0


Side = Callable[[Subject, int, int], Moved]
"""Moves a subject's memory from one NUMA node to another."""


def by_us(**wish: object) -> Side:
    """Move with the engine."""

    def move(process: Subject, _source: int, target: int) -> Moved:
        request = Request(target=target, follow_threads=False, **wish)  # type: ignore[arg-type]
        huge = process.huge()
        verdict: Verdict = run(pid=process.pid, request=request, kernel=Kernel(), watcher=_Unwatched())
        return Moved(
            seconds=verdict.move_seconds,
            whole=verdict.seconds,
            left=process.off(target),
            p99=verdict.calls.p99,
            split=verdict.split,
            unreported=max(0, huge - process.huge() - verdict.split),
            residue=verdict.asked - verdict.on_target,
        )

    return move


def by_command(command: Callable[[Subject, int, int], Sequence[object]]) -> Side:
    """Move with another program; its start counts, as it does for whoever runs it."""

    def move(process: Subject, source: int, target: int) -> Moved:
        begin = time.monotonic()
        subprocess.run([str(word) for word in command(process, source, target)], check=True)
        seconds = time.monotonic() - begin
        return Moved(seconds=seconds, whole=seconds, left=process.off(target))

    return move


def by_damon(process: Subject, source: int, target: int) -> Moved:
    """Move with the kernel's own DAMON."""
    seconds = damon.move(process, source, target)
    return Moved(seconds=seconds, whole=seconds, left=process.off(target))


class _CancelsSoon(_Unwatched):
    """Cancels after a quarter of a second of moving."""

    def __init__(self) -> None:
        self.at: float | None = None

    def progressed(self, progress: Progress, /) -> None:
        if progress.stage is Stage.MOVE and self.at is None:
            self.at = time.monotonic() + 0.25

    def cancelled(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at


def seconds_to_cancel(process: Subject, target: int) -> float:
    """Return the seconds from a cancel to the verdict, less those of the survey that proves it."""
    watcher = _CancelsSoon()
    request = Request(target=target, follow_threads=False)
    run(pid=process.pid, request=request, kernel=Kernel(), watcher=watcher)
    ended = time.monotonic()
    assert watcher.at is not None, "it was over before it could be cancelled"
    return ended - watcher.at


def bandwidth_error(process: Subject, target: int, share: float) -> float:
    """Return by how much a move misses a bandwidth of `share` of its size a second, as a share of that."""
    rate = int(process.size * share)
    begin = time.monotonic()
    request = Request(target=target, follow_threads=False, bandwidth=rate)
    verdict = run(pid=process.pid, request=request, kernel=Kernel(), watcher=_Unwatched())
    assert time.monotonic() - begin > verdict.move_seconds
    return verdict.moved / verdict.move_seconds / rate - 1


def in_turns(
    process: Subject, ours: Side, theirs: Side, *, pairs: int, writing: bool
) -> tuple[list[Moved], list[Moved]]:
    """Move to and fro, each side once in each pair, and return what each of them did."""
    done: dict[str, list[Moved]] = {"ours": [], "theirs": []}
    sides = [("ours", ours), ("theirs", theirs)]
    here = 1
    for pair in range(pairs):
        for name, side in sides if pair % 2 == 0 else reversed(sides):
            done[name].append(_one(process, side, here, 1 - here, writing=writing))
            here = 1 - here
            if process.off(here):  # what one side left behind is not the other's to carry
                by_us(call_latency=FLAT_OUT)(process, 1 - here, here)
    return done["ours"], done["theirs"]


def _one(process: Subject, side: Side, source: int, target: int, *, writing: bool) -> Moved:
    if not writing:
        return side(process, source, target)
    process.ask("write")
    moved = side(process, source, target)
    return Moved(**{**{key: getattr(moved, key) for key in moved.__dataclass_fields__}, "stalls": process.rest()})


def compared(name: str, ours: list[Moved], theirs: list[Moved], size: int) -> dict[str, object]:
    """Return medians and ratios of some pairs; a ratio is that of bytes moved a second, ours to theirs.

    There is none to a rival that moves nothing.
    """

    def median(values: list[float]) -> float:
        return statistics.median(values)

    def stall(moves: list[Moved], field: str) -> float:
        return median([getattr(move.stalls, field) for move in moves if move.stalls] or [0.0])

    def rate(moves: list[Moved], field: str = "seconds") -> float:
        return median([(size - each.left) / getattr(each, field) for each in moves])

    def ratio(field: str) -> float | None:
        return round(rate(ours, field) / rate(theirs), 2) if rate(theirs) else None

    return {
        "case": name,
        "pairs": len(ours),
        "ratio": ratio("seconds"),
        "ratio with survey and verdict": ratio("whole"),
        "GiB/s ours": round(rate(ours) / (1 << 30), 3),
        "GiB/s theirs": round(rate(theirs) / (1 << 30), 3),
        "call p99 ms": round(1e3 * median([m.p99 for m in ours]), 1),
        "left ours": max(m.left for m in ours),
        "left theirs": max(m.left for m in theirs),
        "split ours": max(m.split for m in ours),
        "split unreported": max(m.unreported for m in ours),
        "stall p99 us ours": round(1e6 * stall(ours, "p99"), 1),
        "stall p99 us theirs": round(1e6 * stall(theirs, "p99"), 1),
        "stall longest ms ours": round(1e3 * stall(ours, "longest"), 2),
        "stall longest ms theirs": round(1e3 * stall(theirs, "longest"), 2),
        "verdict s": round(median([m.whole - m.seconds for m in ours]), 2),
        "moves": {"ours": [asdict(m) for m in ours], "theirs": [asdict(m) for m in theirs]},
    }


def _facts(process: Subject) -> dict[str, object]:
    """Measure what has no rival: the subject is on one of NUMA nodes 0 and 1, and goes on from there."""
    here = 0 if process.off(0) < process.off(1) else 1
    error = bandwidth_error(process, 1 - here, share=1 / 20)
    return {
        "bandwidth cap missed by": round(error, 3),
        "seconds from cancel to verdict": round(seconds_to_cancel(process, here), 2),
        "two calls of move_pages at the same time against one": round(two_calls_against_one(process), 2),
    }


def two_calls_against_one(process: Subject) -> float:
    """Return how much faster two plain calls at the same time, of half each, move memory than one does alone."""
    kernel = Kernel()
    pages = np.arange(process.address, process.address + process.size, PAGE_SIZES[process.kind], dtype=np.uint64)

    def seconds(calls: int) -> float:
        target = 0 if process.off(0) else 1
        begin = time.monotonic()
        with ThreadPoolExecutor(calls) as pool:
            for moved in [
                pool.submit(kernel.move_pages, process.pid, part, numa_node=target, flags=MPOL_MF_MOVE_ALL)
                for part in np.array_split(pages, calls)
            ]:
                moved.result()
        return time.monotonic() - begin

    return statistics.median(seconds(1) / seconds(2) for _ in range(5))


def parallel_speed_up() -> float:
    """Return how much faster two CPUs of this host are than one: what a second mover can gain at most."""
    work = [sys.executable, "-I", "-S", "-c", "for _ in range(3_000_000): pass"]

    def seconds(programs: int) -> float:
        begin = time.monotonic()
        for running in [subprocess.Popen(work) for _ in range(programs)]:
            running.wait()
        return time.monotonic() - begin

    return statistics.median(2 * seconds(1) / seconds(2) for _ in range(3))


def reserve(pages: int) -> None:
    """Give NUMA nodes 0 and 1 pools of huge pages that hold the subject and one more."""
    for numa_node in (0, 1):
        pool = Path(f"/sys/devices/system/node/node{numa_node}/hugepages/hugepages-2048kB/nr_hugepages")
        pool.write_text(str(pages))


def main() -> None:
    """Run the cases wanted, print a line of JSON for each, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine")
    parser.add_argument("--to", type=Path, required=True, help="folder for engine.json")
    parser.add_argument("--kinds", nargs="*", default=list(PAGE_SIZES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--size", type=int, default=512, help="MiB moved")
    parser.add_argument("--movers", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    Path("/proc/sys/kernel/numa_balancing").write_text("0")
    size = options.size * MIB
    cases: list[dict[str, object]] = []
    facts: dict[str, object] = {"two CPUs against one": f"{parallel_speed_up():.2f}"}
    with programs() as folder:
        rivals = {
            "migratepages": by_command(lambda process, source, target: ["migratepages", process.pid, source, target]),
            "loop in C": by_command(
                lambda process, _source, target: [
                    folder / "move_loop",
                    process.pid,
                    process.address,
                    process.size,
                    target,
                    PAGE_SIZES[process.kind],
                ]
            ),
        }
        if damon.available():
            rivals["DAMON"] = by_damon
        for kind in options.kinds:
            if kind == "hugetlb":
                reserve(size // (2 * MIB) + 8)
            with subject(folder, kind, size, numa_node=1, writer_cpu=3) as process:
                for rival, theirs in rivals.items():
                    for pace, wish in (("flat out", {"call_latency": FLAT_OUT}), ("20 ms", {})):
                        for writing in (False, True):
                            name = f"{kind}, {'written to' if writing else 'idle'}, {pace}, against {rival}"
                            if options.only not in name:
                                continue
                            ours = by_us(movers=options.movers, **wish)
                            result = in_turns(process, ours, theirs, pairs=options.pairs, writing=writing)
                            cases.append(compared(name, *result, size))
                            print(json.dumps({k: v for k, v in cases[-1].items() if k != "moves"}), flush=True)
                if kind == "4 KiB":
                    facts |= _facts(process)
                assert process.ask("check") == "0", "pages changed while they moved"
            reserve(0)
    options.to.mkdir(parents=True, exist_ok=True)
    result = {
        "kernel": platform.release(),
        "size MiB": options.size,
        "movers": options.movers,
        "facts": facts,
        "cases": cases,
    }
    print(json.dumps(facts), flush=True)
    (options.to / "engine.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
