# SPDX-License-Identifier: Apache-2.0
"""What the engine found, as the status of an order."""

import dataclasses
import datetime

import pytest

from numaplacement.agent.following import Following
from numaplacement.agent.orders import read_order
from numaplacement.agent.support import Refusal
from numaplacement.agent.verdict import Moment, failed, judged, queued, refused, residue_reason, under_way
from numaplacement.api.conditions import Condition, State, find, shortened
from numaplacement.api.migration import NO_NUMA_NODE, UNCOUNTED, UNTRIED, WOULD_MOVE, PageClass, Result
from numaplacement.api.placement import Allowance
from numaplacement.api.resources import to_document
from numaplacement.engine import verdict as engine
from numaplacement.engine.reasons import ADVICE, NOT_ASKED, Reason
from numaplacement.reporting.books import RESULTS
from numaplacement.reporting.wording import condition_reason, dominant, message_of, reason_of, sentence

EARLY = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
NOW = EARLY + datetime.timedelta(minutes=5)
MIB = 2**20
STATES = {
    (True, False, False): State.READY,
    (False, True, False): State.WORKING,
    (False, False, True): State.STALLED,
}


ONE = {"numaNode": 2}
CELLS = {"cells": [{"cell": 1, "numaNode": 3}, {"cell": 0, "numaNode": 1}]}


def order(target=ONE, **status):
    return read_order(
        {
            "metadata": {"namespace": "prod", "name": "db-1", "uid": "u1", "resourceVersion": "7", "generation": 3},
            "spec": {"nodeName": "n1", "vm": {"name": "db", "uid": "u"}, "podUID": "p", "target": target},
            "status": status,
        }
    )


MOMENT = Moment(order=order(), started=EARLY, now=NOW)


def row(reason, count, *, numa_node=1, remedy="Do something."):
    return engine.ResidueRow(
        reason=reason, numa_node=numa_node, bytes=count, permanent=False, evidence="seen", remedy=remedy
    )


def verdict(outcome, **fields):
    return engine.Verdict(**({"outcome": outcome, "message": "engine's words"} | fields))


def state_of(status):
    return STATES[tuple(condition.status == "True" for condition in status.conditions)]


def ready(status):
    return find(status.conditions, "Ready")


OUTCOMES = {
    engine.Outcome.PLACED: (Result.PLACED, State.READY, "Placed"),
    engine.Outcome.PLANNED: (Result.PLANNED, State.READY, "Planned"),
    engine.Outcome.RESIDUE: (Result.RESIDUE, State.STALLED, "Residue"),
    engine.Outcome.REFUSED: (Result.REFUSED, State.STALLED, "Refused"),
    engine.Outcome.CANCELLED: (Result.CANCELLED, State.STALLED, "Cancelled"),
    engine.Outcome.DEADLINE: (Result.DEADLINE, State.STALLED, "DeadlineExceeded"),
    engine.Outcome.PROCESS_GONE: (Result.VM_GONE, State.STALLED, "VmGone"),
}


@pytest.mark.parametrize("outcome", list(engine.Outcome))
def test_every_outcome_has_a_result_and_a_state(outcome):
    status = judged(MOMENT, verdict(outcome))
    assert (status.result, state_of(status), ready(status).reason) == OUTCOMES[outcome]
    assert (status.observed_generation, status.start_time, status.completion_time) == (3, EARLY, NOW)
    assert status.progress is None


def test_no_two_outcomes_share_a_result():
    assert len(set(RESULTS.values())) == len(engine.Outcome)


WORST = {
    "the most bytes": ([row(Reason.BUSY, 1), row(Reason.VM_CPUSET, 5)], Reason.VM_CPUSET),
    "summed over NUMA nodes": (
        [row(Reason.BUSY, 3), row(Reason.VM_CPUSET, 4), row(Reason.BUSY, 2, numa_node=3)],
        Reason.BUSY,
    ),
    "not what was never asked": ([row(Reason.SHARED_FILE, 90), row(Reason.BUSY, 1)], Reason.BUSY),
    "nor what cannot be": ([row(Reason.UNMIGRATABLE_MAPPING, 90), row(Reason.BUSY, 1)], Reason.BUSY),
    "only that": ([row(Reason.SHARED_FILE, 90)], None),
    "nothing": ([], None),
}


