# SPDX-License-Identifier: Apache-2.0
"""The container's cpuset.mems, widened to the targets before a move where that is allowed, and taken back."""

from __future__ import annotations

from dataclasses import dataclass

from .cgroups import Container, NoCgroup, find_container
from .checks import Refused
from .cpuset import CannotRead, Rebind, prepare_rebind
from .facts import Gathered
from .listformat import format_list
from .notes import note
from .process import HeldProcess
from .reasons import Reason
from .verdict import Allow, Note, Refusal, Request


@dataclass(kw_only=True)
class Widening:
    """What becomes of one move's cpuset. `rebind` is there while cpuset.mems is widened; `notes` are added to."""

    process: HeldProcess
    request: Request
    gathered: Gathered
    notes: list[Note]
    container: Container | None = None
    rebind: Rebind | None = None

    def find_container(self) -> None:
        """Find the VM's container. Raises Refused where the move needs it and it is not there."""
        try:
            self.container = find_container(self.process.pid, self.process.kernel)
        except NoCgroup as missing:
            if Allow.REBIND_CPUSET in self.request.allow:
                self._no_rebind(str(missing), missing.remedy)

    def widen(self) -> None:
        """Let the container's memory be on the targets, where that is allowed and it may not be there yet.

        Raises Refused.
        """
        rebind = self.planned()
        if rebind is None:
            return
        widened = rebind.widen()
        if not widened.done:
            self._no_rebind(widened.evidence, widened.remedy)
            return
        self.rebind = rebind

    def planned(self) -> Rebind | None:
        """Return how the container's cpuset is to be written; None where it is not. Raises Refused."""
        if Allow.REBIND_CPUSET not in self.request.allow or self.container is None:
            return None
        targets = frozenset(self.gathered.facts.targets.numa_nodes)
        if others := {cell.number for cell in self.gathered.cells} - set(self.request.cells):
            self._no_rebind(
                f"nothing is asked of {'guest cells' if len(others) > 1 else 'guest cell'} {format_list(others)}: the"
                " kernel would move that memory to the targets too, in one call that cannot be stopped",
                "Give every guest cell a NUMA node; or widen cpuset.mems of the VM's cgroup yourself, and do without"
                " RebindCpuset.",
            )
            return None
        if len(targets) > 1 and self.gathered.bindings:
            # The kernel rebinds by position: n-th NUMA node of the old set to n-th of the new.
            bound = ", ".join(sorted(self.gathered.bindings))
            self._no_rebind(
                f"memory is bound ({bound}) and there is more than one target: the kernel would mix the bindings up",
                "Place the whole VM on one NUMA node, or do without RebindCpuset.",
            )
            return None
        try:
            rebind = prepare_rebind(self.process.pid, self.container, self.process.kernel, targets=targets)
        except CannotRead as error:
            self._no_rebind(str(error), error.remedy)
            return None
        if rebind.plan.refused:
            self._no_rebind(rebind.plan.refused, rebind.plan.remedy)
            return None
        return rebind

    def put_back(self, *, landed: bool) -> None:
        """Take the widening back where the run ended before it decided about that and nothing has `landed`.

        Once something has, the kernel would move it back, in one go.
        """
        if self.rebind is None:
            return
        if landed:
            seen = f"cpuset.mems of {self.rebind.container.directory.name} stays widened: memory has moved already"
            self.notes.append(note(Reason.VM_CPUSET, seen))
            return
        outcome = self.rebind.put_back()
        self.rebind = None
        if not outcome.done:
            self.notes.append(Note(reason=Reason.VM_CPUSET, evidence=outcome.evidence, remedy=outcome.remedy))

    def _no_rebind(self, evidence: str, remedy: str) -> None:
        """Tell that the cpuset is not written; where the move needs that, refuse it."""
        allowed = [thread.mems_allowed for thread in self.gathered.process.threads]
        if not all(set(self.gathered.facts.targets.numa_nodes) <= mems for mems in allowed):
            raise Refused(Refusal(reason=Reason.VM_CPUSET, evidence=evidence, remedy=remedy))
        self.notes.append(Note(reason=Reason.VM_CPUSET, evidence=evidence, remedy=remedy))
