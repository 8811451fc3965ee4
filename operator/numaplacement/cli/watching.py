# SPDX-License-Identifier: Apache-2.0
"""`watch`: where the memory of a process is, again and again until it ends."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live

from numaplacement.api.resources import to_document
from numaplacement.engine.errors import EngineError, ProcessEnded
from numaplacement.engine.listformat import format_list
from numaplacement.engine.process import hold
from numaplacement.engine.verdict import NO_NUMA_NODE

from .exits import Fault
from .looking import bytes_of, host_of
from .obstacles import see_numa_nodes
from .output import Form, console, document_text, emit, say, stream
from .processes import Candidate, held
from .running import Interruptions, gone
from .surroundings import Surroundings
from .view import vm_row
from .view_tables import by_place, memory_bars, places_of

_NAP = 0.1
"""Seconds between two looks whether a signal came."""


def watch(candidate: Candidate, around: Surroundings, *, form: Form, every: float) -> None:
    """Tell where the memory is, every so many seconds, until the process ends or a signal comes. Raises Fault."""
    see_numa_nodes(around.kernel)
    numa_nodes = [node.numa_node for node in host_of(around.kernel).numa_nodes]
    interruptions = Interruptions()
    screen = console(stream("stdout") or io.StringIO())
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
    """Yield bytes by NUMA node, those in swap under NO_NUMA_NODE where there are any."""
    looked = False
    try:
        with held(candidate, around.kernel) as pidfd, hold(candidate.pid, around.kernel, pidfd):

            def over() -> bool:
                return interruptions.count > 0 or around.kernel.has_ended(pidfd)

            while not over():
                count = bytes_of(candidate.pid, around.kernel)
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
            live.update(memory_bars(candidate.words, count, numa_nodes, width=screen.width), refresh=True)


def _lines(
    looks: Iterator[dict[int, int]],
    candidate: Candidate,
    around: Surroundings,
    *,
    form: Form,
    numa_nodes: Sequence[int],
) -> None:
    told: tuple[int, ...] = ()
    for count in looks:
        now = around.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        if form is Form.TABLE:
            places = places_of(numa_nodes, {*count, *told})
            if places != told:
                swap = " in swap," if NO_NUMA_NODE in places else ""
                say(f"{candidate.words}: bytes on NUMA nodes {format_list(numa_nodes)},{swap} and in all")
                told = places
            emit("  ".join((now, *by_place(count, places))) + "\n")
        else:
            row = vm_row(candidate.pid, guest=candidate.guest, uuid=candidate.uuid, count=count)
            emit(document_text({"time": now, **to_document(row)}, form, one_line=True))
