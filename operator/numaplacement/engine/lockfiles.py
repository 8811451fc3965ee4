# SPDX-License-Identifier: Apache-2.0
"""The thin shell under the ledger: files that live as long as whoever holds their lock. Decides nothing.

A lock of flock(2) belongs to the open file: it goes with the process, however that ends, and two threads that open the
same file are two holders. What is in a file whose lock is free means nothing any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "lock"
_SUFFIX = ".held"
_MOST = 1 << 16
"""Bytes of a file that are read: far more than a reservation has."""
_NAP = 0.01
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NOT_HELD = {errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM}
"""What opening a file ends with that is gone, or is a link, a socket or another user's."""


class LockDirectory:
    """A directory with one file for each holder. Only its owner may enter it; links in its place are not followed.

    Raises OSError where it cannot be made, or is not there and not to be made, or is not ours alone.
    """

    def __init__(self, path: Path, *, make: bool = True) -> None:
        if make:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_owner(os.fstat(self._fd))
            if make:
                os.close(self._open(_LOCK, os.O_RDWR | os.O_CREAT))
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Close the directory; files that are held stay held."""
        os.close(self._fd)

    @contextmanager
    def locked(self, patience: float) -> Iterator[None]:
        """Hold the lock of the whole directory; raises TimeoutError when it is not to be had in so many seconds.

        Not to be taken twice by one thread: the second would wait for the first.
        """
        descriptor = self._open(_LOCK, os.O_RDWR | os.O_CREAT)
        try:
            until = time.monotonic() + patience
            while not _try_lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() >= until:
                    raise TimeoutError(errno.ETIMEDOUT, "another process has kept the ledger of moves locked")
                time.sleep(_NAP)
            yield
        finally:
            os.close(descriptor)

    def hold(self, text: str) -> HeldFile:
        """Make a file with this text and hold its lock."""
        name = f"{os.getpid()}-{secrets.token_hex(8)}{_SUFFIX}"
        held = HeldFile(self._fd, name, self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        try:
            held.write(text)
            held.lock()
        except BaseException:
            held.release()
            raise
        return held

    def others(self, own: str = "") -> list[str]:
        """Return the texts of the files others hold, all but the one of this name."""
        return [text for name in self._names() if name != own and (text := self._text(name)) is not None]

    def sweep(self) -> None:
        """Remove the files nobody holds; only under locked(), or one just made could be taken for such."""
        for name in self._names():
            if self._text(name) is None:
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=self._fd)

    def _names(self) -> list[str]:
        with os.scandir(self._fd) as entries:
            return [entry.name for entry in entries if entry.name.endswith(_SUFFIX)]

    def _text(self, name: str) -> str | None:
        """Return the text of a file; None when nobody holds it, it is gone or no plain file of ours."""
        try:
            descriptor = self._open(name, os.O_RDONLY)
        except OSError as error:
            if error.errno in _NOT_HELD:
                return None
            raise
        try:
            if _try_lock(descriptor, fcntl.LOCK_SH):
                return None
            text = os.pread(descriptor, _MOST, 0)
            while text != (text := os.pread(descriptor, _MOST, 0)):  # it was being written
                pass
            return text.decode(errors="replace")
        finally:
            os.close(descriptor)

    def _open(self, name: str, flags: int) -> int:
        descriptor = os.open(name, flags | _OPEN, 0o600, dir_fd=self._fd)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, f"{name} is no plain file of this user")
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


class HeldFile:
    """A file whose lock this process holds."""

    def __init__(self, directory: int, name: str, descriptor: int) -> None:
        self.name = name
        self._directory = directory
        self._descriptor = descriptor

    def lock(self) -> None:
        """Take the lock; who just looks whether it is held gives it back at once."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def write(self, text: str) -> None:
        """Put other text of the same length in the place of what is there."""
        os.pwrite(self._descriptor, text.encode(), 0)

    def release(self) -> None:
        """Remove the file and give its lock back; a file that stays means nothing without it."""
        with contextlib.suppress(OSError):
            os.unlink(self.name, dir_fd=self._directory)
        os.close(self._descriptor)


def _check_owner(directory: os.stat_result) -> None:
    if directory.st_uid != os.geteuid() or stat.S_IMODE(directory.st_mode) & 0o022:
        raise PermissionError(errno.EPERM, "it belongs to another user, or others may write to it")


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
