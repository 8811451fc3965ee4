# SPDX-License-Identifier: Apache-2.0
"""Writing the result to standard output, and words for people to standard error."""

from __future__ import annotations

import contextlib
import enum
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar, cast

import click
import yaml
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .exits import Fault

Command = TypeVar("Command", bound=Callable[..., Any])
PIPE_WIDTH = 120
"""Columns of a table that goes to no terminal and that COLUMNS says nothing of."""


class Form(enum.StrEnum):
    """How a result is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def output_option(command: Command) -> Command:
    """Add -o to a command; it arrives as `form`."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice([str(form) for form in Form]),
        default=str(Form.TABLE),
        callback=lambda _context, _parameter, value: Form(value),
        show_default=True,
        help="How the result is written.",
    )(command)


def console(stream: TextIO) -> Console:
    """Return a console with the width and the colours of where a stream goes; NO_COLOR and TERM=dumb are respected."""
    to_terminal = stream.isatty()
    width = None if to_terminal or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False, soft_wrap=False)


def rendered(*parts: RenderableType) -> str:
    """Return tables and texts as they are to stand on standard output."""
    goes_to = console(sys.stdout)
    page = Console(
        file=io.StringIO(),
        width=goes_to.width,
        force_terminal=goes_to.is_terminal,
        no_color=goes_to.no_color,
        highlight=False,
        emoji=False,
        markup=False,
    )
    with page.capture() as capture:
        for part in parts:
            page.print(part)
    text = capture.get()
    if page.color_system is None:
        return "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    return text


def document_text(document: Any, form: Form, *, one_line: bool = False) -> str:  # noqa: ANN401 - JSON data
    """Return JSON data as JSON, or as YAML with `---` before it where it is one of several."""
    if form is Form.YAML:
        text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=PIPE_WIDTH)
        return f"---\n{text}" if one_line else text
    return json.dumps(document, indent=None if one_line else 2, ensure_ascii=False) + "\n"


def emit(text: str, *, otherwise: str = "") -> None:
    """Write the result. Raises Fault when it cannot be written; `otherwise` is what must not be lost then."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        _discard_stdout()
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        kept = f"; it was: {otherwise}" if otherwise else ""
        raise Fault(
            f"the result could not be written to standard output ({reason}); make room there or keep its reader"
            f" running{kept}"
        ) from error


def _discard_stdout() -> None:
    """Let nothing more be written: at exit the interpreter would try once more, and complain."""
    with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)


class Forgiving(io.TextIOBase):
    """A stream for words to people: when nobody is there any more to read them, the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        """Whether it goes to a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return its file descriptor."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write, if that can be."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that can be."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def to_people() -> Console:
    """Return the console on standard error."""
    return console(cast("TextIO", Forgiving(sys.stderr)))


def say(text: str) -> None:
    """Tell the person something that is not the result."""
    with contextlib.suppress(OSError, ValueError):  # nobody is there to be told
        click.echo(text, err=True)


def table(*headers: str, right: tuple[str, ...] = ()) -> Table:
    """Return a table without lines, as other tools of this trade write them; `right` are the columns of numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for header in headers:
        made.add_column(
            header, justify="right" if header in right else "left", no_wrap=header in right, overflow="fold"
        )
    return made


def cells(*values: str) -> tuple[Text, ...]:
    """Return the cells of a row, in which no character means anything."""
    return tuple(Text(value) for value in values)
