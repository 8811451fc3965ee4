# SPDX-License-Identifier: Apache-2.0
"""Runs the engine beside the main thread, which shows how far it is and hears Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from numaplacement.engine.errors import EngineError, ProcessEnded
from numaplacement.engine.host import HostFacts, read_host
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.ledger import Ledger
from numaplacement.engine.listformat import format_list
from numaplacement.engine.run import run
from numaplacement.engine.staying import LIMIT, with_stay
from numaplacement.engine.verdict import Progress, Request, Stage, Verdict

from .exits import Fault, Refused
from .following import Follower, follower
from .output import say
from .processes import Candidate, held
from .surroundings import Surroundings

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK = 0.1
"""Seconds between two looks whether a signal came."""
_FIRST = "Cancelling: the kernel call under way is the last one; what has moved stays moved."
_AGAIN = (
    "Still waiting: a call of the kernel cannot be interrupted, and ends by itself (--call-latency says how long one"
    " may take). Nothing is lost by waiting; ending this program by force changes nothing about the call."
)


class Interruptions:
    """Counts what a person or the system did to end the program, while the context lasts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _number: int, _frame: object) -> None:
        """Take note of a signal; what is to be done about it is done outside the handler."""
        self.count += 1

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear signals instead of ending at once."""
        ignored = signal.SIG_IGN  # by nohup, or by a shell for what it runs in the background
        wanted = [number for number in _SIGNALS if signal.getsignal(number) is not ignored]
        before = {number: signal.signal(number, self) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Watch:
    """The engine's watcher: hands progress on, says when to end, and knows whether anything was touched."""

    def __init__(self, shown: Follower, interruptions: Interruptions) -> None:
        self._shown = shown
        self.interruptions = interruptions
        self.touched = False

    def progressed(self, progress: Progress, /) -> None:
        """Hand on how far the run is."""
        self.touched = self.touched or progress.stage is not Stage.SURVEY
        self._shown.progressed(progress)

    def cancelled(self) -> bool:
        """Say whether to end before the next kernel call."""
        return self.interruptions.count > 0


def carry_out(candidate: Candidate, request: Request, around: Surroundings) -> Verdict:
    """Run the engine on a process and return its verdict. Raises Fault where it cannot even begin."""
    check_host(around.kernel)
    interruptions = Interruptions()
    with follower(clock=around.clock) as shown, interruptions.heard():
        watch = Watch(shown, interruptions)
        try:
            with held(candidate, around.kernel) as pidfd:
                return _run(candidate, request, around, watch=watch, pidfd=pidfd)
        except ProcessEnded as ended:
            raise gone(candidate) from ended
        except EngineError as error:
            raise (Fault if watch.touched else Refused)(str(error)) from error


def _run(candidate: Candidate, request: Request, around: Surroundings, *, watch: Watch, pidfd: int) -> Verdict:
    told = 0
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(_whole_way, candidate, request, around, watch=watch, pidfd=pidfd)
        while not future.done():
            wait([future], timeout=_LOOK)
            if watch.interruptions.count > told:
                say(_AGAIN if told else _FIRST)
                told = watch.interruptions.count
        return future.result()


def _whole_way(candidate: Candidate, request: Request, around: Surroundings, *, watch: Watch, pidfd: int) -> Verdict:
    """Move, and see whether it stays. Raises EngineError."""
    reserving = contextlib.nullcontext() if request.dry_run else contextlib.closing(Ledger(around.reservations))
    with reserving as ledger:
        verdict = run(
            pid=candidate.pid,
            request=request,
            kernel=around.kernel,
            watcher=watch,
            clock=around.clock,
            pidfd=pidfd,
            ledger=ledger,
        )
    if ledger is None:
        return verdict
    if ledger.note and verdict.calls.count:
        say(f"{ledger.note}.")
    return with_stay(
        verdict,
        pid=candidate.pid,
        request=request,
        kernel=around.kernel,
        watcher=watch,
        limit=min(LIMIT, request.deadline),
        clock=around.clock,
        pidfd=pidfd,
    )


def gone(candidate: Candidate) -> Fault:
    """Return the fault of a process that ended before it could be looked at."""
    return Fault(f"process {candidate.pid} ended before its memory was looked at; nothing was touched")


def check_host(kernel: Kernel) -> HostFacts:
    """Return the host's facts. Raises Fault when no memory can be moved on it, whatever the process."""
    try:
        kernel.read(kernel.sys / "devices/system/node/online")
    except OSError as error:
        raise Refused(
            "this kernel shows no NUMA nodes; run one that is built with CONFIG_NUMA, and with the host's /sys mounted"
        ) from error
    try:
        host = read_host(kernel)
    except EngineError as error:
        raise Refused(str(error)) from error
    with_memory = [node.numa_node for node in host.numa_nodes if node.has_memory]
    if len(with_memory) < 2:  # noqa: PLR2004 - from and to
        raise Refused(
            f"this host has memory on one NUMA node only ({format_list(with_memory)}): there is nowhere to move it to;"
            " run this on a host that lscpu shows several NUMA nodes of (a VM as host needs several guest cells)"
        )
    if not host.move_pages_allowed and host.seccomp_mode:
        raise Refused(
            "a seccomp filter forbids move_pages here, as container runtimes' default profiles do; run this on the host"
            " itself, or the container with a profile that allows move_pages (--security-opt seccomp=unconfined)"
        )
    if not host.move_pages_allowed:
        raise Refused(
            "this kernel refuses move_pages even on this program's own memory; run a kernel built with CONFIG_NUMA and"
            " CONFIG_MIGRATION, and without a security module that denies it"
        )
    return host