@pytest.mark.parametrize("name", WORST)
def test_the_reason_of_most_of_the_residue(name):
    rows, expected = WORST[name]
    assert dominant(rows) is expected


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (Reason.PINNED_BY_DEVICE, "PinnedByDevice"),
        (Reason.DESTINATION_FULL, "DestinationFull"),
        (Reason.VM_CPUSET, "VmCpuset"),
        (Reason.UNEXPLAINED, "Unexplained"),
        (Reason.NODE_HAS_NO_MEMORY, "NumaNodeHasNoMemory"),
    ],
)
def test_reasons_as_conditions_spell_them(reason, word):
    assert condition_reason(reason) == word


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_a_word_for_conditions(reason):
    words = condition_reason(reason)
    assert Condition(type="Ready", status="True", reason=words, last_transition_time=NOW).reason == words


def test_constants_of_the_api_are_the_engines_words():
    assert frozenset(map(str, NOT_ASKED)) == UNCOUNTED
    assert (str(Reason.NOT_ATTEMPTED), str(Reason.PLANNED)) == (UNTRIED, WOULD_MOVE)
    assert [str(each) for each in PageClass] == [str(each) for each in engine.PageClass]
    assert [str(each) for each in Allowance] == [str(each) for each in engine.Allow]
    assert NO_NUMA_NODE == engine.NO_NUMA_NODE


def test_residue_gives_the_reason_and_the_remedy():
    found = verdict(
        engine.Outcome.RESIDUE,
        message="3 MiB off target",
        residue=(row(Reason.SHARED_FILE, 90 * MIB, remedy="None."), row(Reason.BUSY, 3 * MIB, remedy="Try again.")),
    )
    assert (reason_of(found), message_of(found)) == (
        "Busy",
        "3 MiB off target. Try again. More: docs/reasons.md#busy.",
    )


def test_a_refusal_gives_its_first_reason_whatever_the_residue_says():
    found = verdict(
        engine.Outcome.REFUSED,
        message="nothing was touched: a device",
        refusals=(
            engine.Refusal(reason=Reason.PINNED_BY_DEVICE, evidence="a device", remedy="Unplug it."),
            engine.Refusal(reason=Reason.DESTINATION_FULL, evidence="full", remedy="Free memory."),
        ),
        residue=(row(Reason.NOT_ATTEMPTED, 90 * MIB),),
    )
    assert reason_of(found) == "PinnedByDevice"
    more = "More: docs/reasons.md#pinned-by-device."
    assert message_of(found) == f"Nothing was touched: a device. Unplug it. {more}"


LEFT = (row(Reason.BUSY, MIB), row(Reason.SHARED_FILE, 9 * MIB))
TO_COME = (row(Reason.PLANNED, 90 * MIB), *LEFT)
TOLD = {
    "all on target": (engine.Outcome.PLACED, LEFT[1:], ""),
    "within the tolerance": (engine.Outcome.PLACED, LEFT, "busy"),
    "all would be moved": (engine.Outcome.PLANNED, TO_COME[::2], ""),
    "some would stay": (engine.Outcome.PLANNED, TO_COME, "busy"),
    "cancelled": (engine.Outcome.CANCELLED, LEFT, "cancelled"),
    "gone": (engine.Outcome.PROCESS_GONE, (), ""),
}


@pytest.mark.parametrize("name", TOLD)
def test_where_nothing_is_to_be_done_the_page_is_named_and_no_remedy(name):
    outcome, residue, section = TOLD[name]
    more = f" More: docs/reasons.md#{section}." if section else ""
    assert message_of(verdict(outcome, message="so much of it", residue=residue)) == f"So much of it.{more}"


def test_a_deadline_that_passed_is_its_own_reason():
    found = verdict(engine.Outcome.DEADLINE, message="1 of 2", residue=LEFT)
    remedy = ADVICE[Reason.DEADLINE].remedy
    assert message_of(found) == f"1 of 2. {remedy} More: docs/reasons.md#deadline."


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("outcome", [engine.Outcome.RESIDUE, engine.Outcome.REFUSED])
def test_what_to_do_and_where_to_read_more_survive_any_evidence(reason, outcome):
    remedy, endless = ADVICE[reason].remedy, " ".join(["seen"] * 1000)
    found = verdict(
        outcome,
        message=endless,
        residue=(row(reason, MIB, remedy=remedy),),
        refusals=(engine.Refusal(reason=reason, evidence=endless, remedy=remedy),)
        if outcome is engine.Outcome.REFUSED
        else (),
    )
    status = judged(MOMENT, found)
    tail = f"{remedy} More: docs/reasons.md#{reason}."
    assert status.residue[0].remedy == tail
    if found.refusals or reason not in {*NOT_ASKED, Reason.PLANNED}:
        assert ready(status).message.endswith(f" seen. {tail}")
        # The operator writes more behind it, and cuts again.
        again = " Attempt 100 of 100 follows at 23:59:59Z."
        assert shortened(f"100 of 100 VMs are done. db: {ready(status).message}{again}").endswith(f" {tail}{again}")


