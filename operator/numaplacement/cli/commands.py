# SPDX-License-Identifier: Apache-2.0
"""The commands of ``numaplace``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Unpack

import click

from numaplacement import __version__
from numaplacement.api.conditions import find
from numaplacement.api.migration import NumaMigrationStatus
from numaplacement.api.resources import to_document
from numaplacement.engine.errors import EngineError, ProcessEnded
from numaplacement.engine.process import read_process
from numaplacement.engine.surveyor import read_numa_maps
from numaplacement.engine.verdict import Note, Outcome, Request

from .causes import causes
from .completion import SHELLS, script
from .exits import Fault, Refused, exit_of
from .explaining import Explained, command_of, explained
from .looking import host_of, look, look_at_all
from .obstacles import see_numa_nodes
from .output import Form, document_text, emit, output_option, rendered, say, see_that_stdout_is_open
from .processes import Candidate, qemus
from .running import carry_out, gone
from .selection import chosen, required, selection
from .surroundings import Surroundings
from .verdict import status_of, status_of_refusal, verdict_tables
from .view_tables import process_tables, vms_table
from .watching import watch as watch_process
from .wish import Duration, MoveWish, TargetWish, move_options, request, target_of, target_options

Process = tuple[int | None, str | None, int | None]
"""PID, --vm and --pid, of which at most one is given."""
_EXITS = """
\b
Exit codes:
  0  placed: all of it is on target, or what was asked for is told
  2  usage: the command line cannot be meant
  3  residue: more than the tolerance is off target, or what was placed did not stay
  4  refused before anything was touched
  5  cancelled, or the deadline passed
  1  anything else
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=_EXITS,
)
@click.version_option(__version__, prog_name="numaplace")
@click.pass_context
def numaplace(context: click.Context) -> None:
    """Move the memory of running VMs to a NUMA node of this host, and see why any byte stays.

    Works on any KVM host, with libvirt or bare QEMU; needs root, and no cluster.
    """
    context.ensure_object(Surroundings)
    see_that_stdout_is_open()


@numaplace.command()
@selection
@output_option
@click.pass_obj
def show(around: Surroundings, /, *, qemu_pid: int | None, vm: str | None, any_pid: int | None, form: Form) -> None:
    """Show where the memory of a VM is.

    With its threads and pins, and what a move would be refused for. Without PID and --vm: all VMs of this host.
    """
    see_numa_nodes(around.kernel)
    candidate = _asked(around, qemu_pid, vm, any_pid)
    if candidate is not None:
        view = look(candidate, around.kernel)
        emit(rendered(*process_tables(view)) if form is Form.TABLE else document_text(to_document(view), form))
        return
    rows, trouble = look_at_all(_all(around), around.kernel)
    if form is Form.TABLE:
        numa_nodes = [node.numa_node for node in host_of(around.kernel).numa_nodes]
        if rows:
            emit(rendered(vms_table(rows, numa_nodes)))
        else:
            say("No QEMU runs on this host, or none that this user may see.")
    else:
        emit(document_text({"vms": [to_document(row) for row in rows]}, form))
    if trouble:
        raise Fault(trouble)


@numaplace.command(epilog=_EXITS)
@selection
@target_options
@output_option
@click.pass_obj
def plan(
    around: Surroundings,
    /,
    *,
    qemu_pid: int | None,
    vm: str | None,
    any_pid: int | None,
    form: Form,
    **wish: Unpack[TargetWish],
) -> None:
    """Say what a move would do, and touch nothing.

    What would move, what would stay, and what the move would be refused for.
    """
    _move(around, (qemu_pid, vm, any_pid), form, request(dry_run=True, **wish))


@numaplace.command(epilog=_EXITS)
@selection
@target_options
@move_options
@click.option("--dry-run", is_flag=True, help="Plan and report, touch nothing: the same as numaplace plan.")
@output_option
@click.pass_obj
def move(
    around: Surroundings,
    /,
    *,
    qemu_pid: int | None,
    vm: str | None,
    any_pid: int | None,
    form: Form,
    **wish: Unpack[MoveWish],
) -> None:
    """Move the memory of a running VM to a NUMA node.

    Afterwards it says where every byte is, and why any byte stayed.
    Ctrl-C ends it between two calls of the kernel; what has moved by then stays moved.
    """
    _move(around, (qemu_pid, vm, any_pid), form, request(**wish))


