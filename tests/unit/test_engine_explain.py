# SPDX-License-Identifier: Apache-2.0
"""Whatever a process does while it is moved, the sums of the verdict close to the byte."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaplacement.engine.compare import Overlay, compare
from numaplacement.engine.explain import Circumstances, explain
from numaplacement.engine.mappings import Kind, Mapping
from numaplacement.engine.pins import attribute
from numaplacement.engine.plan import Trial, Trials, movable, movable_bytes, touchable_bytes, units
from numaplacement.engine.reasons import ADVICE, Reason
from numaplacement.engine.survey import (
    FILE,
    HEAD,
    HIDDEN,
    HUGE,
    MERGED,
    SHARED,
    SWAPPED,
    MappingPages,
    Survey,
    survey_of,
)
from numaplacement.engine.targets import TargetRange, Targets
from numaplacement.engine.verdict import NO_NUMA_NODE, PageClass

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


FLAGS = st.lists(st.sampled_from([FILE, SHARED, HEAD, HUGE, HIDDEN, MERGED])).map(
    lambda bits: int(sum(set(map(int, bits))))
)
PAGES = st.tuples(st.integers(0, 3), FLAGS) | st.just((NO_NUMA_NODE, int(SWAPPED | HEAD)))


@st.composite
def surveys(draw: st.DrawFn) -> Survey:
    """Mappings one behind the other, with gaps, in any kind; another survey has others in the same places.

    Kept in blocks of another size each time, so that two surveys are seldom cut in the same places.
    """
    parts, position = [], draw(st.integers(0, 9))
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from([kind for kind in Kind if kind is not Kind.OF_THE_CPU]))
        length = draw(st.integers(1, 24))
        if pages := draw(st.dictionaries(st.integers(0, length - 1), PAGES, max_size=24)):
            permissions = draw(st.sampled_from(["rw-p", "r-xp", "rw-s", "r--s"]))
            parts.append(mapping_pages(position, length, kind, pages, permissions))
        position += length + draw(st.integers(0, 4))
    with mock.patch("numaplacement.engine.survey.BLOCK_PAGES", draw(st.sampled_from([1, 3, 8, 1 << 18]))):
        return survey_of(tuple(parts))


@st.composite
def targets(draw: st.DrawFn) -> Targets:
    """One NUMA node for all, or for ranges of addresses and perhaps for the rest."""
    ranges, start = [], 0
    for _ in range(draw(st.integers(0, 3))):
        start += draw(st.integers(0, 40)) * 4096
        end = start + draw(st.integers(1, 40)) * 4096
        ranges.append(TargetRange(start, end, draw(st.integers(0, 3))))
        start = end
    return Targets(default=draw(st.none() | st.integers(0, 3)), ranges=tuple(ranges))


def addresses(survey: Survey) -> dict[tuple[int, int], Page]:
    """Every page by size and address."""
    return {
        (part.mapping.page_size, part.mapping.start + int(number) * part.mapping.page_size): (int(node), int(flags))
        for part in survey.pages
        for number, node, flags in zip(part.page, part.numa_node, part.flags, strict=True)
    }


def total(pages: Iterable[tuple[int, int]]) -> int:
    return sum(size for size, _ in pages)


def asked(survey: Survey, targets: Targets) -> dict[tuple[int, int], int | None]:
    """Where every page was asked to be, by size and address."""
    return {
        (part.mapping.page_size, address): targets.of(part.mapping)
        for part in survey.pages
        for address in part.addresses(slice(None)).tolist()
    }


@given(surveys(), surveys(), targets())
def test_changes_are_those_of_sets_of_addresses(before: Survey, after: Survey, targets: Targets) -> None:
    changes = compare(before, after, targets=targets)
    old, new, wanted = addresses(before), addresses(after), asked(after, targets)
    assert changes.freed == total(old.keys() - new.keys())
    assert changes.grown == total(new.keys() - old.keys())
    assert before.total() - changes.freed + changes.grown == after.total()
    both = old.keys() & new.keys()
    assert changes.moved == total(key for key in both if old[key][0] != wanted[key] == new[key][0])
    assert changes.split == total(key for key in both if old[key][1] & HUGE and not new[key][1] & HUGE)


@given(surveys(), st.integers(0, 3))
def test_rows_of_a_survey_are_its_pages(survey: Survey, target: int) -> None:
    pages = addresses(survey)
    assert survey.total() == total(pages)
    assert survey.on(target) == total(key for key, page in pages.items() if page[0] == target)
    out = sum(row.bytes for row in survey.rows if row.page_class is PageClass.SWAPPED)
    assert out == survey.on(NO_NUMA_NODE) == total(key for key, page in pages.items() if page[1] & SWAPPED)


@given(surveys(), targets(), st.booleans())
def test_what_is_needed_is_what_units_cover_and_what_a_touch_brings_out(
    survey: Survey, targets: Targets, privileged: bool
) -> None:
    needed = movable_bytes(survey.pages, targets=targets, privileged=privileged)
    hidden = touchable_bytes(survey.pages, targets=targets)
    covered: dict[tuple[int, int], int] = {}
    for part in survey.pages:
        target, size = targets.of(part.mapping), part.mapping.page_size
        if target is not None:
            mask = movable(part, target=target, privileged=privileged)
            base_pages = replace(part, flags=part.flags | HEAD)
            folios = units(base_pages, target=target, privileged=privileged)
            assert folios.pages(slice(None)).tolist() == np.flatnonzero(mask).tolist()
            assert not (part.flags[mask] & (HIDDEN | SWAPPED | MERGED)).any()
            assert (part.numa_node[mask] != target).all()
            covered[target, size] = covered.get((target, size), 0) + int(mask.sum()) * size
    assert needed == {key: count for key, count in covered.items() if count}
    away = total(key for key, page in addresses(survey).items() if asked(survey, targets)[key] not in {None, page[0]})
    assert sum(needed.values()) + sum(hidden.values()) <= away


@given(surveys(), surveys(), st.data(), targets(), st.booleans())
def test_every_byte_off_target_is_in_one_row(
    last: Survey, after: Survey, data: st.DataObject, targets: Targets, privileged: bool
) -> None:
    trials = Trials()
    for part in last.pages:
        trials.of(part)[:] = data.draw(
            st.lists(st.integers(0, max(Trial)), min_size=part.page.size, max_size=part.page.size)
        )
    held = {mapping.start: data.draw(st.integers(0, 1 << 17)) for mapping in after.mappings}
    circumstances = Circumstances(
        targets=targets,
        privileged=privileged,
        untried=data.draw(st.sampled_from(list(Reason))),
        held=held if data.draw(st.booleans()) else {},
        bound=frozenset(list(held)[:1]),
    )
    rows = explain(after, data.draw(st.sampled_from([None, Overlay(last, trials)])), circumstances)
    pages, wanted = addresses(after), asked(after, targets)
    for numa_node in range(-1, 4):
        off = total(key for key, page in pages.items() if page[0] == numa_node != wanted[key])
        assert sum(row.bytes for row in rows if row.numa_node == numa_node) == off
    assert len({(row.reason, row.numa_node) for row in rows}) == len(rows)
    assert all(row.evidence and row.remedy and row.bytes > 0 for row in rows)
    assert [row.bytes for row in rows] == sorted((row.bytes for row in rows), reverse=True)


@given(st.integers(1, 30), st.integers(0, 40), st.sets(st.integers(0, 29)))
def test_what_a_device_holds_of_a_mapping_is_counted_once(length: int, held: int, swapped: set[int]) -> None:
    pages = {number: (NO_NUMA_NODE, int(SWAPPED | HEAD)) if number in swapped else PAGE_OFF for number in range(length)}
    with mock.patch("numaplacement.engine.survey.BLOCK_PAGES", 4):
        survey = survey_of((mapping_pages(2, length, Kind.ANON, pages),))
    assert len(survey.pages.blocks) >= length // 4
    start = 2 * 4096
    circumstances = Circumstances(targets=Targets(default=0), held={start: held * 4096})
    rows = {row.reason: row.bytes // 4096 for row in explain(survey, None, circumstances)}
    there = length - len(swapped & set(range(length)))
    assert rows.get(Reason.PINNED_BY_DEVICE, 0) == min(held, there)
    assert attribute(held * 4096, survey) == ({start: min(held, there) * 4096} if min(held, there) else {})


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
    trials = Trials()
    for part in last.pages:
        trials.of(part)[:] = trial
    (row,) = explain(
        after,
        Overlay(last, trials),
        Circumstances(
            targets=Targets(default=0), untried=stopped, privileged=privileged, refused={2: Reason.EXTRA_REFERENCE}
        ),
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
        (Reason.HUGEPAGE_POOL, {"kind": Kind.HUGETLB, "stopped": Reason.HUGEPAGE_POOL}),
        (Reason.KSM_SHARED, {"page": (2, int(HEAD | SHARED | MERGED))}),
        (Reason.SWAPPED, {"page": (-1, int(HEAD | SWAPPED)), "trial": Trial.ABSENT}),
        (Reason.FILE_NOT_MIGRATABLE, {"kind": Kind.FILE, "trial": Trial.REFUSED, "permissions": "rw-s"}),
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
    assert compare(whole, split, targets=Targets(default=0)).moved == 12 * 4096
    assert compare(split, whole, targets=Targets(default=2)).moved == 12 * 4096


def test_as_many_pages_in_other_places_are_other_pages() -> None:
    before = survey_of((mapping_pages(0, 4, Kind.ANON, dict.fromkeys((0, 1, 3), (2, 0))),))
    after = survey_of((mapping_pages(0, 4, Kind.ANON, dict.fromkeys((0, 2, 3), (0, 0))),))
    changes = compare(before, after, targets=Targets(default=0))
    assert (changes.moved, changes.freed, changes.grown) == (2 * 4096, 4096, 4096)