@pytest.mark.parametrize(
    ("text", "expected"), [("a b", "A b."), ("Done.", "Done."), ("5 of 5", "5 of 5."), ("x", "X."), ("NUMA", "NUMA.")]
)
def test_clauses_become_sentences(text, expected):
    assert sentence(text) == expected


FULL = verdict(
    engine.Outcome.RESIDUE,
    before=(engine.ClassBytes(1, engine.PageClass.ANON, 10 * MIB), engine.ClassBytes(2, engine.PageClass.FILE, MIB)),
    after=(engine.ClassBytes(2, engine.PageClass.ANON_HUGE, 8 * MIB),),
    asked=9 * MIB,
    on_target=8 * MIB,
    moved=7 * MIB,
    freed=3 * MIB,
    grown=2 * MIB,
    split=MIB,
    residue=(row(Reason.BUSY, 4096), row(Reason.VM_CPUSET, MIB, numa_node=3)),
    notes=(engine.Note(reason=Reason.HUGE_PAGES_SPLIT, bytes=MIB, evidence="2 MiB pages", remedy="Wait."),),
    stayed=False,
    threads=engine.ThreadOutcome(followed=4, left=1, cpus=frozenset({8, 9, 10, 12}), message="one is pinned"),
    calls=engine.CallTimes(count=12, p50=0.0042, p99=0.0191),
    seconds=2.34567,
    move_seconds=2.0,
    passes=2,
)


def test_all_of_the_verdict_is_in_the_status():
    document = to_document(judged(MOMENT, FULL))
    del document["conditions"]
    assert document == {
        "observedGeneration": 3,
        "result": "Residue",
        "startTime": "2026-01-01T00:00:00Z",
        "completionTime": "2026-01-01T00:05:00Z",
        "before": [
            {"numaNode": 1, "pageClass": "Anon", "bytes": 10 * MIB},
            {"numaNode": 2, "pageClass": "File", "bytes": MIB},
        ],
        "after": [{"numaNode": 2, "pageClass": "AnonHuge", "bytes": 8 * MIB}],
        "asked": 9 * MIB,
        "onTarget": 8 * MIB,
        "moved": 7 * MIB,
        "freed": 3 * MIB,
        "grown": 2 * MIB,
        "split": MIB,
        "residue": [
            {
                "reason": "vm-cpuset",
                "numaNode": 3,
                "bytes": MIB,
                "permanent": False,
                "evidence": "seen",
                "remedy": "Do something. More: docs/reasons.md#vm-cpuset.",
            },
            {
                "reason": "busy",
                "numaNode": 1,
                "bytes": 4096,
                "permanent": False,
                "evidence": "seen",
                "remedy": "Do something. More: docs/reasons.md#busy.",
            },
        ],
        "notes": [
            {
                "reason": "huge-pages-split",
                "numaNode": -1,
                "bytes": MIB,
                "evidence": "2 MiB pages",
                "remedy": "Wait. More: docs/reasons.md#huge-pages-split.",
            }
        ],
        "stayed": False,
        "threads": {"followed": 4, "left": 1, "cpus": "8-10,12", "message": "one is pinned"},
        "calls": {"count": 12, "p50": "4.2ms", "p99": "19.1ms"},
        "rate": 7 * MIB // 2,
        "seconds": 2.346,
        "passes": 2,
    }


def test_memory_that_is_swapped_out_is_on_no_numa_node():
    rows = (engine.ClassBytes(engine.NO_NUMA_NODE, engine.PageClass.SWAPPED, MIB),)
    found = verdict(
        engine.Outcome.RESIDUE, before=rows, after=rows, residue=(row(Reason.SWAPPED, MIB, numa_node=NO_NUMA_NODE),)
    )
    document = to_document(judged(MOMENT, found))
    assert document["after"] == [{"numaNode": -1, "pageClass": "Swapped", "bytes": MIB}]
    assert document["residue"][0]["numaNode"] == -1


def test_nobody_has_looked_whether_it_stayed():
    assert "stayed" not in to_document(judged(MOMENT, verdict(engine.Outcome.PLACED)))


