# SPDX-License-Identifier: Apache-2.0
"""Runs one command that never outlives the session that asked for it, nor a time limit.

    python -I leash.py SECONDS COMMAND…

Standard input is the leash: its end of file (the session closed it, or died, even by SIGKILL) ends the command, and so
does the time limit. Should this process itself be killed, the kernel ends the command (PR_SET_PDEATHSIG). The
command's PID is the first line on standard output. Standard library only and a program of its own, so that it works
whatever state the session is in.

Exit status: the command's own, 128 + signal when a signal ended it, 124 after the time limit, 137 when the leash was
let go.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
TIME_LIMIT_STATUS = 124
LET_GO_STATUS = 128 + signal.SIGKILL


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for the command and all that is still in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(seconds: float, command: list[str]) -> int:
    """Start `command`, watch it, and return the exit status described above."""
    deadline = time.monotonic() + seconds
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
    )
    print(process.pid, flush=True)
    ended = os.pidfd_open(process.pid)
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    poller.register(0, select.POLLIN)
    while True:
        ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        descriptors = {descriptor for descriptor, _ in ready}
        if ended in descriptors:
            status = process.wait()
            return status if status >= 0 else 128 - status
        if 0 in descriptors and not os.read(0, 4096):
            _end(process)
            return LET_GO_STATUS
        if not ready:
            _end(process)
            print(f"leash: the time limit of {seconds:g} s has passed, ended {command[0]}", file=sys.stderr, flush=True)
            return TIME_LIMIT_STATUS


if __name__ == "__main__":
    sys.exit(run(float(sys.argv[1]), sys.argv[2:]))
