# SPDX-License-Identifier: Apache-2.0
"""Tells of kernel calls that take too long. None is ended: a call cannot be cancelled, only waited for."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(frozen=True, kw_only=True)
class LongCall:
    """A call that has lasted `seconds` so far, or in all when it has `ended`; `what` it is, in words."""

    call: int
    what: str
    seconds: float
    ended: bool


@dataclass
class _Call:
    what: str
    began: float
    told: bool = False


@dataclass
class Calls:
    """The calls that are under way, and which of them have lasted longer than `limit` seconds. Pure; not locked."""

    limit: float
    _open: dict[int, _Call] = field(default_factory=dict)
    _ended: list[LongCall] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def enter(self, what: str, now: float) -> int:
        """Take note that a call begins; return its number."""
        number = next(self._numbers)
        self._open[number] = _Call(what=what, began=now)
        return number

    def leave(self, number: int, now: float) -> bool:
        """Take note that a call has ended; say whether that is to be told."""
        call = self._open.pop(number)
        if call.told:
            self._ended.append(LongCall(call=number, what=call.what, seconds=now - call.began, ended=True))
        return call.told

    def due(self, now: float) -> list[LongCall]:
        """Return what is to be told now: each long call once, and once more when it has ended."""
        ended, self._ended = self._ended, []
        late = [(number, call) for number, call in self._open.items() if self._late(call, now)]
        for _, call in late:
            call.told = True
        return ended + [
            LongCall(call=number, what=call.what, seconds=now - call.began, ended=False) for number, call in late
        ]

    def rest(self, now: float) -> float:
        """Return the seconds until something can be due; a call that begins later cannot be before that."""
        waiting = [self.limit - (now - call.began) for call in self._open.values() if not call.told]
        return max(0.0, min(waiting, default=self.limit))

    def _late(self, call: _Call, now: float) -> bool:
        return not call.told and now - call.began >= self.limit


class Watchdog:
    """Watches the calls of all mover threads of one run, from a thread of its own that ends with it.

    `tell` is called from that thread only, one call after the other; it must not raise. What ended late in the run is
    told before leaving the `with` block returns.
    """

    def __init__(self, *, tell: Callable[[LongCall], None], clock: Callable[[], float], limit: float = 10.0) -> None:
        self._tell = tell
        self._clock = clock
        self._calls = Calls(limit)
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        with contextlib.suppress(RuntimeError):  # the host has no thread left: nobody watches then
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @contextmanager
    def call(self, what: str) -> Iterator[None]:
        """Watch the kernel call made in the `with` block."""
        with self._changed:
            number = self._calls.enter(what, self._clock())
        try:
            yield
        finally:
            with self._changed:
                if self._calls.leave(number, self._clock()):
                    self._changed.notify()

    def _watch(self) -> None:
        over = False
        while not over:
            with self._changed:
                over = self._over
                due = self._calls.due(self._clock())
                if not due and not over:
                    self._changed.wait(self._calls.rest(self._clock()))
            for each in due:
                self._tell(each)
