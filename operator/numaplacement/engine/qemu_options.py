# SPDX-License-Identifier: Apache-2.0
"""The options on QEMU's command line, as key=value text or as JSON (qemu(1)); libvirt writes both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Table
from itertools import pairwise

Option = Table[str, tuple[str, ...]]
"""The values given for each key, in order; numbers and booleans as text, booleans as on and off."""

_COMMA = re.compile(r"(?<!,)((?:,,)*),(?!,)")
_INDEX = re.compile(r"\.\d+$", re.ASCII)
_SIZE = re.compile(r"^(\d+(?:\.\d+)?|0x[0-9a-f]+)([bkmgtpe]?)$", re.IGNORECASE | re.ASCII)
_UNITS = "bkmgtpe"


def options(command_line: Sequence[str], *names: str, implied: str = "") -> Iterator[Option]:
    """Yield each option of these names, such as object for -object; `implied` is the key of a first bare value."""
    flags = {f"{dashes}{name}" for name in names for dashes in ("-", "--")}
    for flag, text in pairwise(command_line):
        if flag in flags:
            yield parse_option(text, implied=implied)


def parse_option(text: str, *, implied: str = "") -> Option:
    """Return what one option says; what cannot be understood says nothing."""
    return _from_json(text) if text.startswith("{") else _from_text(text, implied)


def _from_json(text: str) -> Option:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {
        key: tuple(_word(each) for each in (value if isinstance(value, list) else [value]))
        for key, value in given.items()
    }


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _from_text(text: str, implied: str) -> Option:
    found: dict[str, tuple[str, ...]] = {}
    for index, part in enumerate(_parts(text)):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = (implied, part) if index == 0 and implied else (key, "on")
        key = _INDEX.sub("", key)  # host-nodes.0=1
        found[key] = (*found.get(key, ()), value)
    return found


def _parts(text: str) -> list[str]:
    """Split at commas; two of them stand for one that belongs to a value."""
    return [part.replace(",,", ",") for part in _COMMA.sub("\\1\0", text).split("\0")]


def size_of(text: str, *, unit: str = "b") -> int:
    """Return the bytes of a size such as 2G or 262144k; `unit` is that of a bare number. 0 where it is none."""
    match = _SIZE.match(text)
    if match is None:
        return 0
    factor = 1024 ** _UNITS.index((match[2] or unit).lower())
    return int(match[1], 16) * factor if match[1].lower().startswith("0x") else int(float(match[1]) * factor)


def number_of(text: str) -> int | None:
    """Return a whole number; None where the text is none."""
    return int(text) if text.isascii() and text.isdigit() else None


def last(option: Option, key: str, default: str = "") -> str:
    """Return the last value given for a key."""
    return option.get(key, (default,))[-1]
