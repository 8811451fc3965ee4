# SPDX-License-Identifier: Apache-2.0
"""Which process a command is about: a QEMU by its number or its VM's name, or any process for experts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from numaplacement.engine.errors import EngineError, ProcessEnded
from numaplacement.engine.kernel import Kernel

from .exits import Fault, Refused
from .plain import plain
from .processes import Candidate, alike, named, qemus, read_candidate
from .surroundings import Surroundings

Command = TypeVar("Command", bound=Callable[..., Any])


class ProcessNumber(click.ParamType[int]):
    """The number of a process."""

    name = "pid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Return the number."""
        text = str(value)
        if not (text.isascii() and text.isdecimal()):
            self.fail(f"{text!r} is no process number; for a VM's name give --vm {plain(text)}", param, ctx)
        if int(text) < 1:
            self.fail(f"{text} is no process number: they begin with 1", param, ctx)
        return int(text)


def selection(command: Command) -> Command:
    """Add PID, --vm and --pid to a command; they arrive as `qemu_pid`, `vm` and `any_pid`."""
    command = click.option(
        "--pid",
        "any_pid",
        metavar="PID",
        type=ProcessNumber(),
        help="Any process whose memory you may move. For experts: nothing checks that moving it makes sense.",
    )(command)
    command = click.option(
        "--vm",
        metavar="NAME",
        shell_complete=_complete_vm,
        help="The QEMU of this VM: its whole name, its UUID, or for KubeVirt NAMESPACE/NAME or NAME.",
    )(command)
    return click.argument(
        "qemu_pid", metavar="[PID]", required=False, type=ProcessNumber(), shell_complete=_complete_pid
    )(command)


def chosen(kernel: Kernel, *, qemu_pid: int | None, vm: str | None, any_pid: int | None) -> Candidate | None:
    """Return the process that was asked for, or None when none was. Raises Fault, UsageError and EngineError."""
    if sum(each is not None for each in (qemu_pid, vm, any_pid)) > 1:
        raise click.UsageError("Give only one of PID, --vm NAME and --pid PID.")
    if vm is not None:
        return _by_name(kernel, vm)
    pid = qemu_pid if any_pid is None else any_pid
    if pid is None:
        return None
    candidate = _by_number(kernel, pid)
    if any_pid is None and not candidate.is_qemu:
        program = plain((candidate.executable or candidate.command_line[0]).rsplit("/", 1)[-1])
        raise click.UsageError(
            f"Process {pid} is not a QEMU but {program or 'a program without a name'}; give --pid {pid} if you mean it,"
            " or run numaplace show to see the VMs of this host."
        )
    return candidate


def required(kernel: Kernel, *, qemu_pid: int | None, vm: str | None, any_pid: int | None) -> Candidate:
    """Return the process that was asked for. Raises as `chosen` does, and UsageError when none was."""
    candidate = chosen(kernel, qemu_pid=qemu_pid, vm=vm, any_pid=any_pid)
    if candidate is None:
        raise click.UsageError("Say which process: PID, --vm NAME or --pid PID; numaplace show lists the VMs.")
    return candidate


def _by_name(kernel: Kernel, name: str) -> Candidate:
    if not name.strip():
        raise click.UsageError("The name after --vm is empty; numaplace show lists the VMs.")
    there = qemus(kernel)
    found = named(there, name)
    if len(found) > 1:
        listed = ", ".join(each.words for each in found)
        same = len({each.guest for each in found}) == 1
        what = "give the PID" if same else "give NAMESPACE/NAME or the PID"
        raise click.UsageError(f"{plain(name)} may be any of these VMs: {listed}; {what}.")
    if not found:
        meant = " or ".join(alike(there, name))
        names = ", ".join(each.words for each in there)
        have = f"it runs {names}" if names else "it runs no QEMU, or none that this user may see"
        raise Fault(f"no VM named {name} runs on this host; {f'did you mean {meant}?' if meant else have}")
    return found[0]


def _by_number(kernel: Kernel, pid: int) -> Candidate:
    try:
        candidate = read_candidate(pid, kernel)
    except ProcessEnded as ended:
        raise Fault(
            f"there is no process {pid} here; run numaplace show to see the VMs of this host (in a container: share"
            " the host's process IDs)"
        ) from ended
    if candidate.leader != pid:
        raise click.UsageError(f"{pid} is a thread of process {candidate.leader}; give {candidate.leader}.")
    if candidate.kernel_thread:
        raise Refused(
            f"process {pid} is a kernel thread and has no memory of its own; choose a QEMU (numaplace show lists them)"
        )
    if candidate.state == "Z":
        raise Fault(f"process {pid} has ended already and waits only for its parent; there is nothing to look at")
    return candidate


def _qemus(context: click.Context) -> tuple[Candidate, ...]:
    around = context.find_object(Surroundings) or Surroundings()
    with contextlib.suppress(EngineError):
        return qemus(around.kernel)
    return ()


def _complete_vm(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    there = _qemus(context)
    names = dict.fromkeys(name for each in there for name in each.names[::-1] if name.startswith(incomplete))
    return [CompletionItem(name) for name in names if name.isprintable() and len(named(there, name)) == 1]


def _complete_pid(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [
        CompletionItem(str(each.pid), help=plain(each.guest))
        for each in _qemus(context)
        if str(each.pid).startswith(incomplete)
    ]
