# SPDX-License-Identifier: Apache-2.0
"""Memory on NUMA nodes that runs of one host have reserved and not used yet, so that two never count on the same.

Runs of one process, and those of others that keep their files in the same directory (an agent beside `numaplace`).

A pool of huge pages that a run may raise is ordinary memory until it is raised: so the run holds as much of that until
then, and from then on the pages of the pool.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from .errors import EngineError
from .lockfiles import HeldFile, LockDirectory
from .wording import size_text

DIRECTORY = Path("/run/numaplacement")
_PATIENCE = 30.0
"""Seconds to wait for others that just reserve, which takes milliseconds, or resize a pool, which may take seconds."""
_WIDTH = 20
"""Digits of a number of bytes in a file, so that it never grows."""


class Place(NamedTuple):
    """A NUMA node's ordinary memory, or its pool of huge pages of one size in bytes."""

    numa_node: int
    page_size: int = 0


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """What does not fit at one place: the bytes `wanted` there, those `available`, and those `held` by other runs."""

    place: Place
    wanted: int
    available: int
    held: int

    def __str__(self) -> str:
        where = f"NUMA node {self.place.numa_node}"
        if self.place.page_size:
            where = f"the pool of {size_text(self.place.page_size)} pages of {where}"
        held = f", and {size_text(self.held)} of that is reserved by other moves" if self.held else ""
        return f"{where} can take {size_text(self.available)}{held}; {size_text(self.wanted)} are needed"


def shortage(
    wanted: Mapping[Place, int], *, available: Callable[[Place], int], held: Mapping[Place, int]
) -> Shortage | None:
    """Return what does not fit, the first such place, or None."""
    for place, count in sorted(wanted.items()):
        free = available(place) if count else 0
        if count and count > free - held.get(place, 0):
            return Shortage(place=place, wanted=count, available=free, held=held.get(place, 0))
    return None


