# SPDX-License-Identifier: Apache-2.0
"""Text that processes choose themselves, such as names of guests and threads, made harmless for a terminal. Pure."""

from __future__ import annotations

_INSTEAD = "\N{REPLACEMENT CHARACTER}"


def plain(text: str, *, keep: str = "") -> str:
    """Return text with a mark for each character that is not printed but obeyed, except those to `keep`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _INSTEAD for char in text)
