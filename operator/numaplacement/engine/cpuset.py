# SPDX-License-Identifier: Apache-2.0
"""Binding a container's memory to the targets by its cpuset.mems: what makes a move stay, and rebinds memory policies.

A write to cpuset.mems is no harmless setting. Under cgroup v2 the kernel moves, before the write returns, whatever
memory of the tasks is on NUMA nodes that are in the old set and not in the new one: in one go that nothing can stop,
limit or see into, and without a word of what it left (kernel/cgroup/cpuset.c, cpuset_update_tasks_nodemask;
mm/mempolicy.c, do_migrate_pages). So the set is narrowed only once our own move has left nearly nothing to move. Where
the present set leaves a target out, it is widened first: a NUMA node that is in both sets is no source.

Each write also rebinds the tasks' bind and interleave policies, n-th NUMA node of the old set to n-th of the new one.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cgroups import Container
from .kernel import Kernel
from .listformat import format_list, parse_list
from .memory_stat import MAPPED, sums_of
from .wording import size_text

LEFT_LIMIT = 64 << 20
"""Bytes of the process off the targets up to which cpuset.mems is narrowed, asked to move or not: about 0.1 s."""
CONTAINER_LIMIT = 1 << 30
"""The same for all of the container: a launcher and its like have some 100 MiB, and no vCPU waits for them."""
_NO_RIGHT = "Mount the host's /sys/fs/cgroup writable into this program's container and run it as root."
_REMEDIES = {
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _NO_RIGHT,
    errno.EINVAL: "Choose a NUMA node that is online and has memory.",
    errno.ENOENT: "Let the container runtime switch the cpuset controller on for this container.",
    errno.EBUSY: "Look who else writes this cpuset (kubelet's memory manager, libvirt), and try again.",
}


@dataclass(frozen=True, kw_only=True)
class Cpuset:
    """The memory side of one cgroup's cpuset.

    `own` is what cpuset.mems says, empty where it takes what is above; `effective` is cpuset.mems.effective, `above`
    that of the parent.
    """

    directory: Path
    own: frozenset[int]
    effective: frozenset[int]
    above: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One write to cpuset.mems; empty takes what is above. `present` is what it said before."""

    directory: Path
    mems: frozenset[int]
    present: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class RebindPlan:
    """What to write before memory moves, and after; `refused` why nothing is to be written at all, or empty."""

    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    refused: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class RebindOutcome:
    """Whether the writes were done, and one clause of what was seen; `remedy` is empty where they were.

    `written` says whether any was tried: then the kernel may have moved memory, also where the write failed.
    """

    done: bool
    evidence: str
    remedy: str = ""
    written: bool = False


class CannotRead(Exception):
    """A cpuset cannot be read; the message is one clause of why, and `remedy` what to do."""

    def __init__(self, evidence: str, remedy: str) -> None:
        super().__init__(evidence)
        self.remedy = remedy


def plan_rebind(cpusets: Sequence[Cpuset], *, targets: frozenset[int], others: int = 0) -> RebindPlan:
    """Decide what to write, so that memory may be on the targets before it moves, and nowhere else afterwards.

    `cpusets` are that of the container first, then those of cgroups below it that hold threads of the process. Of
    these only such as say something of their own are written. `others` are processes in the container that do not
    belong to the VM: their memory would be moved along, so nothing is written then.
    """
    container = cpusets[0]
    if others:
        return RebindPlan(
            refused=f"processes beside the VM's in the cgroup {container.directory.name}: {others}",
            remedy="Start the VM in a cgroup of its own: cpuset.mems would move the others' memory as well.",
        )
    if not targets <= container.above:
        allowed = format_list(container.above)
        return RebindPlan(
            refused=f"the cgroup above {container.directory.name} allows NUMA nodes {allowed} only",
            remedy=f"Widen cpuset.mems of {container.directory.parent.name} to NUMA nodes {format_list(targets)}.",
        )
    written = [container, *(cpuset for cpuset in cpusets[1:] if cpuset.own)]
    widened = {
        cpuset.directory: (cpuset.own or cpuset.effective) | targets
        for cpuset in written
        if not targets <= cpuset.effective
    }
    before = [
        Step(directory=cpuset.directory, mems=widened[cpuset.directory], present=cpuset.own)
        for cpuset in written
        if cpuset.directory in widened
    ]
    after = [
        Step(directory=cpuset.directory, mems=targets, present=widened.get(cpuset.directory, cpuset.own))
        for cpuset in reversed(written)
        if cpuset.own != targets
    ]
    return RebindPlan(before=tuple(before), after=tuple(after))


def read_cpusets(container: Container, kernel: Kernel) -> tuple[Cpuset, ...]:
    """Return the cpusets of a container, its own first. Raises CannotRead."""
    return tuple(_read(directory, kernel) for directory in (container.directory, *container.inner))


