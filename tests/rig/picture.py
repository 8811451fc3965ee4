# SPDX-License-Identifier: Apache-2.0
"""A picture in the terminal of where a VM's memory is, before and after."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

WIDTH = 20
PAGE = 4096


def bar(part: int, whole: int, *, width: int = WIDTH) -> str:
    """Return a bar for `part` of `whole`; any part at all is seen."""
    if part <= 0:
        return "·"
    eighths = max(1, round(part * width * 8 / whole))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def mebibytes(count: int) -> str:
    """Return bytes in MiB with the pages they are made of."""
    return f"{count / 2**20:.2f} MiB, {count // PAGE} pages"


def before_and_after(before: Mapping[int, int], after: Mapping[int, int], *, numa_nodes: range, target: int) -> Table:
    """Return a table with one row for each NUMA node: bytes before and after, as bars and numbers."""
    whole = max(1, *before.values(), *after.values())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "before", "", "after", ""):
        table.add_column(heading, no_wrap=True)
    for numa_node in numa_nodes:
        style = "bold green" if numa_node == target else "yellow"
        cells = [Text(f"NUMA node {numa_node}" + (" ◀" if numa_node == target else ""), style=style)]
        for books in (before, after):
            count = books.get(numa_node, 0)
            cells += [Text(f"{bar(count, whole):<{WIDTH}}", style=style), Text(mebibytes(count) if count else "")]
        table.add_row(*cells)
    return table
