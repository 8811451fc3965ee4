# SPDX-License-Identifier: Apache-2.0
"""A folder for one session's state, removed with it; what a killed session left is removed by the next one."""

import contextlib
import fcntl
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

LOCK = "lock"


class StateFolder:
    """A new private folder (mode 0700) in the system's temporary folder, owned as long as its lock is held."""

    def __init__(self, prefix: str) -> None:
        _sweep(prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        # Locked before it gets the name that a sweep looks for: no moment at which a live folder looks abandoned.
        unnamed = self.path / "lock.new"
        self._lock = unnamed.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / LOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete the folder; a second call does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _sweep(prefix: str) -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK}"):
        # Another sweep may have been faster, and other people's folders are not ours to read.
        with contextlib.suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
