# SPDX-License-Identifier: Apache-2.0
"""Gathers where the memory of every VM on the host is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.mappings import bytes_by_numa_node, parse_numa_maps
from numaplacement.engine.qemu import guest_names, is_qemu

from .host import VmMemory
from .identify import ProcessFacts, pod_uid
from .processes import processes_in_pods, start_time

SHARE = 0.01
"""Largest share of the time that the page tables of one VM are read: reading /proc/PID/numa_maps walks all of them."""


class VmMemories:
    """Looks at VMs, at large ones more rarely than at small ones."""

    def __init__(self, kernel: Kernel, *, clock: Callable[[], float]) -> None:
        self._kernel = kernel
        self._clock = clock
        self._known: dict[tuple[int, int], tuple[VmMemory, float]] = {}

    def look(self, *, fresh: str = "") -> tuple[VmMemory, ...]:
        """Return every VM on the host; the one in the pod of UID `fresh` is looked at now, however large it is."""
        found = processes_in_pods(self._kernel.proc, wanted=lambda _: True)
        qemus = [facts for facts in found if is_qemu(facts.executable) and guest_names(facts.command_line)]
        known = {}
        for facts in qemus:
            key = (facts.pid, facts.start_time)
            old = self._known.get(key)
            if old is None or self._clock() >= old[1] or pod_uid(facts.cgroup) == fresh:
                with contextlib.suppress(OSError):  # it ended meanwhile, or may not be read: the self-test says so
                    known[key] = self._read(facts)
            else:
                known[key] = old
        self._known = known
        by_pod = {memory.pod_uid: memory for memory, _ in known.values()}
        return tuple(by_pod.values())

    def _read(self, facts: ProcessFacts) -> tuple[VmMemory, float]:
        began = self._clock()
        text = self._kernel.read(self._kernel.process(facts.pid, "numa_maps"))
        if start_time(self._kernel.process(facts.pid, "numa_maps").parent) != facts.start_time:
            raise ProcessLookupError(facts.pid)
        took = self._clock() - began
        memory = VmMemory(
            pod_uid=pod_uid(facts.cgroup),
            guest=guest_names(facts.command_line)[0],
            bytes=bytes_by_numa_node(parse_numa_maps(text)),
        )
        return memory, began + took / SHARE
