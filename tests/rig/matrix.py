# SPDX-License-Identifier: Apache-2.0
"""Makes the table of causes and kernels in docs/causes.md from what tests/rig/causes.py has seen.

python -m tests.rig.matrix             writes the table anew between its two markers
python -m tests.rig.matrix --check     says whether the page as it is names every reason the engine can give
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numaplacement.engine.reasons import Reason
from tests.rig.causes import NAMES, RECORDS
from tests.rig.guest import REPOSITORY

PAGE = REPOSITORY / "docs" / "causes.md"
BEGIN, END = "<!-- causes: begin -->", "<!-- causes: end -->"
DECISION_ONLY = "decision only"
WITHOUT_A_KERNEL: Mapping[Reason, tuple[str, ...]] = {
    Reason.PINNED_BY_DEVICE: ("a device by iommufd, as newer QEMUs use it", "vDPA"),
    Reason.ENCRYPTED_GUEST: ("SEV or SEV-SNP", "TDX"),
    Reason.CELLS_UNKNOWN: ("a QEMU whose cells cannot be told from its command line",),
    Reason.NO_CELL: ("memory of QEMU itself, when cells were asked for",),
}
"""What needs hardware the emulated host has not, or no kernel at all: decided in tests/unit from recorded evidence."""
BY_WISH: Mapping[Reason, str] = {
    Reason.NOT_ATTEMPTED: "something else stood in the way before it was tried",
    Reason.CANCELLED: "the order was deleted",
    Reason.DEADLINE: "the order's deadline passed",
    Reason.PLANNED: "the order was a dry run",
    Reason.UNEXPLAINED: "never: each test checks that it is 0 bytes",
}
"""Reasons that come from the order or from other reasons, the same on every kernel."""


class MatrixError(Exception):
    """The table cannot be made; the message says what to do."""


@dataclass
class Row:
    """One recipe: the reason it is to bring about (None: a control) and, by kernel release, what came of it."""

    reason: Reason | None
    recipe: str
    cells: dict[str, str] = field(default_factory=dict)


def read_records(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return what was seen on kernels of these names. Raises MatrixError when one was not tried."""
    records = []
    for name in names:
        file = RECORDS / f"{name}.jsonl"
        if not file.exists():
            raise MatrixError(f"the causes were not tried on kernel {name}; run: python -m tests.rig.causes {name}")
        records += [json.loads(line) for line in file.read_text().splitlines()]
    return records


def rows_of(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each recipe, in the order of the engine's reasons, controls last."""
    rows: dict[str, Row] = {}
    for record in records:
        reason = Reason(record["cause"]) if record["cause"] else None
        row = rows.setdefault(record["test"], Row(reason, record["recipe"]))
        row.cells[record["kernel"]] = cell(record)
    for only, recipes in WITHOUT_A_KERNEL.items():
        rows |= {f"{only} {recipe}": Row(only, recipe) for recipe in recipes}
    order = list(Reason)
    return sorted(rows.values(), key=lambda row: order.index(row.reason) if row.reason else len(order))


def cell(record: Mapping[str, Any]) -> str:
    """Return what came of a recipe on a kernel, in a few words."""
    if record.get("absent"):
        return f"not on this kernel: {record['absent']}"
    if record["result"] != "passed":
        said = ", ".join(f"{reason} {size(count)}" for reason, count in record.get("says", {}).items())
        return f"**not as it should be**{f': {said}' if said else ''}"
    if record.get("overcome"):
        return f"all {size(record['overcome'])} moved"
    words = [{"Refused": "refused", "Placed": "placed"}.get(record["outcome"], "")]
    words.append(size(record["bytes"]) if record["bytes"] else "noted" if words == ["placed"] else "")
    return ", ".join(filter(None, words))


def size(count: int) -> str:
    """Return bytes in words: "64 KiB", "7.5 MiB"."""
    kib = count / 1024
    return f"{kib:.0f} KiB" if kib < 1024 else f"{kib / 1024:.1f} MiB".replace(".0 ", " ")


def releases_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the releases of the kernels, oldest first."""
    return sorted(
        {str(record["kernel"]) for record in records}, key=lambda name: [int(word) for word in re.findall(r"\d+", name)]
    )


def table(rows: Iterable[Row], releases: Sequence[str]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"| reason | made by | {' | '.join(releases)} |",
        f"|---|---|{'---|' * len(releases)}",
    ]
    for row in rows:
        cells = [row.cells.get(release, "not tried" if row.cells else DECISION_ONLY) for release in releases]
        lines.append(f"| {f'`{row.reason}`' if row.reason else '(none)'} | {row.recipe} | {' | '.join(cells)} |")
    wishes = [f"| `{reason}` | {why} |" for reason, why in BY_WISH.items()]
    return "\n".join([*lines, "", "| reason | comes when |", "|---|---|", *wishes])


def with_table(page: str, new: str) -> str:
    """Return a page with the text between its markers replaced. Raises MatrixError when it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MatrixError(f"{PAGE} has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n{new}\n{end}{after}"


def unnamed(page: str) -> list[Reason]:
    """Return the reasons of the engine that a page has no row for."""
    return [reason for reason in Reason if f"\n| `{reason}` |" not in page]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table or check the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.rig.matrix", description="Make the table of causes.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page lacks a reason")
    options = parser.parse_args(arguments)
    try:
        if not options.check:
            records = read_records(NAMES)
            PAGE.write_text(with_table(PAGE.read_text(), table(rows_of(records), releases_of(records))))
    except MatrixError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    missing = unnamed(PAGE.read_text())
    if missing:
        print(f"error: {PAGE} has no row for {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
