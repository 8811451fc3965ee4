# SPDX-License-Identifier: Apache-2.0
"""What there is to tell of a move beside where memory is: huge pages split, what never moves, what may undo it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .cgroups import Container
from .collapse import Collapsed
from .host import HostFacts
from .kernel import Kernel
from .kernel_memory import read_kernel_notes
from .notes import note
from .reasons import Reason
from .sharers import find_sharers
from .survey import Survey
from .targets import Targets
from .verdict import Note, Request, ThreadOutcome, Verdict
from .wording import count_text, size_text


def notes_on(verdict: Verdict, request: Request, host: HostFacts, collapsed: Collapsed) -> Iterator[Note]:
    """Yield what follows from the verdict and the host alone."""
    if verdict.split:
        why = collapsed.evidence()
        yield note(
            Reason.HUGE_PAGES_SPLIT,
            f"{size_text(verdict.split)} were in transparent huge pages before and are in base pages now"
            + (f"; {why}" if why else ""),
            count=verdict.split,
        )
    if verdict.freed:
        yield note(Reason.VANISHED, f"{size_text(verdict.freed)} were given back meanwhile", count=verdict.freed)
    if host.numa_balancing and (stayed := _threads_elsewhere(request, verdict.threads)):
        yield note(Reason.AUTO_NUMA, f"kernel.numa_balancing is on, and {stayed}")


def notes_beside(
    *,
    pid: int,
    survey: Survey,
    targets: Targets,
    container: Container | None,
    kernel: Kernel,
    clock: Callable[[], float],
) -> Iterator[Note]:
    """Yield what has to be looked up: the kernel's own memory for the VM, and who shares the VM's memory."""
    yield from read_kernel_notes(container, kernel, targets=targets.numa_nodes)
    sharers = find_sharers(pid, survey.mappings, kernel, clock=clock)
    for sharer in sharers.found:
        yield note(
            Reason.SHARED_WITH_HELPER,
            f"process {sharer.pid} ({sharer.name}) maps {size_text(sharer.bytes)} of the same files",
            count=sharer.bytes,
        )


def _threads_elsewhere(request: Request, threads: ThreadOutcome) -> str:
    """Say which threads may pull memory back; empty for none."""
    if not request.follow_threads:
        return "the threads were left where they are"
    return f"{count_text(threads.left, 'thread')} did not follow" if threads.left else ""
