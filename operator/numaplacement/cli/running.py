# SPDX-License-Identifier: Apache-2.0
"""Runs the engine beside the main thread, which shows how far it is and hears Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from numaplacement.engine.errors import EngineError, ProcessEnded
from numaplacement.engine.ledger import Ledger
from numaplacement.engine.reasons import ADVICE, Reason
from numaplacement.engine.run import run
from numaplacement.engine.staying import LIMIT, with_stay
from numaplacement.engine.verdict import Outcome, Progress, Refusal, Request, Stage, Verdict

from .exits import Fault, Refused
from .following import Follower, follower
from .obstacles import check_host
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
_LOOKING = "Ending; nothing was touched."
_STAYING = "No longer watching; the verdict stands."
_LOOKING_AGAIN = "Still waiting: the look under way ends by itself."
_ENDED = Verdict(outcome=Outcome.CANCELLED, message="it was ended by a signal; nothing was touched")
"""The verdict on a dry run that is ended."""


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
        self.stage = Stage.SURVEY

    def progressed(self, progress: Progress, /) -> None:
        """Hand on how far the run is."""
        self.stage = progress.stage
        self.touched = self.touched or progress.stage is not Stage.SURVEY
        self._shown.progressed(progress)

    def cancelled(self) -> bool:
        """Say whether to end before the next kernel call."""
        return self.interruptions.count > 0


def carry_out(candidate: Candidate, request: Request, around: Surroundings) -> Verdict:
    """Run the engine on a process and return its verdict. Raises Fault where it cannot even begin.

    The engine does not look whether a dry run is to end, which touches nothing and takes no longer than a survey.
    """
    check_host(around.kernel)
    interruptions = Interruptions()
    with follower(clock=around.clock) as shown, interruptions.heard():
        watch = Watch(shown, interruptions)
        try:
            with held(candidate, around.kernel) as pidfd:
                verdict = _run(candidate, request, around, watch=watch, pidfd=pidfd)
        except ProcessEnded as ended:
            raise gone(candidate) from ended
        except EngineError as error:
            raise Fault(str(error)) if watch.touched else _refused(error) from error
        return _ENDED if request.dry_run and watch.cancelled() else verdict


def _refused(error: EngineError) -> Refused:
    """Return what ends the program where the engine cannot look; a right that is missing is a reason of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, PermissionError):
        cause = cause.__cause__
    words, reason = str(error), Reason.NO_ACCESS
    return Refused(
        words, Refusal(reason=reason, evidence=words, remedy=ADVICE[reason].remedy) if cause is not None else None
    )


def _run(candidate: Candidate, request: Request, around: Surroundings, *, watch: Watch, pidfd: int) -> Verdict:
    told = 0
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(_whole_way, candidate, request, around, watch=watch, pidfd=pidfd)
        while not future.done():
            wait([future], timeout=_LOOK)
            if watch.interruptions.count > told:
                say(_on_interruption(watch, request, again=told > 0))
                told = watch.interruptions.count
        if watch.interruptions.count and not told:
            say(_on_interruption(watch, request, again=False))
        return future.result()


def _on_interruption(watch: Watch, request: Request, *, again: bool) -> str:
    """Return what a person is told who wants the program to end."""
    if watch.stage is Stage.STAY or request.dry_run:
        first = _STAYING if watch.stage is Stage.STAY else _LOOKING
        return _LOOKING_AGAIN if again else first
    return _AGAIN if again else _FIRST


def _whole_way(candidate: Candidate, request: Request, around: Surroundings, *, watch: Watch, pidfd: int) -> Verdict:
    """Move, and see whether it stays. Raises EngineError."""
    with contextlib.closing(Ledger(around.reservations, make=not request.dry_run)) as ledger:
        verdict = run(
            pid=candidate.pid,
            request=request,
            kernel=around.kernel,
            watcher=watch,
            clock=around.clock,
            pidfd=pidfd,
            ledger=ledger,
        )
    if ledger.note and (verdict.calls.count or verdict.outcome is Outcome.PLANNED):
        say(f"{ledger.note}.")
    if request.dry_run:
        return verdict
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
