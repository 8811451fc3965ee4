# SPDX-License-Identifier: Apache-2.0
"""docs/reasons.md, which messages name: a section for each reason of the engine, saying what the engine says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from numaplacement.controller.reasons import Reason as OperatorReason
from numaplacement.engine.reasons import ADVICE, Reason
from numaplacement.reporting.page import PAGE
from numaplacement.reporting.wording import condition_reason

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / PAGE).read_text()
HEADINGS = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
LONGEST = 200


def section(heading: str) -> str:
    """Return the words of a section with single spaces between them."""
    return " ".join(re.split(r"^## .+$", TEXT, flags=re.MULTILINE)[1 + HEADINGS.index(heading)].split())


def test_the_page_has_a_section_for_each_reason_in_the_order_of_the_engine() -> None:
    assert HEADINGS[: len(Reason)] == list(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_a_section_says_what_the_messages_say(reason: Reason) -> None:
    text = section(reason)
    assert text.startswith(f"`{condition_reason(reason)}`. ")
    assert " - Seen: " in text
    assert f" - Permanent: {'yes' if ADVICE[reason].permanent else 'no'} - To do: {ADVICE[reason].remedy}" in text


@pytest.mark.parametrize("reason", Reason)
def test_a_remedy_is_short_and_for_whoever_reads_it(reason: Reason) -> None:
    remedy = ADVICE[reason].remedy
    assert len(remedy) <= LONGEST
    assert "order" not in remedy  # the host command knows none


@pytest.mark.parametrize("reason", OperatorReason)
def test_reasons_of_the_operator_are_in_the_table(reason: OperatorReason) -> None:
    table = section("Reasons of the operator")
    assert f"`{reason}`" in table


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]*)(?:#[^)]*)?\)", path.read_text()):
        assert not target or (path.parent / target).exists(), target


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda path: path.name
)
def test_links_to_a_reason_are_those_of_a_section(path: Path) -> None:
    for anchor in re.findall(r"\((?:docs/)?(?:reasons\.md)#([^)]+)\)", path.read_text()):
        assert anchor in HEADINGS
