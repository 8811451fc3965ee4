# SPDX-License-Identifier: Apache-2.0
"""What `show` and `watch` tell, as tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as Mapped

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from numaplacement.api.migration import ClassBytes, PageClass
from numaplacement.api.quantities import format_percent
from numaplacement.engine.wording import size_text

from .output import cells, table
from .verdict import numa_node_text
from .view import ProcessView, RiskView, ThreadView, VmRow

_NOTHING = "-"


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
    yield (
        risks_table(view.risks)
        if view.risks
        else Text("Nothing was found that a move to any NUMA node of this host would be refused for.")
    )


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
        made.add_row(*cells(str(len(names)), kind, cpus or _NOTHING, numa_nodes or _NOTHING, _names(names)))
    return made


def _names(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
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
        made.add_row(*cells(risk.reason, risk.numa_nodes, f"{risk.evidence}\n{risk.remedy}"))
    return made


def vms_table(rows: Sequence[VmRow], numa_nodes: Sequence[int]) -> Table:
    """Return a row for each VM with its bytes on each of the host's NUMA nodes."""
    headers = [f"NUMA {number}" for number in numa_nodes]
    made = table("PID", "VM", *headers, "TOTAL", right=("PID", *headers, "TOTAL"))
    for row in rows:
        amounts = (
            ["?"] * (len(headers) + 1)
            if row.bytes is None
            else by_numa_node({each.numa_node: each.bytes for each in row.bytes}, numa_nodes)
        )
        made.add_row(*cells(str(row.pid), row.guest or _NOTHING, *amounts))
    return made


def by_numa_node(count: Mapped[int, int], numa_nodes: Sequence[int]) -> list[str]:
    """Return the bytes on each NUMA node and their sum, as words."""
    amounts = [count.get(number, 0) for number in numa_nodes]
    return [size_text(amount) if amount else _NOTHING for amount in (*amounts, sum(count.values()))]
