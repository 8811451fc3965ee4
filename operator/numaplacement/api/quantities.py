# SPDX-License-Identifier: Apache-2.0
"""Quantities, durations and percentages: the strings of a spec as numbers, and numbers as strings for people."""

from __future__ import annotations

import decimal
import re

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_UNITS = _BINARY | _DECIMAL
_SECONDS = {unit: decimal.Decimal(text) for unit, text in (("ms", "0.001"), ("s", "1"), ("m", "60"), ("h", "3600"))}


def parse_quantity(text: str | int) -> int:
    """Return the number of bytes (or other units) that a Kubernetes quantity such as ``512Mi`` stands for, rounded up.

    :raises ValueError: `text` is no quantity of the form the schema allows.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)", str(text))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is not a quantity such as 512Mi or 1Gi")
    exact = decimal.Decimal(match[1]) * _UNITS[match[2]]
    return int(exact.to_integral_value(rounding=decimal.ROUND_CEILING))


def parse_duration(text: str) -> float:
    """Return the seconds that a duration such as ``1m30s`` or ``20ms`` stands for.

    :raises ValueError: `text` is no duration of the form the schema allows.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as 20ms, 90s or 10m")
    return float(sum((decimal.Decimal(number) * _SECONDS[unit] for number, unit in parts), decimal.Decimal(0)))


def parse_tolerance(text: str | int, *, asked: int) -> int:
    """Return the bytes of residue that still count as placed, of `asked` bytes in all; a percentage is rounded down.

    :raises ValueError: `text` is neither a quantity nor a percentage.
    """
    if isinstance(text, str) and text.endswith("%"):
        share = decimal.Decimal(text[:-1])
        if not 0 <= share <= 100:  # noqa: PLR2004 - a percentage
            raise ValueError(f"{text!r} is not a percentage from 0% to 100%")
        return int(asked * share / 100)
    return parse_quantity(text)


def format_bytes(count: int) -> str:
    """Return `count` bytes as a quantity for people, with at most one decimal: ``0``, ``768``, ``1.5Gi``."""
    value = float(count)
    for unit in ("", *_BINARY):
        if abs(value) < 1024 or unit == "Ei":  # noqa: PLR2004 - the step between binary units
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + unit


def format_percent(part: int, whole: int) -> str:
    """Return `part` of `whole` as a percentage for people.

    It never rounds up to ``100%``, which means all of it. All of nothing is ``100%`` too.
    """
    if part >= whole:
        return "100%"
    return f"{int(part * 1000 / whole) / 10:.1f}".removesuffix(".0") + "%"


def format_seconds(seconds: float) -> str:
    """Return a duration as `parse_duration` reads it, in milliseconds below a second: ``18.3ms``, ``12.5s``."""
    number, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    return f"{number:.1f}".removesuffix(".0") + unit
