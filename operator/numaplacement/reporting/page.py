# SPDX-License-Identifier: Apache-2.0
"""Where to read more about a reason. What ends in such a link is cut in its middle only: see `shortened`."""

from __future__ import annotations

PAGE = "docs/reasons.md"
"""The page of this project with a section for each reason, by its name."""


def more(reason: str) -> str:
    """Return the words that lead to the section about a reason."""
    return f"More: {PAGE}#{reason}."


def with_link(remedy: str, *, reason: str) -> str:
    """Return what to do about a reason, and where to read more."""
    return f"{remedy} {more(reason)}"


def without_link(remedy: str, *, reason: str) -> str:
    """Return what to do about a reason, for a table that names the page once, below it."""
    return remedy.removesuffix(f" {more(reason)}")
