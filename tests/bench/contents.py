# SPDX-License-Identifier: Apache-2.0
"""Real VMs that write to all their memory, moved to and fro many times: `make test-contents`.

Boots the emulated host, runs tests/kernel/test_contents.py in it, keeps what it wrote down in build/contents.json and
prints it as a table. Rows of VMs that this run leaves out stay from runs before.

    python -m tests.bench.contents [--moves N] [--kernel FILE] [-- WORDS FOR PYTEST, such as -k 'thp and kvm']
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.rig import guest_tests
from tests.rig.guest import REPOSITORY, Guest, GuestError

RESULTS = REPOSITORY / "build" / "contents.json"
TEST = "tests/kernel/test_contents.py"
PER_MOVE = 60
"""Seconds one move and the rest after it may take; a few is usual on a machine that does nothing else."""
KEY = ("kernel", "accel", "backing")
COLUMNS = {
    "backing": "backing",
    "accel": "accel",
    "moves": "moves",
    "passes": "passes",
    "errors": "wrong",
    "longest_pause_moving_ms": "longest pause moving (ms)",
    "longest_pause_at_rest_ms": "at rest (ms)",
    "call_p99_ms": "call p99 (ms)",
}

Row = dict[str, object]


def merged(before: list[Row], new: list[Row]) -> list[Row]:
    """All rows, in order; a new one replaces that of the same VM."""
    rows = {tuple(str(row[name]) for name in KEY): row for row in (*before, *new)}
    return [rows[key] for key in sorted(rows)]


def table(rows: list[Row]) -> str:
    """Rows as text, a line each."""
    lines = [list(COLUMNS.values()), *([str(row[name]) for name in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(text.rstrip() for text in texts)


def main(arguments: list[str] | None = None) -> int:
    """Run it; the exit status is that of pytest."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.contents", description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=40, metavar="N", help="moves of each VM (40: 20 times and back)")
    parser.add_argument("--time-limit", type=float, default=5400.0, metavar="S", help="end it after S seconds (5400)")
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="boot this kernel (default: the newest in /boot)")
    parser.add_argument("words", nargs="*", help="more words for pytest, after --")
    options = parser.parse_args(arguments)
    new: list[Row] = []

    def keep(shared: Path) -> None:
        written = shared / "contents.json"
        new.extend(json.loads(written.read_text()) if written.exists() else [])

    try:
        status = guest_tests.run(
            [TEST, f"--contents-moves={options.moves}", *options.words],
            make=lambda: Guest(time_limit=options.time_limit, kernel=options.kernel),
            keep=keep,
            test_limit=PER_MOVE * options.moves + guest_tests.TEST_LIMIT,
        )
    except GuestError as error:
        print(error, file=sys.stderr)
        return 1
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps(merged(before, new), indent=1) + "\n")
    print(f"{table(new)}\nTimes are the emulated host's: only ratios within a row mean anything.\n({RESULTS})")
    return status


if __name__ == "__main__":
    sys.exit(main())