class Ledger:
    """All reservations on this host. `note` says why other processes' are not among them; empty when they are.

    One only to look (not `make`) makes nothing: where the directory is not there, nobody has reserved anything.
    """

    def __init__(self, directory: Path | None = DIRECTORY, *, make: bool = True) -> None:
        self.note = ""
        self._lock = threading.Lock()
        self._own: set[Reservation] = set()
        self._directory: LockDirectory | None = None
        try:
            self._directory = None if directory is None else LockDirectory(directory, make=make)
        except OSError as error:
            if not make and isinstance(error, FileNotFoundError):
                return
            self.note = f"moves by other processes are not taken into account: {directory}: {error.strerror or error}"

    def reserve(self, wanted: Mapping[Place, int], available: Callable[[Place], int]) -> Reservation | Shortage:
        """Reserve all the bytes wanted by place, or nothing; `available` says what a place can take now.

        Raises EngineError when another process keeps the ledger locked, or it cannot be read or written.
        """
        try:
            with self.locked():
                if self._directory is not None:
                    self._directory.sweep()
                return self._reserve(wanted, available)
        except TimeoutError:
            raise EngineError(
                "another process has kept the ledger of moves locked for"
                f" {_PATIENCE:.0f} s; see which numaplace or agent hangs, and end it"
            ) from None
        except OSError as error:
            raise EngineError(
                f"cannot reserve memory for the move: {error}; let this process open more files,"
                " and see that /run has room"
            ) from error

    def lacking(self, wanted: Mapping[Place, int], available: Callable[[Place], int]) -> Shortage | None:
        """Say what reserve() would lack now, and reserve nothing. Raises EngineError when it cannot be read."""
        try:
            return shortage(wanted, available=available, held=self.held_by_others())
        except OSError as error:
            raise EngineError(f"cannot read what other moves have reserved: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all others from reserving, and from resizing pools, meanwhile; not to be entered twice by one thread.

        Raises TimeoutError when another keeps it locked, and OSError.
        """
        with self._lock:
            if self._directory is None:
                yield
                return
            with self._directory.locked(_PATIENCE):
                yield

    def close(self) -> None:
        """Let go of the directory, once all reservations are released."""
        if self._directory is not None:
            self._directory.close()

    def held_by_others(self, own: Reservation | None = None) -> Counter[Place]:
        """Return the bytes that all reservations but this one still hold, by place."""
        if self._directory is not None:
            return _sum(map(_parse, self._directory.others(own.name if own else "")))
        return _sum(each.held() for each in tuple(self._own) if each is not own)

    def _reserve(self, wanted: Mapping[Place, int], available: Callable[[Place], int]) -> Reservation | Shortage:
        missing = shortage(wanted, available=available, held=self.held_by_others())
        if missing is not None:
            return missing
        file = self._directory.hold(_format(wanted)) if self._directory is not None else None
        reservation = Reservation(self, wanted, file)
        self._own.add(reservation)
        return reservation

    def forget(self, reservation: Reservation) -> None:
        """Take note that a reservation is released."""
        self._own.discard(reservation)


class Reservation:
    """What one run has reserved and not used yet. All its mover threads may use it."""

    def __init__(self, ledger: Ledger, wanted: Mapping[Place, int], file: HeldFile | None) -> None:
        self.name = file.name if file is not None else ""
        self._ledger = ledger
        self._held = dict(wanted)
        self._others: Counter[Place] = Counter()
        self._file = file
        self._lock = threading.Lock()
        self._released = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def used(self, count: int, place: Place) -> None:
        """Take note that `count` bytes have been moved there: what is available there is less by them already.

        Others see it at once: it is one write of some bytes to memory.
        """
        with self._lock:
            if place in self._held:
                self._held[place] = max(0, self._held[place] - count)
                with contextlib.suppress(OSError):  # others take it for held a while longer
                    self._tell()

    def hold(self, count: int, place: Place) -> None:
        """Hold so many bytes more at a place it was made for: what is about to be there and is this run's own.

        Raises OSError where others cannot be told; then no more is held.
        """
        with self._lock:
            self._held[place] += count
            try:
                self._tell()
            except OSError:
                self._held[place] -= count
                raise

    def locked(self) -> AbstractContextManager[None]:
        """Keep all others from reserving, and from resizing pools, meanwhile; as Ledger.locked()."""
        return self._ledger.locked()

    def held(self) -> dict[Place, int]:
        """Return what is still held, in bytes by place."""
        with self._lock:
            return dict(self._held)

    def others(self, place: Place) -> int:
        """Return the bytes that other reservations still hold at a place.

        While a call of theirs runs, its pages are both gone from what is available and still held: a place that looks
        too full by a chunk of theirs may not be so a moment later. Where they cannot be read it is what they last were.
        """
        with contextlib.suppress(OSError):
            self._others = self._ledger.held_by_others(self)
        return self._others[place]

    def _tell(self) -> None:
        if self._file is not None and not self._released:
            self._file.write(_format(self._held))

    def release(self) -> None:
        """Give back what is still held; more than once is once."""
        with self._lock:
            if self._released:
                return
            self._released = True
            if self._file is not None:
                self._file.release()
        self._ledger.forget(self)


def _sum(tables: Iterable[Mapping[Place, int]]) -> Counter[Place]:
    total: Counter[Place] = Counter()
    for table in tables:
        total.update(table)
    return total


def _format(held: Mapping[Place, int]) -> str:
    return "".join(f"{place.numa_node} {place.page_size} {count:0{_WIDTH}d}\n" for place, count in held.items())


def _parse(text: str) -> dict[Place, int]:
    """Return what a file says is held; lines that are none of ours say nothing."""
    found = {}
    for line in text.splitlines():
        numa_node, _, rest = line.partition(" ")
        page_size, _, count = rest.partition(" ")
        if numa_node.isdecimal() and page_size.isdecimal() and count.isdecimal():
            found[Place(int(numa_node), int(page_size))] = int(count)
    return found
