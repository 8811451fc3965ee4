# SPDX-License-Identifier: Apache-2.0
"""What `show` and `watch` tell, as tables. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from collections.abc import Mapping as Mapped

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from numaplacement.api.migration import NO_NUMA_NODE, ClassBytes, PageClass
from numaplacement.api.quantities import format_percent
from numaplacement.engine.wording import size_text

from .output import cells, table
from .plain import plain
from .verdict import FOOTER, numa_node_text
from .view import ProcessView, RiskView, ThreadView, VmRow

_NOTHING = "-"
_BAR = 40
"""Characters of a bar that stands for all memory of a process."""
_SHORTEST_BAR = 4


def process_tables(view: ProcessView) -> Iterator[RenderableType]:
    """Yield what a person is shown of one process."""
    name = f"VM {view.guest}, pid {view.pid}" if view.guest else f"Process {view.pid}"
    yield Text(f"{name}, UUID {view.uuid}" if view.uuid else name, style="bold")
    yield Text("")
    yield memory_map(view.memory)
    yield Text("")
    yield threads_table(view.threads)
    yield Text("")
    policies = ", ".join(f"{each.policy} {size_text(each.bytes)}" for each in view.policies)
    yield Text(f"May use memory of:  NUMA nodes {view.mems_allowed} (cpuset)")
    yield Text(f"Memory policies:    {policies or 'none'}")
    yield Text(f"Pinned memory:      {_pins(view)}")
    yield Text(f"AutoNUMA:           {'on, moves pages to the threads that use them' if view.auto_numa else 'off'}")
    yield Text("")
    if not view.risks:
        yield Text("Nothing was found that a move to any NUMA node of this host would be refused for.")
        return
    yield risks_table(view.risks)
    yield Text("")
    yield Text(FOOTER)


def memory_map(rows: Sequence[ClassBytes]) -> Table:
    """Return the bytes by NUMA node and class; classes of which there is nothing are left out."""
    kinds = [kind for kind in PageClass if any(row.page_class is kind for row in rows)]
    headers = [kind.upper() for kind in kinds]
    made = table("NUMA NODE", *headers, "TOTAL", "SHARE", right=(*headers, "TOTAL", "SHARE"))
    whole = sum(row.bytes for row in rows)
    for numa_node in sorted({row.numa_node for row in rows}):
        here = [row for row in rows if row.numa_node == numa_node]
        made.add_row(*cells(numa_node_text(numa_node), *_amounts(here, kinds), format_percent(_sum(here), whole)))
    made.add_row(*cells("all", *_amounts(rows, kinds), ""), style="bold")
    return made


def _amounts(rows: Sequence[ClassBytes], kinds: Iterable[PageClass]) -> list[str]:
    sums = [_sum([row for row in rows if row.page_class is kind]) for kind in kinds]
    return [size_text(count) if count else _NOTHING for count in (*sums, _sum(rows))]


def _sum(rows: Sequence[ClassBytes]) -> int:
    return sum(row.bytes for row in rows)


def threads_table(threads: Iterable[ThreadView]) -> Table:
    """Return the threads, those with the same CPUs together."""
    together: dict[tuple[str, str, str, bool], list[str]] = {}
    for thread in threads:
        together.setdefault((thread.cpus, thread.numa_nodes, thread.realtime, thread.vcpu), []).append(thread.name)
    made = table("THREADS", "KIND", "CPUS", "NUMA NODES", "NAMES", right=("THREADS",))
    for (cpus, numa_nodes, realtime, vcpu), names in together.items():
        kind = ", ".join(filter(None, ("vCPU" if vcpu else "other", realtime)))
        lists = (each.replace(",", ", ") or _NOTHING for each in (cpus, numa_nodes))
        made.add_row(*cells(str(len(names)), kind, *lists, _names(names)))
    return made


def _names(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(map(plain, names)))
    shown = 3
    rest = len(different) - shown
    return ", ".join(different[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _pins(view: ProcessView) -> str:
    pins = view.pins
    held = f"{', '.join(pins.devices)} open; " if pins.devices else ""
    if not held and not pins.locked and not pins.pinned:
        return "none accounted"
    return (
        f"{held}VmLck {size_text(pins.locked)}, {size_text(pins.mlocked)} of it mlock; VmPin {size_text(pins.pinned)}"
    )


def risks_table(risks: Iterable[RiskView]) -> Table:
    """Return what a move would be refused for."""
    made = table("WOULD BE REFUSED", "TO NUMA NODE", "SEEN, AND WHAT TO DO")
    for risk in risks:
        made.add_row(*cells(risk.reason, risk.numa_nodes, f"{plain(risk.evidence)}\n{risk.remedy}"))
    return made


def vms_table(rows: Sequence[VmRow], numa_nodes: Sequence[int]) -> Table:
    """Return a row for each VM with its bytes on each of the host's NUMA nodes, and in swap where any has some."""
    counts = [None if row.bytes is None else {each.numa_node: each.bytes for each in row.bytes} for row in rows]
    places = places_of(numa_nodes, {place for count in counts for place in count or ()})
    headers = ["SWAP" if place == NO_NUMA_NODE else f"NUMA {place}" for place in places]
    made = table("PID", "VM", *headers, "TOTAL", right=("PID", *headers, "TOTAL"))
    for row, count in zip(rows, counts, strict=True):
        amounts = ["?"] * (len(headers) + 1) if count is None else by_place(count, places)
        made.add_row(*cells(str(row.pid), plain(row.guest) or _NOTHING, *amounts))
    return made


def places_of(numa_nodes: Sequence[int], seen: Container[int]) -> tuple[int, ...]:
    """Return where memory is told of: the host's NUMA nodes, and NO_NUMA_NODE where anything was seen in swap."""
    return (*numa_nodes, *((NO_NUMA_NODE,) if NO_NUMA_NODE in seen else ()))


def by_place(count: Mapped[int, int], places: Sequence[int]) -> list[str]:
    """Return the bytes in each place and the sum of all there are, as words."""
    amounts = [count.get(place, 0) for place in places]
    return [size_text(amount) if amount else _NOTHING for amount in (*amounts, sum(count.values()))]


def memory_bars(words: str, count: Mapped[int, int], numa_nodes: Sequence[int], *, width: int) -> Table:
    """Return the bytes in each place with bars, on a screen of so many characters; `words` name the process."""
    places = places_of(numa_nodes, count)
    amounts = by_place(count, places)[:-1]
    made = table("NUMA NODE", "BYTES", right=("BYTES",))
    room = width - len("NUMA NODE") - max(map(len, ("BYTES", *amounts))) - 2 * made.padding[1]
    longest = min(_BAR, room)
    if longest >= _SHORTEST_BAR:
        made.add_column("", no_wrap=True, overflow="crop")
    made.title, made.title_justify = words, "left"
    whole = sum(count.values()) or 1
    for place, amount in zip(places, amounts, strict=True):
        bar = "#" * round(count.get(place, 0) / whole * longest)
        where = "swap" if place == NO_NUMA_NODE else str(place)
        made.add_row(*cells(where, amount, *([bar] if len(made.columns) > 2 else [])))  # noqa: PLR2004 - with bars
    return made
