# SPDX-License-Identifier: Apache-2.0
import datetime

import pytest

from numaplacement.agent.orders import LONG_AGO, Order, Queue, first, read_order

SPEC = {"nodeName": "n1", "vm": {"name": "db", "uid": "u"}, "podUID": "p", "target": {"numaNode": 0}}
TIME = "2026-01-01T10:00:00Z"


def document(*, spec=SPEC, status=None, **metadata):
    return {
        "metadata": {"namespace": "prod", "name": "db-1", "uid": "u1", "resourceVersion": "7", "generation": 1}
        | metadata,
        "spec": spec,
    } | ({} if status is None else {"status": status})


def order(uid, *, priority=0, minute=0, name="", **fields):
    spec = read_order(document(spec=SPEC | {"priority": priority})).spec
    values = {"namespace": "prod", "name": name or uid, "uid": uid, "resource_version": "1", "generation": 1}
    created = LONG_AGO + datetime.timedelta(minutes=minute)
    return Order(**(values | {"created": created, "node_name": "n1", "spec": spec} | fields))


def test_an_order_is_read():
    read = read_order(document(creationTimestamp=TIME, spec=SPEC | {"priority": 3}))
    assert (read.namespace, read.name, read.uid, read.resource_version) == ("prod", "db-1", "u1", "7")
    assert (read.node_name, read.priority, read.finished, read.deleting) == ("n1", 3, False, False)
    assert read.created == datetime.datetime(2026, 1, 1, 10, tzinfo=datetime.UTC)
    assert read.spec.vm.name == "db"


@pytest.mark.parametrize(
    ("status", "finished"),
    [
        (None, False),
        ({"observedGeneration": -1}, False),
        ({"progress": {"stage": "Move"}}, False),
        ({"result": "Placed"}, True),
        ({"result": "WordOfALaterVersion"}, True),
    ],
)
def test_a_result_is_the_end(status, finished):
    assert read_order(document(status=status)).finished is finished


def test_an_order_that_is_being_deleted():
    assert read_order(document(deletionTimestamp=TIME)).deleting


def test_what_an_earlier_run_wrote_goes_on():
    condition = {"type": "Ready", "status": "False", "reason": "Moving", "lastTransitionTime": TIME}
    read = read_order(document(status={"startTime": TIME, "conditions": [condition]}))
    assert read.started == datetime.datetime(2026, 1, 1, 10, tzinfo=datetime.UTC)
    assert read.conditions[0].reason == "Moving"


def test_a_strange_status_is_no_obstacle():
    read = read_order(document(status={"startTime": "yesterday", "conditions": 5}))
    assert (read.started, read.conditions) == (None, ())


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        (SPEC | {"allow": ["WordOfALaterVersion"]}, "allow.0"),
        (SPEC | {"laterField": 1}, "laterField"),
        ({"nodeName": "n1"}, "podUID"),
        (None, "podUID"),
    ],
)
def test_a_strange_spec_is_said(spec, word):
    read = read_order(document(spec=spec))
    assert read.spec is None
    assert word in read.problem
    assert read.priority == 0


def test_which_is_next():
    later, early, urgent = order("later", minute=2), order("early", minute=1), order("urgent", minute=3, priority=5)
    patient = order("patient", priority=-1)
    queue = [later, patient, early, urgent]
    expected = [urgent, early, later, patient]
    for each in expected:
        assert first(queue) is each
        queue.remove(each)
    assert first(queue) is None


def test_of_the_same_moment_the_first_by_name():
    assert first([order("b"), order("a")]).name == "a"


def test_a_finished_order_is_not_carried_out():
    queue = Queue()
    queue.seen(order("a", finished=True))
    assert queue.next() is None


def test_a_deleted_order_leaves_the_queue():
    for change in (lambda queue: queue.gone("a"), lambda queue: queue.seen(order("a", deleting=True))):
        queue = Queue()
        queue.seen(order("a"))
        change(queue)
        assert queue.next() is None


def test_what_is_told_late_does_not_bring_an_order_back():
    queue = Queue()
    queue.seen(order("a"))
    queue.done("a")
    queue.seen(order("a"))
    assert queue.next() is None


def test_another_order_of_the_same_name_is_another_order():
    queue = Queue()
    queue.seen(order("a", name="db"))
    queue.done("a")
    queue.gone("a")
    queue.seen(order("b", name="db"))
    assert queue.next().uid == "b"


def test_the_newest_state_counts():
    queue = Queue()
    queue.seen(order("a"))
    queue.seen(order("a", resource_version="2"))
    assert queue.get("a").resource_version == "2"
    assert len(queue.all()) == 1
