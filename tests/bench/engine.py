# SPDX-License-Identifier: Apache-2.0
"""Our engine against other movers of memory: `make bench-engine`.

Boots the emulated host, runs tests/bench/engine_pairs.py in it, keeps what it measured in build/bench/engine.json and
prints it as a table. On the newest kernel the kernel's own DAMON is a rival too. The machine is to do nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig.guest import REPOSITORY, Guest, show
from tests.rig.kernels import get

MOST_VERDICT = 2.0
MOST_MISSED = 0.1
RESULTS = REPOSITORY / "build" / "bench"
COLUMNS = (
    "case",
    "ratio",
    "ratio with survey and verdict",
    "GiB/s ours",
    "GiB/s theirs",
    "call p99 ms",
    "left ours",
    "left theirs",
    "stall p99 us ours",
    "stall p99 us theirs",
    "verdict s",
)


def measure(kernel: str, words: Sequence[str], limit: float) -> dict[str, Any]:
    """Run the pairs on a kernel, `machine` or one of tests/rig/kernels.py, and return what they measured."""
    inside = [Path(sys.executable), "-m", "tests.bench.engine_pairs"]
    with Guest(time_limit=limit, kernel=None if kernel == "machine" else get(kernel)) as guest:
        process = guest.start([*inside, "--to", guest.shared, *words], on_output=show)
        if status := process.wait():
            raise SystemExit(status)
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = "engine.json" if kernel == "machine" else f"engine-{kernel}.json"
        shutil.copyfile(guest.shared / "engine.json", RESULTS / name)
        result: dict[str, Any] = json.loads((RESULTS / name).read_text())
        return result


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Return the cases as text, a line each."""
    lines = [list(COLUMNS), *([str(case[name]) for name in COLUMNS] for case in cases)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


@dataclass(frozen=True)
class Target:
    """One figure the engine is held to: what it is, which bound it has, and what was found."""

    what: str
    bound: str
    found: float
    met: bool


def targets(result: dict[str, Any]) -> list[Target]:
    """Return what the project promises of its speed, and whether this run bears it out."""
    cases: dict[str, dict[str, Any]] = {case["case"]: case for case in result["cases"]}
    ours = {name: case for name, case in cases.items() if name.endswith("against migratepages")}

    def least(kind: str, pace: str, bound: float) -> Iterator[Target]:
        for load in ("idle", "written to"):
            case = ours.get(f"{kind}, {load}, {pace}, against migratepages")
            if case:
                found = case["ratio"]
                yield Target(
                    f"{kind}, {load}, {pace}: times as fast as migratepages", f">= {bound}", found, found >= bound
                )

    found = [*least("4 KiB", "flat out", 2.0), *least("4 KiB", "20 ms", 1.0)]
    found += [*least("THP", "flat out", 1.5), *least("hugetlb", "flat out", 1.0)]
    for name, case in ours.items():
        if "written to, 20 ms" in name:
            share = round(case["stall p99 us ours"] / max(case["stall p99 us theirs"], 0.1), 2)
            what = f"{name.partition(',')[0]}: p99 stall of a writer, as a share of that under migratepages"
            found.append(Target(what, "<= 1.0", share, share <= 1.0))
    split = max((case["split unreported"] for case in cases.values()), default=0)
    found.append(Target("bytes of huge pages split and not reported", "0", split, split == 0))
    verdict = max((case["verdict s"] for case in cases.values()), default=0.0)
    found.append(
        Target("seconds of survey and verdict together, the longest", "<= 2", verdict, verdict <= MOST_VERDICT)
    )
    facts = result["facts"]
    if "bandwidth cap missed by" in facts:
        missed, cancel = facts["bandwidth cap missed by"], facts["seconds from cancel to verdict"]
        found.append(Target("bandwidth cap missed by, share", "within 0.1", missed, abs(missed) <= MOST_MISSED))
        found.append(Target("seconds from cancel to verdict", "<= 1", cancel, cancel <= 1))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", default="machine", help="machine, 6.12 or newest (machine)")
    parser.add_argument("--time-limit", type=float, default=3600.0, metavar="S", help="end it after S seconds (3600)")
    parser.add_argument("words", nargs="*", help="words for tests.bench.engine_pairs, after --")
    options = parser.parse_args()
    result = measure(options.kernel, options.words, options.time_limit)
    print(f"\nkernel {result['kernel']}, {result['size MiB']} MiB, {result['movers']} movers")
    print(table(result["cases"]))
    for fact, value in result["facts"].items():
        print(f"{fact}: {value}")
    for target in targets(result):
        print(f"{'met   ' if target.met else 'MISSED'} {target.what}: {target.found} ({target.bound})")


if __name__ == "__main__":
    main()
