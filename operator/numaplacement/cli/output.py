# SPDX-License-Identifier: Apache-2.0
"""Writing the result to standard output, and words for people to standard error."""

from __future__ import annotations

import codecs
import contextlib
import enum
import io
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO, TypeVar, cast

import click
import yaml
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .exits import Exit, Fault
from .plain import plain
from .widths import fit

Command = TypeVar("Command", bound=Callable[..., Any])
PIPE_WIDTH = 120
"""Columns of a table that goes to no terminal and that COLUMNS says nothing of."""
_TERMINAL_SIZE = (80, 25)
"""Columns and lines of a terminal that does not tell."""
_NOT_ASCII = re.compile("[^\n -~]")


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


def stream(name: Literal["stdout", "stderr"]) -> TextIO | None:
    """Return standard output or standard error; None where this program was started with it closed."""
    return cast("TextIO | None", getattr(sys, name))


def see_that_stdout_is_open() -> None:
    """Raise Fault where the result would have nowhere to go."""
    if stream("stdout") is None:
        raise Fault("standard output is closed, so nothing was begun; give it a file, a pipe or a terminal")


def console(goes_to: TextIO) -> Console:
    """Return a console with the width and the colours of where a stream goes; NO_COLOR and TERM=dumb are respected.

    COLUMNS that says no width (0, or no number) is as if it were not set.
    """
    columns = os.environ.get("COLUMNS", "")
    width, height = None, None
    if re.fullmatch("[1-9][0-9]{0,4}", columns):
        width = int(columns)
    elif not goes_to.isatty():
        width, height = PIPE_WIDTH, _TERMINAL_SIZE[1]
    elif columns:  # else rich asks the terminal itself, each time it writes: it may change
        width, height = _terminal_size(goes_to)
    return Console(file=goes_to, width=width, height=height, highlight=False, emoji=False, markup=False)


def _terminal_size(goes_to: TextIO) -> tuple[int, int]:
    try:
        size = os.get_terminal_size(goes_to.fileno())
    except (OSError, ValueError):
        return _TERMINAL_SIZE
    return size if size.columns and size.lines else _TERMINAL_SIZE


def rendered(*parts: RenderableType) -> str:
    """Return tables and texts as they are to stand on standard output.

    Tables are as wide as their numbers and names need, and text is broken between words only, however narrow it is.
    """
    goes_to = console(stream("stdout") or io.StringIO())
    text = "".join(_rendered(part, goes_to) for part in parts)
    return text if goes_to.color_system else "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _rendered(part: RenderableType, goes_to: Console) -> str:
    if isinstance(part, Text):
        part = _wrapped(part, goes_to.width)
    page = Console(
        file=io.StringIO(),
        width=max(goes_to.width, fit(part, goes_to.width) if isinstance(part, Table) else 0),
        height=goes_to.height,
        force_terminal=goes_to.is_terminal,
        no_color=goes_to.no_color,
        highlight=False,
        emoji=False,
        markup=False,
    )
    with page.capture() as capture:
        page.print(part, crop=False, overflow="ignore" if isinstance(part, Text) else None)
    return capture.get()


def _wrapped(text: Text, width: int) -> Text:
    """Return one paragraph in lines that are broken between words only, also where a word is longer than a line."""
    text.plain = plain(text.plain)
    breaks, used = [], 0
    for word in re.finditer(r"\s*\S+\s*", text.plain):
        if used and used + cell_len(word[0].rstrip()) > width:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    lines = text.divide(breaks)
    for line in lines:
        line.rstrip()
    return Text("\n").join(lines)


def document_text(document: Any, form: Form, *, one_line: bool = False) -> str:  # noqa: ANN401 - JSON data
    """Return JSON data as JSON, or as YAML with `---` before it where it is one of several.

    Characters that standard output has no code for, or that a terminal obeys, are written as escapes: nothing is lost.
    """
    every = _takes_every_character(stream("stdout"))
    if form is Form.YAML:
        text = _yaml(document, allow_unicode=every)
        text = text if plain(text, keep="\n") == text else _yaml(document, allow_unicode=False)
        return f"---\n{text}" if one_line else text
    text = json.dumps(document, indent=None if one_line else 2, ensure_ascii=not every) + "\n"
    return _NOT_ASCII.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text)


def _yaml(document: Any, *, allow_unicode: bool) -> str:  # noqa: ANN401 - JSON data
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=allow_unicode, width=PIPE_WIDTH)
    return text


def _takes_every_character(goes_to: TextIO | None) -> bool:
    try:
        return codecs.lookup(getattr(goes_to, "encoding", None) or "utf-8").name == "utf-8"
    except LookupError:
        return False


def emit(text: str, *, otherwise: str = "") -> None:
    """Write the result.

    Raises Fault when it cannot be written; `otherwise` is what must not be lost then. Where nothing can be lost, a
    reader who has seen enough ends the program and is no fault.
    """
    goes_to = stream("stdout")
    kept = f"; it was: {otherwise}" if otherwise else ""
    if goes_to is None:
        raise Fault(f"the result could not be written: standard output is closed{kept}")
    try:
        goes_to.write(text)
        goes_to.flush()
    except (OSError, ValueError) as error:
        _discard_stdout()
        if isinstance(error, BrokenPipeError) and not kept:
            sys.exit(Exit.PLACED)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
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
    return console(cast("TextIO", Forgiving(stream("stderr") or io.StringIO())))


def say(text: str) -> None:
    """Tell the person something that is not the result."""
    with contextlib.suppress(OSError, ValueError):  # nobody is there to be told
        click.echo(plain(text, keep="\n"), err=True)


def table(*headers: str, right: tuple[str, ...] = ()) -> Table:
    """Return a table without lines, as other tools of this trade write them; `right` are the columns of numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for header in headers:
        whole = header in right or header == "VM" or header.endswith("NUMA NODE")
        made.add_column(
            header,
            justify="right" if header in right else "left",
            no_wrap=whole,
            overflow="fold",
        )
    return made


def cells(*values: str) -> tuple[Text, ...]:
    """Return the cells of a row, in which no character means anything but the end of a line."""
    return tuple(Text(plain(value, keep="\n")) for value in values)