@numaplace.command(epilog=_EXITS)
@selection
@target_options
@output_option
@click.pass_obj
def explain(
    around: Surroundings,
    /,
    *,
    qemu_pid: int | None,
    vm: str | None,
    any_pid: int | None,
    form: Form,
    **wish: Unpack[TargetWish],
) -> None:
    """Explain why memory is off the target.

    What keeps it there, and what put it there; nothing is touched. Ends with 0 when all of it is on
    target or what is not is within the tolerance, 3 when more than the tolerance is not, 4 when a move
    would be refused.
    """
    asked = request(dry_run=True, **wish)
    process = (qemu_pid, vm, any_pid)
    with _refusals_told(around, form, asked):
        candidate = _required(around, process)
        started = around.now()
        verdict = carry_out(candidate, asked, around)
    if verdict.outcome not in {Outcome.PLANNED, Outcome.REFUSED}:
        _tell(status_of(verdict, started=started, now=around.now()), form)
        sys.exit(exit_of(verdict))
    found = explained(
        verdict, asked, causes=_causes(around, candidate, asked), again=command_of(asked, _words(process))
    )
    _tell(status_of(found.verdict, started=started, now=around.now(), said=found.said), form, found)
    sys.exit(found.code)


@numaplace.command()
@selection
@click.option(
    "--every",
    metavar="DURATION",
    type=Duration(of_none="{} is no time between two looks"),
    default="2s",
    show_default=True,
    help="Time between two looks; a look walks the page tables of the process.",
)
@output_option
@click.pass_obj
def watch(
    around: Surroundings, /, *, qemu_pid: int | None, vm: str | None, any_pid: int | None, form: Form, every: float
) -> None:
    """Show where the memory is, again and again.

    Until the process ends, or Ctrl-C. With -o json, a line for each look.
    """
    watch_process(_required(around, (qemu_pid, vm, any_pid)), around, form=form, every=every)


@numaplace.command(
    epilog="\b\n" + "\n".join(f"{shell}: {what}" for shell, what in SHELLS.items()),
)
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete this command."""
    emit(script(numaplace, shell) + "\n")


def _move(around: Surroundings, process: Process, form: Form, asked: Request) -> None:
    with _refusals_told(around, form, asked):
        candidate = _required(around, process)
        started = around.now()
        verdict = carry_out(candidate, asked, around)
    _tell(status_of(verdict, started=started, now=around.now()), form)
    sys.exit(exit_of(verdict))


@contextlib.contextmanager
def _refusals_told(around: Surroundings, form: Form, asked: Request) -> Iterator[None]:
    """Write a document where a program reads it and nobody came to look at the memory; a person gets the sentence."""
    started = around.now()
    try:
        yield
    except Refused as refused:
        if form is Form.TABLE:
            raise
        _tell(status_of_refusal(refused, asked, started=started, now=around.now()), form)
        sys.exit(refused.exit_code)


def _tell(status: NumaMigrationStatus, form: Form, found: Explained | None = None) -> None:
    ready = find(status.conditions, "Ready")
    message = ready.message if ready is not None else ""
    if form is Form.TABLE:
        text = rendered(*verdict_tables(status, message, headline=found.headline if found else None))
    else:
        text = document_text(to_document(status), form)
    emit(text, otherwise=message if found else f"{status.result}: {message}")


def _causes(around: Surroundings, candidate: Candidate, asked: Request) -> tuple[Note, ...]:
    """Return what puts memory off the targets. Raises Fault."""
    try:
        process = read_process(candidate.pid, around.kernel)
        policies = read_numa_maps(candidate.pid, around.kernel)
    except ProcessEnded as ended:
        raise gone(candidate) from ended
    except EngineError as error:
        raise Fault(str(error)) from error
    targets = frozenset(target_of(asked).numa_nodes)
    return causes(process, policies, host_of(around.kernel), targets=targets)


def _words(process: Process) -> tuple[str, ...]:
    """Return the words of a command line that name a process."""
    qemu_pid, vm, any_pid = process
    if vm is not None:
        return ("--vm", vm)
    return (str(qemu_pid),) if any_pid is None else ("--pid", str(any_pid))


def _asked(around: Surroundings, qemu_pid: int | None, vm: str | None, any_pid: int | None) -> Candidate | None:
    try:
        return chosen(around.kernel, qemu_pid=qemu_pid, vm=vm, any_pid=any_pid)
    except EngineError as error:
        raise Fault(str(error)) from error


def _required(around: Surroundings, process: Process) -> Candidate:
    qemu_pid, vm, any_pid = process
    try:
        return required(around.kernel, qemu_pid=qemu_pid, vm=vm, any_pid=any_pid)
    except EngineError as error:
        raise Fault(str(error)) from error


def _all(around: Surroundings) -> tuple[Candidate, ...]:
    try:
        return qemus(around.kernel)
    except EngineError as error:
        raise Fault(str(error)) from error