def _read(directory: Path, kernel: Kernel) -> Cpuset:
    try:
        return Cpuset(
            directory=directory,
            own=_mems(directory / "cpuset.mems", kernel),
            effective=_mems(directory / "cpuset.mems.effective", kernel),
            above=_mems(directory.parent / "cpuset.mems.effective", kernel),
        )
    except FileNotFoundError as error:
        raise CannotRead(f"the cgroup {directory.name} has no cpuset of its own", _REMEDIES[errno.ENOENT]) from error
    except OSError as error:
        raise CannotRead(f"cannot read {error.filename}: {error.strerror}", _NO_RIGHT) from error


def others_in(container: Container, pid: int) -> int:
    """Return how many processes of a container do not belong to the VM.

    All in a cgroup of a pod or a machine do: QEMU's launcher and its helpers.
    """
    return 0 if container.dedicated else len(container.processes - {pid})


@dataclass(frozen=True, kw_only=True)
class Rebind:
    """A plan for one container, and the writes."""

    container: Container
    plan: RebindPlan
    targets: frozenset[int]
    kernel: Kernel

    def widen(self) -> RebindOutcome:
        """Let memory be on the targets, which moves nothing. What was written is put back where a write fails."""
        outcome = self._write(self.plan.before)
        if not outcome.done:
            self.put_back()
        return outcome

    def narrow(self, *, left: int, pooled: int = 0) -> RebindOutcome:
        """Let memory be on the targets only, unless that would move much, or pages of a pool.

        `left` are all bytes of the process on NUMA nodes that are no target, whatever was asked of them, and `pooled`
        those of them in pages of huge-page pools, which the kernel would move with no regard to the pools (pools.py).
        Those of the container that its cgroup counts are looked up here; it does not count pages of pools. The limits
        are LEFT_LIMIT and CONTAINER_LIMIT.
        """
        if not self.plan.after:
            return RebindOutcome(done=True, evidence=self._now())
        away = max(left, self._mapped_off_target())
        if left > LEFT_LIMIT or away > CONTAINER_LIMIT:
            return self._too_much(f"{size_text(away)} of the container", "in one call that cannot be stopped")
        if pooled:
            return self._too_much(f"{size_text(pooled)} in pages of huge-page pools", "and change the pools in silence")
        return self._write(self.plan.after)

    def _too_much(self, what: str, how: str) -> RebindOutcome:
        """Return why nothing is written: `what` would be moved, and `how`."""
        return RebindOutcome(
            done=False,
            evidence=(
                f"{what} are still off NUMA nodes {format_list(self.targets)}, and a write to cpuset.mems would move"
                f" them {how}; {self._now()}"
            ),
            remedy="Remove what keeps this memory (the other rows say what), and try again.",
        )

    def put_back(self) -> RebindOutcome:
        """Undo widen(), for a move that was given up before any memory moved: after that it would move it back.

        A write that fails ends nothing: each cpuset is put back that can be.
        """
        outcomes = [
            self._write((Step(directory=step.directory, mems=step.present, present=step.mems),))
            for step in reversed(self.plan.before)
        ]
        failed = [outcome for outcome in outcomes if not outcome.done]
        return failed[0] if failed else RebindOutcome(done=True, evidence=self._now(), written=bool(outcomes))

    def _write(self, steps: Sequence[Step]) -> RebindOutcome:
        """Write one after the other until one fails."""
        for step in steps:
            path = step.directory / "cpuset.mems"
            wanted = format_list(step.mems)
            try:
                self.kernel.write(path, f"{wanted}\n")
                own = _mems(path, self.kernel)
            except OSError as error:
                number = error.errno or 0
                return RebindOutcome(
                    done=False,
                    evidence=f"writing {wanted or 'nothing'} to {path} failed: {errno.errorcode.get(number, number)}",
                    remedy=_REMEDIES.get(number, "Look at the kernel's log, and try again."),
                    written=True,
                )
            if own != step.mems:
                return RebindOutcome(
                    done=False,
                    evidence=f"{path} says {format_list(own) or 'nothing'} right after {wanted} was written",
                    remedy=_REMEDIES[errno.EBUSY],
                    written=True,
                )
        return RebindOutcome(done=True, evidence=self._now(), written=bool(steps))

    def _now(self) -> str:
        """Say what is in force."""
        directory = self.container.directory
        try:
            mems = format_list(_mems(directory / "cpuset.mems.effective", self.kernel))
        except OSError:
            return f"cpuset.mems of {directory.name} cannot be read back"
        return f"cpuset.mems of {directory.name} is {mems} in effect"

    def _mapped_off_target(self) -> int:
        """Return the container's bytes off the targets that a write would move, as far as its cgroup counts them."""
        try:
            text = self.kernel.read(self.container.directory / "memory.numa_stat")
        except OSError:
            return 0
        return sum(count for numa_node, count in sums_of(text, MAPPED).items() if numa_node not in self.targets)


def prepare_rebind(pid: int, container: Container, kernel: Kernel, *, targets: frozenset[int]) -> Rebind:
    """Read a container's cpusets and plan for them. Raises CannotRead."""
    plan = plan_rebind(read_cpusets(container, kernel), targets=targets, others=others_in(container, pid))
    return Rebind(container=container, plan=plan, targets=targets, kernel=kernel)


def _mems(path: Path, kernel: Kernel) -> frozenset[int]:
    return parse_list(kernel.read(path))
