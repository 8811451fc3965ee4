# SPDX-License-Identifier: Apache-2.0
"""Gathers what `show` tells of processes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from numaplacement.engine import facts as gathering
from numaplacement.engine.checks import refusals
from numaplacement.engine.errors import EngineError, ProcessEnded
from numaplacement.engine.host import HostFacts, read_host
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.process import hold
from numaplacement.engine.surveyor import located_bytes, read_numa_maps, reading
from numaplacement.engine.verdict import NO_NUMA_NODE, Request

from .exits import Fault
from .obstacles import one_node
from .processes import Candidate, held
from .running import gone
from .view import ProcessView, Seen, VmRow, process_view, vm_row

_SWAPPED = re.compile(r"^VmSwap:\s+(\d+) kB$", re.MULTILINE | re.ASCII)
_KIB = 1024


def look(candidate: Candidate, kernel: Kernel) -> ProcessView:
    """Look at one process. Raises Fault."""
    try:
        with held(candidate, kernel) as pidfd, hold(candidate.pid, kernel, pidfd) as process:
            host = read_host(kernel)
            before, locating = gathering.look(process)
            policies = read_numa_maps(candidate.pid, kernel)
            by_target = {
                node.numa_node: gathering.gather(
                    process,
                    request=Request(target=node.numa_node),
                    host=host,
                    before=before,
                    locating=locating,
                    policies=policies,
                )
                for node in host.numa_nodes
                if node.has_memory
            }
    except ProcessEnded as ended:
        raise gone(candidate) from ended
    except EngineError as error:
        raise Fault(str(error)) from error
    of_any = next(iter(by_target.values()))
    nowhere = one_node(host)
    seen = Seen(
        pid=candidate.pid,
        guest=candidate.guest,
        uuid=candidate.uuid,
        host=host,
        process=of_any.process,
        pins=of_any.pins,
        survey=before,
        policies=policies,
        refusals=(
            *((target, nowhere) for target in by_target if nowhere is not None),
            *((target, found) for target, each in by_target.items() for found in refusals(each.facts)),
        ),
    )
    return process_view(seen)


def look_at_all(candidates: Iterable[Candidate], kernel: Kernel) -> tuple[tuple[VmRow, ...], str]:
    """Return a row for each process, and why some could not be looked at, empty when all could."""
    rows, trouble = [], ""
    for candidate in candidates:
        try:
            with held(candidate, kernel) as pidfd, hold(candidate.pid, kernel, pidfd):
                count: dict[int, int] | None = bytes_of(candidate.pid, kernel)
        except ProcessEnded:
            continue
        except EngineError as error:
            count, trouble = None, str(error)
        rows.append(vm_row(candidate.pid, guest=candidate.guest, uuid=candidate.uuid, count=count))
    return tuple(rows), trouble


def bytes_of(pid: int, kernel: Kernel) -> dict[int, int]:
    """Return the bytes of a process by NUMA node, cheaply, with those swapped out under NO_NUMA_NODE where it has any.

    Swapped out is what VmSwap counts: private memory. Raises ProcessEnded, and EngineError where files may not be read.
    """
    count = located_bytes(pid, kernel)
    with reading(pid):
        found = _SWAPPED.search(kernel.read(kernel.process(pid, "status")))
    swapped = int(found[1]) * _KIB if found else 0
    return {**({NO_NUMA_NODE: swapped} if swapped else {}), **count}


def host_of(kernel: Kernel) -> HostFacts:
    """Return the host's facts. Raises Fault."""
    try:
        return read_host(kernel)
    except EngineError as error:
        raise Fault(str(error)) from error
