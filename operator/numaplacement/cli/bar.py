# SPDX-License-Identifier: Apache-2.0
"""A live line on a terminal: a bar, and in words how far the run is, as much of it as there is room for."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from numaplacement.engine.verdict import Progress, Stage

from .progress import headline, known, percent

_BAR = 24
"""Characters of the bar."""
_SPINNER = 1
_LEFT_OUT = ("bar", "amount", "p99", "waiting", "rate", "percent", "left")
"""What goes first where there is no room for all: how long it will still take is what a person waits for."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What stands on the line behind the spinner; an empty text for what does not."""

    headline: str
    bar: bool = False
    percent: str = ""
    details: str = ""

    @property
    def width(self) -> int:
        """The characters it takes, blanks between the parts and the spinner included."""
        parts = [self.headline, "-" * _BAR if self.bar else "", self.percent, self.details]
        return _SPINNER + sum(1 + len(part) for part in parts if part)


def fitted(progress: Progress, width: int) -> Line:
    """Return the line for a terminal of so many characters; only what is being done may be longer than that."""
    parts = known(progress)
    share = percent(progress)
    for short in (False, True):
        for count in range(len(_LEFT_OUT) + 1):
            out = frozenset(_LEFT_OUT[:count])
            line = Line(
                headline=headline(progress, short=short),
                bar=bool(share) and "bar" not in out,
                percent="" if "percent" in out else share,
                details=", ".join(text for name, text in parts.items() if name not in out),
            )
            if line.width <= width:
                return line
    return line


class Bar:
    """The live line."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._progress = Progress(stage=Stage.SURVEY)
        self._spinner = Spinner("line")
        self._live = Live(
            get_renderable=self.line,
            console=screen,
            transient=True,
            refresh_per_second=10,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Bar:
        """Begin."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, and leave nothing on the screen."""
        self._live.stop()

    def progressed(self, progress: Progress, /) -> None:
        """Show how far the run is, from the next refresh on; may be called from another thread."""
        self._progress = progress

    def line(self) -> RenderableType:
        """Return what the screen shows now."""
        progress = self._progress
        line = fitted(progress, self._screen.width)
        parts: list[RenderableType] = [self._spinner.render(self._screen.get_time()), _text(line.headline)]
        if line.bar:
            done = min(progress.bytes_done, progress.bytes_total)
            parts.append(ProgressBar(total=progress.bytes_total, completed=done, width=_BAR))
        parts += [_text(part) for part in (line.percent, line.details) if part]
        row = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        row.add_row(*(parts if line.width <= self._screen.width else [_text(line.headline)]))
        return row


def _text(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")
