# SPDX-License-Identifier: Apache-2.0
"""The whole way for one process: survey, check, plan, threads, move, verify, explain."""

from __future__ import annotations

import time
from collections.abc import Callable

from .errors import EngineError
from .kernel import Kernel
from .verdict import Request, Verdict, Watcher


def run(
    *,
    pid: int,
    request: Request,
    kernel: Kernel,
    watcher: Watcher,
    clock: Callable[[], float] = time.monotonic,
    pidfd: int | None = None,
) -> Verdict:
    """Move the memory of a process to one NUMA node and say where every byte is, and why any byte stayed.

    `pidfd` is held by the caller and stays theirs; without it the run holds one of its own. Whatever the process or
    the kernel do ends in a verdict. Raises EngineError where the engine cannot even look: no /proc, or no right to
    read where the process's pages are.
    """
    raise EngineError("the engine is being built; this commit fixes its signature only")
