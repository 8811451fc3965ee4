# SPDX-License-Identifier: Apache-2.0
"""Whatever a process does while it is moved, the sums of the verdict close to the byte."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaplacement.engine.compare import Overlay, compare
from numaplacement.engine.explain import Circumstances, explain
from numaplacement.engine.mappings import Kind, Mapping
from numaplacement.engine.plan import Trial
from numaplacement.engine.reasons import ADVICE, Reason
from numaplacement.engine.survey import FILE, HEAD, HIDDEN, HUGE, SHARED, MappingPages, Survey, survey_of

SIZES = {Kind.HUGETLB: 2 << 20}
Page = tuple[int, int]  # NUMA node, flags


def mapping_pages(
    start: int, length: int, kind: Kind, pages: dict[int, Page], permissions: str = "rw-p"
) -> MappingPages:
    """A mapping of so many pages, of which those given by number are there."""
    size = SIZES.get(kind, 4096)
    order = sorted(pages)
    return MappingPages(
        mapping=Mapping(
            start=start * size,
            end=(start + length) * size,
            path="",
            kind=kind,
            page_size=size,
            permissions=permissions,
        ),
        page=np.array(order, dtype=np.uint32),
        numa_node=np.array([pages[number][0] for number in order], dtype=np.int16),
        flags=np.array([pages[number][1] for number in order], dtype=np.uint8),
    )


FLAGS = st.lists(st.sampled_from([FILE, SHARED, HEAD, HUGE, HIDDEN])).map(lambda bits: int(sum(set(map(int, bits)))))


@st.composite
def surveys(draw: st.DrawFn) -> Survey:
    """Mappings one behind the other, with gaps, in any kind; another survey has others in the same places."""
    parts, position = [], draw(st.integers(0, 9))
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from([kind for kind in Kind if kind is not Kind.OF_THE_CPU]))
        length = draw(st.integers(1, 24))
        numbers = st.dictionaries(st.integers(0, length - 1), st.tuples(st.integers(0, 3), FLAGS), max_size=24)
        if pages := draw(numbers):
            permissions = draw(st.sampled_from(["rw-p", "r-xp", "rw-s", "r--s"]))
            parts.append(mapping_pages(position, length, kind, pages, permissions))
        position += length + draw(st.integers(0, 4))
    return survey_of(tuple(parts))


def addresses(survey: Survey) -> dict[tuple[int, int], Page]:
    """Every page by size and address."""
    return {
        (part.mapping.page_size, part.mapping.start + int(number) * part.mapping.page_size): (int(node), int(flags))
        for part in survey.pages
        for number, node, flags in zip(part.page, part.numa_node, part.flags, strict=True)
    }


def total(pages: Iterable[tuple[int, int]]) -> int:
    return sum(size for size, _ in pages)


@given(surveys(), surveys(), st.integers(0, 3))
def test_changes_are_those_of_sets_of_addresses(before: Survey, after: Survey, target: int) -> None:
    changes = compare(before, after, target=target)
    old, new = addresses(before), addresses(after)
    assert changes.freed == total(old.keys() - new.keys())
    assert changes.grown == total(new.keys() - old.keys())
    assert before.total() - changes.freed + changes.grown == after.total()
    both = old.keys() & new.keys()
    assert changes.moved == total(key for key in both if old[key][0] != target and new[key][0] == target)
    assert changes.split == total(key for key in both if old[key][1] & HUGE and not new[key][1] & HUGE)


@given(surveys(), st.integers(0, 3))
def test_rows_of_a_survey_are_its_pages(survey: Survey, target: int) -> None:
    pages = addresses(survey)
    assert survey.total() == total(pages)
    assert survey.on(target) == total(key for key, page in pages.items() if page[0] == target)


@given(surveys(), surveys(), st.data(), st.integers(0, 3), st.booleans())
def test_every_byte_off_target_is_in_one_row(
    last: Survey, after: Survey, data: st.DataObject, target: int, privileged: bool
) -> None:
    trials = {
        part.mapping.start: np.array(
            data.draw(st.lists(st.integers(0, max(Trial)), min_size=part.page.size, max_size=part.page.size)),
            dtype=np.uint8,
        )
        for part in last.pages
    }
    held = {part.mapping.start: data.draw(st.integers(0, 1 << 17)) for part in after.pages}
    circumstances = Circumstances(
        target=target,
        privileged=privileged,
        untried=data.draw(st.sampled_from(list(Reason))),
        held=held if data.draw(st.booleans()) else {},
        bound=frozenset(list(held)[:1]),
    )
    rows = explain(after, data.draw(st.sampled_from([None, Overlay(last, trials)])), circumstances)
    for numa_node in range(4):
        there = sum(row.bytes for row in after.rows if row.numa_node == numa_node)
        assert sum(row.bytes for row in rows if row.numa_node == numa_node) == (0 if numa_node == target else there)
    assert len({(row.reason, row.numa_node) for row in rows}) == len(rows)
    assert all(row.evidence and row.remedy and row.bytes > 0 for row in rows)
    assert [row.bytes for row in rows] == sorted((row.bytes for row in rows), reverse=True)


PAGE_OFF: Page = (2, int(HEAD))


def reason_of(
    page: Page = PAGE_OFF,
    *,
    kind: Kind = Kind.ANON,
    permissions: str = "rw-p",
    earlier: Page | None = PAGE_OFF,
    trial: Trial = Trial.NOT_TRIED,
    stopped: Reason = Reason.UNEXPLAINED,
    privileged: bool = True,
) -> Reason:
    """The reason of a single page that is off target 0."""
    after = survey_of((mapping_pages(16, 8, kind, {3: page}, permissions),))
    before = {} if earlier is None else {3: earlier}
    last = survey_of((mapping_pages(16, 8, kind, before | {4: (0, 0)}, permissions),))
    trials = {part.mapping.start: np.full(part.page.size, trial, dtype=np.uint8) for part in last.pages}
    (row,) = explain(
        after,
        Overlay(last, trials),
        Circumstances(target=0, untried=stopped, privileged=privileged),
    )
    return row.reason


@pytest.mark.parametrize(
    ("reason", "facts"),
    [
        (Reason.UNEXPLAINED, {}),
        (Reason.UNEXPLAINED, {"trial": Trial.UNKNOWN}),
        (Reason.CANCELLED, {"stopped": Reason.CANCELLED}),
        (Reason.EXTRA_REFERENCE, {"trial": Trial.REFUSED, "stopped": Reason.CANCELLED}),
        (Reason.BUSY, {"trial": Trial.BUSY}),
        (Reason.SHARED_WITHOUT_PRIVILEGE, {"trial": Trial.SHARED}),
        (Reason.NOT_ATTEMPTED, {"trial": Trial.GIVEN_UP}),
        (Reason.NEW_ON_SOURCE, {"trial": Trial.ABSENT}),
        (Reason.NEW_ON_SOURCE, {"earlier": None}),
        (Reason.NEW_ON_SOURCE, {"earlier": None, "stopped": Reason.DEADLINE}),
        (Reason.MOVED_BACK, {"earlier": (0, int(HEAD))}),
        (Reason.MOVED_BACK, {"trial": Trial.MOVED}),
        (Reason.HIDDEN_BY_NUMA_HINT, {"page": (2, int(HEAD | HIDDEN)), "trial": Trial.BUSY}),
        (Reason.SHARED_WITHOUT_PRIVILEGE, {"page": (2, int(SHARED)), "privileged": False}),
        (Reason.UNEXPLAINED, {"page": (2, int(SHARED))}),
        (Reason.SHARED_FILE, {"page": (2, int(FILE | SHARED)), "kind": Kind.FILE, "permissions": "r-xp"}),
        (Reason.SHARED_FILE, {"page": (2, int(FILE | SHARED)), "kind": Kind.FILE, "privileged": False}),
        (Reason.UNEXPLAINED, {"page": (2, int(FILE | SHARED)), "kind": Kind.FILE, "permissions": "rw-s"}),
        (Reason.UNEXPLAINED, {"page": (2, int(FILE | SHARED)), "kind": Kind.SHMEM, "permissions": "rw-s"}),
        (Reason.UNEXPLAINED, {"page": (2, int(FILE)), "kind": Kind.FILE, "permissions": "r-xp"}),
        (Reason.HUGETLB_NOT_YET, {"kind": Kind.HUGETLB}),
        (Reason.UNMIGRATABLE_MAPPING, {"kind": Kind.DEVICE}),
        (Reason.SECRET_MEMORY, {"kind": Kind.SECRET}),
    ],
)
def test_reasons(reason: Reason, facts: dict[str, object]) -> None:
    assert reason_of(**facts) is reason  # type: ignore[arg-type]


def test_every_reason_has_a_remedy() -> None:
    assert set(ADVICE) == set(Reason)
    assert all(advice.remedy.endswith(".") for advice in ADVICE.values())


def test_mappings_that_were_split_and_merged_still_match() -> None:
    whole = survey_of((mapping_pages(0, 12, Kind.ANON, dict.fromkeys(range(12), (2, 0))),))
    split = survey_of(
        (
            mapping_pages(0, 5, Kind.ANON, dict.fromkeys(range(5), (0, 0))),
            mapping_pages(5, 7, Kind.ANON, dict.fromkeys(range(7), (0, 0))),
        )
    )
    assert compare(whole, split, target=0).moved == 12 * 4096
    assert compare(split, whole, target=2).moved == 12 * 4096
