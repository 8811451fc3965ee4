# SPDX-License-Identifier: Apache-2.0
"""What the benches of the engine found, as docs/speed.md: `python -m tests.bench.report`, after `make bench-engine`.

It reads build/bench/engine.json and, where they are there, those of other kernels beside it and build/contents.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.bench import contents
from tests.bench.engine import RESULTS, targets
from tests.rig.guest import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "speed.md"
FILES = ("engine.json", "engine-6.12.json", "engine-newest.json")
HEAD = """\
<!-- Written by `python -m tests.bench.report`; do not edit. -->
# How fast it is

`make bench-engine` moves the same process to and fro, by the engine and by another mover in turns, in one run, on an
emulated host with four NUMA nodes on two cores. Times of such a host mean nothing by themselves, and memory is no
farther away on another NUMA node: only the ratios of one run say something, and only about what software costs. Each
is a median; above 1 the engine is faster. A rival is timed with the start of its program, the engine without its two
surveys (`seconds` of a verdict has them all).

- `migratepages` is what people use: one system call over the whole process, which cannot be slowed down, limited or
  cancelled, and says nothing of what stays.
- `loop in C` is the plainest loop over move_pages(2): what any mover that wants to know about each page has to call.
- `DAMON` is the kernel's own, where it can do this (newer kernels).
- *flat out* has no limit on how long a call may take; *20 ms* is the default.
- *stall* is the share of the time that a writing thread's slowest write of a hundred takes under the engine, of that
  under the rival.

What a missed bound is due to, as far as it is known. Movers at the same time gain at most what *two calls of move_pages
at the same time against one* says, and the host has two cores: 2.0 is above that. A move begins with one mover and
small calls and finds out by the clock whether more and larger are better, which takes up to a second: most of a move of
512 MiB, little of one of 100 GiB. Each call has a cost that does not depend on its size (every CPU drains its lists),
which `migratepages` has once and short calls have often. Beside a writer three CPUs that are never idle share two
cores, and whoever holds a lock of the kernel may be the one that waits.
"""
PAUSES = """
## VMs that write to all their memory

`make test-contents`: the guest writes a pattern to all its RAM, checks it, and goes on, under real KVM (in the emulated
host) and TCG, while its memory is moved to and fro. *Wrong* is what it found changed; a pause is the longest time
between two writes that the guest itself saw.

"""


def section(result: dict[str, Any]) -> str:
    """Return the tables of one kernel's run."""
    rivals = list(dict.fromkeys(_parts(case)[1] for case in result["cases"]))
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for case in result["cases"]:
        what, rival = _parts(case)
        rows.setdefault(what, {})[rival] = case
    head = ["case", *(f"times {rival}" for rival in rivals), "99 of 100 calls below", "stall"]
    lines = [_row(head), _row(["---"] * len(head))]
    for what, by_rival in rows.items():
        first = by_rival.get("migratepages") or next(iter(by_rival.values()))
        ratios = [_ratio(by_rival[rival]) if rival in by_rival else "" for rival in rivals]
        lines.append(_row([what, *ratios, f"{first['call p99 ms']} ms", _stall(first)]))
    facts = "".join(f"- {fact}: {value}\n" for fact, value in result["facts"].items())
    wanted = "".join(
        f"| {each.what} | {each.bound} | {each.found} | {'yes' if each.met else '**no**'} |\n"
        for each in targets(result)
    )
    return (
        f"\n## Linux {result['kernel']}\n\n{result['size MiB']} MiB, medians of {result['cases'][0]['pairs']} pairs,"
        f" up to {result['movers']} movers.\n\n" + "\n".join(lines) + f"\n\n{facts}\n"
        f"| wanted | bound | found | met |\n|---|---|---|---|\n{wanted}"
    )


def pauses(rows: Sequence[contents.Row]) -> str:
    """Return the table of what guests noticed; nothing where none was asked."""
    if not rows:
        return ""
    columns = {"kernel": "kernel", **contents.COLUMNS}
    lines = [_row(list(columns.values())), _row(["---"] * len(columns))]
    return PAUSES + "\n".join([*lines, *(_row([str(row[name]) for name in columns]) for row in rows)]) + "\n"


def document(results: Iterable[dict[str, Any]], guests: Sequence[contents.Row] = ()) -> str:
    """Return the whole page."""
    return HEAD + "".join(map(section, results)) + pauses(guests)


def _parts(case: dict[str, Any]) -> tuple[str, str]:
    what, _, rival = case["case"].partition(", against ")
    return what, rival


def _ratio(case: dict[str, Any]) -> str:
    return "it moves nothing" if case["ratio"] is None else str(case["ratio"])


def _stall(case: dict[str, Any]) -> str:
    theirs = case["stall p99 us theirs"]
    return str(round(case["stall p99 us ours"] / theirs, 2)) if theirs else ""


def _row(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def main() -> None:
    """Write the page from what there is."""
    found = [json.loads(path.read_text()) for path in map(RESULTS.joinpath, FILES) if path.exists()]
    if not found:
        raise SystemExit(f"{RESULTS / FILES[0]} is not there: make bench-engine writes it")
    guests = json.loads(contents.RESULTS.read_text()) if contents.RESULTS.exists() else []
    Path(DOCUMENT).write_text(document(found, guests), encoding="utf-8")
    print(f"{DOCUMENT.relative_to(REPOSITORY)} is written from {len(found)} runs")


if __name__ == "__main__":
    main()
