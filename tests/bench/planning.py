# SPDX-License-Identifier: Apache-2.0
"""Plan and explain the move of a VM of 256 GiB in base pages, 67 million of them, without a kernel: seconds and memory.

``make bench-planning``. The surveys are made up, block by block as the engine itself would; each measurement has a
process of its own, whose peak of resident memory is told as it is, Python and numpy included.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numaplacement.engine.compare import Overlay, compare
from numaplacement.engine.explain import Circumstances, explain
from numaplacement.engine.mappings import Kind, Mapping
from numaplacement.engine.plan import Trial, Trials, movable_bytes, touchable_bytes, units
from numaplacement.engine.survey import (
    BLOCK_PAGES,
    HEAD,
    HIDDEN,
    HUGE,
    SHARED,
    SWAPPED,
    MappingPages,
    Pages,
    Survey,
    survey_of,
)
from numaplacement.engine.targets import Targets
from numaplacement.engine.verdict import NO_NUMA_NODE

REPORT = Path("build/bench/planning.json")
PAGE = 4096
BLOCKS = 256
THP = 512
TARGET = 0
RAM = Mapping(start=1 << 40, end=(1 << 40) + BLOCKS * BLOCK_PAGES * PAGE, path="", kind=Kind.ANON)
LAYOUTS = ("uniform", "huge", "scattered", "mixed")
MOST_SECONDS = 10.0
MOST_MIB = 512

Nodes = NDArray[np.int16]
Flags = NDArray[np.uint8]


def block(layout: str, number: int, random: np.random.Generator) -> tuple[Nodes, Flags]:
    """NUMA nodes and flags of the pages of a block: all alike, huge pages on any NUMA node, or each page by itself."""
    if layout == "mixed":
        layout = LAYOUTS[number % 3]
    numa_node = np.ones(BLOCK_PAGES, dtype=np.int16)
    flags = np.full(BLOCK_PAGES, HEAD, dtype=np.uint8)
    if layout == "huge":
        numa_node = np.repeat(random.integers(0, 4, BLOCK_PAGES // THP, dtype=np.int16), THP)
        flags[:] = HUGE
        flags[::THP] |= HEAD
    elif layout == "scattered":
        numa_node = random.integers(0, 4, BLOCK_PAGES, dtype=np.int16)
        flags |= random.choice([np.uint8(0), SHARED, HIDDEN], BLOCK_PAGES, p=[0.8, 0.1, 0.1])
        out = random.random(BLOCK_PAGES) < 0.05
        numa_node[out], flags[out] = NO_NUMA_NODE, SWAPPED | HEAD
    return numa_node, flags


def survey_before(layout: str) -> Survey:
    """The VM before it is moved."""
    return _survey(layout, lambda numa_node, random: numa_node)  # noqa: ARG005


def survey_after(layout: str) -> Survey:
    """The VM afterwards: one page in a hundred stayed where it was, or where huge pages are, one of those."""

    def moved(numa_node: Nodes, random: np.random.Generator) -> Nodes:
        folio = THP if (np.diff(numa_node) != 0).sum() < numa_node.size // THP else 1
        stayed = np.repeat(random.random(numa_node.size // folio) < 0.01, folio) | (numa_node == NO_NUMA_NODE)
        return np.where(stayed, numa_node, np.int16(TARGET))

    return _survey(layout, moved)


def _survey(layout: str, change: Callable[[Nodes, np.random.Generator], Nodes]) -> Survey:
    def parts() -> Iterator[MappingPages]:
        own, changes = np.random.default_rng(1), np.random.default_rng(2)
        for number in range(BLOCKS):
            numa_node, flags = block(layout, number, own)
            first = number * BLOCK_PAGES
            yield MappingPages(
                mapping=RAM,
                page=np.arange(first, first + BLOCK_PAGES, dtype=np.uint32),
                numa_node=change(numa_node, changes),
                flags=flags,
            )

    return survey_of(parts())


def plan(pages: Pages, trials: Trials | None) -> tuple[int, int]:
    """Do what is done before a move; with `trials` as if every folio had moved. Bytes needed, and folios."""
    targets = Targets(default=TARGET)
    needed = sum(movable_bytes(pages, targets=targets, privileged=True).values())
    needed += sum(touchable_bytes(pages, targets=targets).values())
    folios = 0
    for part in pages:
        chosen = units(part, target=TARGET, privileged=True)
        folios += part.addresses(chosen.position).size
        if trials is not None and chosen.position.size:
            trials.of(part)[chosen.pages(slice(None))] = Trial.MOVED
    return needed, folios


def measure(layout: str, *, whole: bool) -> dict[str, object]:
    """Plan; if `whole`, with the three surveys a run keeps and all that follows a move."""
    before = survey_before(layout)
    last = survey_before(layout) if whole else before
    after = survey_after(layout) if whole else before
    trials = Trials() if whole else None
    began = time.monotonic()
    needed, folios = plan(last.pages, trials)
    seconds = {"plan": time.monotonic() - began}
    if whole:
        began = time.monotonic()
        rows = explain(after, Overlay(last, trials), Circumstances(targets=Targets(default=TARGET)))
        seconds["explain"] = time.monotonic() - began
        assert sum(row.bytes for row in rows) == after.total() - after.on(TARGET)
        began = time.monotonic()
        changes = compare(before, after, targets=Targets(default=TARGET))
        seconds["compare"] = time.monotonic() - began
        assert changes.freed == changes.grown == 0
    return {
        "layout": layout,
        "whole": whole,
        "pages": BLOCKS * BLOCK_PAGES,
        "needed": needed,
        "folios": folios,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "resident MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure every layout twice, each time in a process of its own, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", choices=LAYOUTS)
    parser.add_argument("--whole", action="store_true")
    asked = parser.parse_args()
    if asked.layout:
        print(json.dumps(measure(asked.layout, whole=asked.whole)))
        return
    found = []
    print(f"{'layout':10} {'kept':14} {'plan s':>7} {'explain s':>10} {'compare s':>10} {'resident MiB':>13}")
    for layout in LAYOUTS:
        for more in ([], ["--whole"]):
            command = [sys.executable, "-m", "tests.bench.planning", "--layout", layout, *more]
            each = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found.append(each)
            spent = [each["seconds"].get(name, "") for name in ("plan", "explain", "compare")]
            kept = "three surveys" if more else "one survey"
            print(f"{layout:10} {kept:14} {spent[0]:>7} {spent[1]:>10} {spent[2]:>10} {each['resident MiB']:>13}")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps({"most seconds": MOST_SECONDS, "most MiB": MOST_MIB, "runs": found}, indent=1) + "\n")
    if any(each["seconds"]["plan"] > MOST_SECONDS or each["resident MiB"] > MOST_MIB for each in found):
        sys.exit(f"planning needs more than {MOST_SECONDS:.0f} s or {MOST_MIB} MiB")


if __name__ == "__main__":
    main()
