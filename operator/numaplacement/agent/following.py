# SPDX-License-Identifier: Apache-2.0
"""What passes between a run of the engine, in its own thread, and the agent, which follows and may end it."""

from __future__ import annotations

import threading

from numaplacement.engine.verdict import Progress, Stage


class Following:
    """An engine `Watcher`: the engine's thread tells how far it is, any thread may say that it is to end."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._progress = Progress(stage=Stage.SURVEY)

    @property
    def progress(self) -> Progress:
        """Return how far the run is."""
        return self._progress

    def cancel(self) -> None:
        """Have the run end before its next kernel call."""
        self._cancelled.set()

    def progressed(self, progress: Progress, /) -> None:
        """Take note of how far the run is. An attribute is replaced whole, so no lock is needed."""
        self._progress = progress

    def cancelled(self) -> bool:
        """Say whether the run is to end."""
        return self._cancelled.is_set()
