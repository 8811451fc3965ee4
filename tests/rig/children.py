# SPDX-License-Identifier: Apache-2.0
"""Long-running programs of a test session that end with it, however it ends."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

LOG_TAIL_LINES = 25


class ChildError(Exception):
    """A program ended when it should run; the message carries the tail of its log."""


@dataclass(frozen=True)
class Child:
    """One running program and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Process id; setpriv has replaced itself by the program, so it is the program's own."""
        return self.process.pid

    def log_tail(self) -> str:
        """Return the last lines of the log, for error messages."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-LOG_TAIL_LINES:])

    def check(self) -> None:
        """Raise `ChildError` if the program has ended."""
        code = self.process.poll()
        if code is not None:
            raise ChildError(f"{self.name} ended with code {code}; the end of {self.log}:\n{self.log_tail()}")


class Children:
    """Starts programs that the kernel kills when this process dies, SIGKILL included.

    PR_SET_PDEATHSIG (prctl(2)) acts when the *thread* that forked the child ends, not the process. So one thread,
    which lives as long as this object, starts them all: a program survives the thread that asked for it.
    """

    def __init__(self) -> None:
        self._spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="children")
        self._running: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self, name: str, argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None) -> Child:
        """Start a program whose output is appended to `log`; `env` replaces the whole environment when given."""
        child = self._spawner.submit(self._spawn, name, [str(word) for word in argv], log, env).result()
        self._running.append(child)
        return child

    @staticmethod
    def _spawn(name: str, argv: list[str], log: Path, env: Mapping[str, str] | None) -> Child:
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                # Ctrl-C in a terminal is for the session, which then ends its programs in the right order.
                process_group=0,
            )
        return Child(name=name, process=process, log=log)

    def stop(self, child: Child, *, timeout: float = 15, force: bool = False) -> None:
        """End a program: SIGTERM and, after `timeout` seconds or at once with `force`, SIGKILL."""
        if child not in self._running:
            return
        self._running.remove(child)
        if not force:
            _signal(child, signal.SIGTERM)
            try:
                child.process.wait(timeout)
            except subprocess.TimeoutExpired:
                force = True
        if force:
            _signal(child, signal.SIGKILL)
            child.process.wait()

    def close(self) -> None:
        """End all programs, the one started last first."""
        for child in reversed(self._running.copy()):
            self.stop(child)
        self._spawner.shutdown()


def _signal(child: Child, number: signal.Signals) -> None:
    if child.process.poll() is None:
        os.kill(child.pid, number)