def test_no_field_of_a_verdict_is_left_out():
    said = {field.name for field in dataclasses.fields(engine.Verdict)}
    shown = said - {"outcome", "message", "refusals", "move_seconds"}  # result, conditions, rate
    assert shown <= set(judged(MOMENT, FULL).model_fields_set)


def test_nothing_moved_is_no_rate():
    assert judged(MOMENT, verdict(engine.Outcome.PLACED)).rate == 0


def test_endless_words_are_cut():
    long = "word " * 1000
    found = verdict(
        engine.Outcome.RESIDUE,
        message=long,
        residue=(row(Reason.BUSY, 1, remedy=long),),
        threads=engine.ThreadOutcome(message=long),
    )
    status = judged(MOMENT, found)
    told = (status.residue[0].remedy, ready(status).message, status.threads.message)
    assert all(1000 < len(text) <= 1024 for text in told)


REFUSAL = Refusal(reason="PodNotFound", seen="No process.", remedy="Look elsewhere.")


def test_an_order_that_never_came_to_the_engine():
    status = refused(MOMENT, REFUSAL)
    assert (status.result, state_of(status)) == (Result.REFUSED, State.STALLED)
    assert (ready(status).reason, ready(status).message) == ("PodNotFound", "No process. Look elsewhere.")
    (only,) = status.residue
    assert (only.reason, only.bytes, only.permanent, only.numa_node) == ("pod-not-found", 0, False, 2)
    assert (only.evidence, only.remedy) == ("No process.", "Look elsewhere.")


def test_a_refusal_for_good_says_so():
    status = refused(MOMENT, dataclasses.replace(REFUSAL, permanent=True, result=Result.VM_GONE))
    assert (status.result, status.residue[0].permanent) == (Result.VM_GONE, True)


def test_an_order_for_cells_is_refused_for_no_single_numa_node():
    status = refused(dataclasses.replace(MOMENT, order=order(target=CELLS)), REFUSAL)
    assert status.residue[0].numa_node == NO_NUMA_NODE


def test_an_order_for_cells_under_way_names_them():
    status = under_way(dataclasses.replace(MOMENT, order=order(target=CELLS)), Following().progress)
    assert "to NUMA node 1 (cell 0) and 3 (cell 1)." in ready(status).message


def test_an_order_that_cannot_be_read_is_refused_all_the_same():
    strange = dataclasses.replace(order(), spec=None)
    assert refused(dataclasses.replace(MOMENT, order=strange), REFUSAL).result is Result.REFUSED


@pytest.mark.parametrize(
    ("word", "expected"), [("PodNotFound", "pod-not-found"), ("VmGone", "vm-gone"), ("Busy", "busy")]
)
def test_reasons_as_residue_spells_them(word, expected):
    assert residue_reason(word) == expected


def test_a_fault():
    status = failed(MOMENT, reason="EngineFault", message="No /proc.")
    assert (status.result, state_of(status), ready(status).message) == (Result.FAILED, State.STALLED, "No /proc.")


def test_an_order_that_waits():
    status = queued(order(), now=NOW)
    assert (state_of(status), ready(status).reason, status.progress.stage) == (State.WORKING, "Queued", "Queued")
    assert status.start_time is None
    assert status.result is None


def test_an_order_under_way():
    progress = engine.Progress(stage=engine.Stage.MOVE, pass_number=2, bytes_done=5, bytes_total=9, bytes_per_second=3)
    status = under_way(MOMENT, progress)
    assert (state_of(status), ready(status).reason) == (State.WORKING, "Moving")
    assert "NUMA node 2" in ready(status).message
    assert to_document(status.progress) == {
        "stage": "Move", "pass": 2, "bytesDone": 5, "bytesTotal": 9, "bytesPerSecond": 3,
    }  # fmt: skip


def test_transition_times_go_on_from_what_the_order_has():
    first = under_way(Moment(order=order(), started=EARLY, now=EARLY), Following().progress)
    carried = order(conditions=to_document(first)["conditions"])
    later = Moment(order=carried, started=EARLY, now=NOW)
    assert {condition.last_transition_time for condition in under_way(later, Following().progress).conditions} == {
        EARLY
    }
    placed = judged(later, verdict(engine.Outcome.PLACED))
    assert ready(placed).last_transition_time == NOW
    assert find(placed.conditions, "Stalled").last_transition_time == EARLY


def test_a_run_is_ended_from_outside():
    following = Following()
    assert not following.cancelled()
    following.progressed(engine.Progress(stage=engine.Stage.VERIFY))
    following.cancel()
    assert following.cancelled()
    assert following.progress.stage is engine.Stage.VERIFY
