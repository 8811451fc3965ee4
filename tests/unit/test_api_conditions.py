# SPDX-License-Identifier: Apache-2.0
import datetime

import pytest

from numaplacement.api.conditions import (
    CONDITIONS_OF,
    MESSAGE_LIMIT,
    ConditionStatus,
    State,
    find,
    shortened,
    state_conditions,
)

EARLY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LATE = EARLY + datetime.timedelta(hours=1)


def conditions(state, *, reason="Because", now=EARLY, previous=()):
    return state_conditions(state, reason=reason, message="m", generation=3, now=now, previous=previous)


@pytest.mark.parametrize("state", State)
def test_at_most_one_condition_is_true(state):
    assert sum(status is ConditionStatus.TRUE for status in CONDITIONS_OF[state].values()) <= 1


@pytest.mark.parametrize("state", State)
def test_all_three_are_always_there(state):
    assert [condition.type for condition in conditions(state)] == ["Ready", "Reconciling", "Stalled"]


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_transition_time_moves_with_the_status_and_only_then(before, after):
    old = conditions(before)
    new = conditions(after, reason="Other", now=LATE, previous=old)
    for condition in new:
        changed = find(old, condition.type).status != condition.status
        assert condition.last_transition_time == (LATE if changed else EARLY)
        assert condition.reason == "Other"


def test_a_condition_nobody_had_before_begins_now():
    assert {condition.last_transition_time for condition in conditions(State.READY, now=LATE)} == {LATE}


def test_long_messages_are_cut_to_fit():
    assert len(shortened("x" * 5000)) == MESSAGE_LIMIT
    assert shortened("short") == "short"


def test_messages_are_cut_in_their_middle_and_between_words():
    evidence, remedy = " ".join(f"{number} MiB" for number in range(100, 600)), "Do something. More: page#reason."
    cut = shortened(f"{evidence} {remedy}")
    assert len(cut) <= MESSAGE_LIMIT
    assert cut.startswith("100 MiB 101 MiB")
    assert cut.endswith(f"599 MiB {remedy}")
    assert set(cut.split()) <= {*f"{evidence} {remedy}".split(), "…"}
    assert shortened(cut) == cut
