# SPDX-License-Identifier: Apache-2.0
"""`watch`: where the memory of a process is, again and again until it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from numaplacement.api.resources import to_document
from numaplacement.engine.errors import EngineError, ProcessEnded
from numaplacement.engine.listformat import format_list
from numaplacement.engine.surveyor import located_bytes

from .exits import Fault
from .looking import host_of
from .output import Form, cells, console, document_text, emit, say, table
from .processes import Candidate, held
from .running import Interruptions, gone
from .surroundings import Surroundings
from .view import vm_row
from .view_tables import by_numa_node

_NAP = 0.1
"""Seconds between two looks whether a signal came."""


def watch(candidate: Candidate, around: Surroundings, *, form: Form, every: float) -> None:
    """Tell where the memory is, every so many seconds, until the process ends or a signal comes. Raises Fault."""
    numa_nodes = [node.numa_node for node in host_of(around.kernel).numa_nodes]
    interruptions = Interruptions()
    screen = console(sys.stdout)
    live = form is Form.TABLE and screen.is_terminal and not screen.is_dumb_terminal
    looks = _looks(candidate, around, every=every, interruptions=interruptions)
    with interruptions.heard():
        try:
            if live:
                _live(looks, screen, candidate, numa_nodes)
            else:
                _lines(looks, candidate, around, form=form, numa_nodes=numa_nodes)
        except EngineError as error:
            raise Fault(str(error)) from error


def _looks(
    candidate: Candidate, around: Surroundings, *, every: float, interruptions: Interruptions
) -> Iterator[dict[int, int]]:
    """Yield bytes by NUMA node."""
    looked = False
    try:
        with held(candidate, around.kernel) as pidfd:

            def over() -> bool:
                return interruptions.count > 0 or around.kernel.has_ended(pidfd)

            while not over():
                count = located_bytes(candidate.pid, around.kernel)
                looked = True
                yield count
                until = around.clock() + every
                while around.clock() < until and not over():
                    around.sleep(min(_NAP, every))
    except ProcessEnded as ended:
        if not looked:
            raise gone(candidate) from ended
    if not interruptions.count:
        say(f"{candidate.words} has ended.")


def _live(looks: Iterator[dict[int, int]], screen: Console, candidate: Candidate, numa_nodes: Sequence[int]) -> None:
    with Live(console=screen, auto_refresh=False) as live:
        for count in looks:
            live.update(_map(candidate, count, numa_nodes), refresh=True)


def _map(candidate: Candidate, count: dict[int, int], numa_nodes: Sequence[int]) -> Table:
    made = table("NUMA NODE", "BYTES", "", right=("BYTES",))
    made.title = candidate.words
    made.title_justify = "left"
    whole = sum(count.values()) or 1
    for number, amount in zip(numa_nodes, by_numa_node(count, numa_nodes), strict=False):
        made.add_row(*cells(str(number), amount, "#" * round(count.get(number, 0) / whole * 40)))
    return made


def _lines(
    looks: Iterator[dict[int, int]],
    candidate: Candidate,
    around: Surroundings,
    *,
    form: Form,
    numa_nodes: Sequence[int],
) -> None:
    if form is Form.TABLE:
        say(f"{candidate.words}: bytes on NUMA nodes {format_list(numa_nodes)}, and in all")
    for count in looks:
        now = around.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        if form is Form.TABLE:
            emit("  ".join((now, *by_numa_node(count, numa_nodes))) + "\n")
        else:
            row = vm_row(candidate.pid, guest=candidate.guest, uuid=candidate.uuid, count=count)
            emit(document_text({"time": now, **to_document(row)}, form, one_line=True))
