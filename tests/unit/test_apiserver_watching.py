# SPDX-License-Identifier: Apache-2.0
"""What is told of objects when the connection does all that a connection can do."""

import asyncio

import pytest

from numaplacement.api.resources import MIGRATIONS
from numaplacement.apiserver.backoff import Backoff
from numaplacement.apiserver.client import Listing, WatchEvent
from numaplacement.apiserver.errors import Forbidden, Gone, Unavailable
from numaplacement.apiserver.watching import Added, Deleted, Known, Synced, follow


def thing(name, *, uid="", version="1"):
    return {"metadata": {"namespace": "ns", "name": name, "uid": uid or f"uid-{name}", "resourceVersion": version}}


def listing(*things, version="10"):
    return Listing(items=things, resource_version=version)


def told(events):
    words = []
    for event in events:
        if isinstance(event, Deleted):
            words.append(f"-{event.name}/{event.uid}")
        elif isinstance(event, Synced):
            words.append("synced")
        else:
            sign = "+" if isinstance(event, Added) else "~"
            words.append(sign + event.document["metadata"]["name"])
    return words


A, B = thing("a"), thing("b")


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([], [], ["synced"]),
        ([], [A, B], ["+a", "+b", "synced"]),
        ([A, B], [A, B], ["synced"]),
        ([A, B], [B], ["-a/uid-a", "synced"]),
        ([A, B], [], ["-a/uid-a", "-b/uid-b", "synced"]),
        ([A], [thing("a", version="2")], ["~a", "synced"]),
        ([A], [thing("a", uid="other")], ["-a/uid-a", "+a", "synced"]),
        ([A], [thing("a", uid="other", version="2"), B], ["-a/uid-a", "+a", "+b", "synced"]),
    ],
)
def test_a_relist_tells_the_difference(before, now, expected):
    known = Known()
    list(known.relisted(listing(*before)))
    assert sorted(told(known.relisted(listing(*now)))) == sorted(expected)


@pytest.mark.parametrize(
    ("kind", "document", "expected"),
    [
        ("ADDED", B, ["+b"]),
        ("ADDED", A, []),
        ("ADDED", thing("a", uid="other", version="5"), ["-a/uid-a", "+a"]),
        ("MODIFIED", thing("a", version="2"), ["~a"]),
        ("MODIFIED", A, []),
        ("MODIFIED", B, ["+b"]),
        ("DELETED", A, ["-a/uid-a"]),
        ("DELETED", thing("a", version="9"), ["-a/uid-a"]),
        ("DELETED", B, []),
        ("BOOKMARK", {"metadata": {"resourceVersion": "99"}}, []),
    ],
)
def test_an_event_tells_what_is_new(kind, document, expected):
    known = Known()
    list(known.relisted(listing(A)))
    assert told(known.happened(WatchEvent(type=kind, document=document))) == expected


class Script:
    """An API server that answers as written: a listing, an error, or the events of one stream, in order."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def list(self, resource, **selection):
        assert resource is MIGRATIONS
        self.asked.append(("list", selection))
        answer = self._next(Listing)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def watch(self, resource, *, resource_version, **selection):
        assert resource is MIGRATIONS
        assert selection.keys() == ONE.keys()
        self.asked.append(("watch", resource_version))
        answer = self._next(list)
        for event in [answer] if isinstance(answer, Exception) else answer:
            if isinstance(event, Exception):
                raise event
            yield event

    def _next(self, kind):
        if not self.answers:
            raise asyncio.CancelledError  # the end of the story
        answer = self.answers.pop(0)
        assert isinstance(answer, (kind, Exception)), f"asked for a {kind.__name__}, the script has {answer}"
        return answer


def play(*answers, **selection):
    script, events = Script(*answers), []

    async def tell():
        no_wait = Backoff(first=0, most=0)
        async for event in follow(script, MIGRATIONS, backoff=no_wait, **selection):
            events.append(event)  # noqa: PERF401 - what came before the end is wanted, too

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(tell())
    return told(events), script.asked


def happened(kind, document):
    return WatchEvent(type=kind, document=document)


def bookmark(version):
    return happened("BOOKMARK", {"metadata": {"resourceVersion": version}})


ONE = {"namespace": "", "field_selector": "", "label_selector": ""}


def test_a_stream_that_ends_is_taken_up_where_it_was():
    events, asked = play(listing(A), [happened("ADDED", thing("b", version="11")), bookmark("15")], [])
    assert events == ["+a", "synced", "+b"]
    assert asked == [("list", ONE), ("watch", "10"), ("watch", "15"), ("watch", "15")]


def test_a_broken_stream_is_resumed_once_without_a_list():
    _, asked = play(listing(), [bookmark("12"), Unavailable("reset by peer")], [bookmark("13")])
    assert asked == [("list", ONE), ("watch", "10"), ("watch", "12"), ("watch", "13")]


def test_a_stream_that_cannot_be_resumed_is_listed_again_and_deletions_are_told():
    events, asked = play(
        listing(A, B),
        [Unavailable("refused")],
        Unavailable("refused"),
        Unavailable("refused"),
        listing(B, version="40"),
        [],
    )
    assert events == ["+a", "+b", "synced", "-a/uid-a", "synced"]
    assert [call[0] for call in asked] == ["list", "watch", "watch", "list", "list", "watch", "watch"]
    assert asked[-1] == ("watch", "40")


def test_a_forgotten_resource_version_is_listed_again_at_once():
    events, asked = play(listing(A), [Gone("too old")], listing(version="50"))
    assert events == ["+a", "synced", "-a/uid-a", "synced"]
    assert [call[0] for call in asked] == ["list", "watch", "list", "watch"]


def test_gone_in_the_middle_of_a_stream():
    events, _ = play(listing(A), [happened("ADDED", thing("b", version="11")), Gone("compacted")], listing(A))
    assert events == ["+a", "synced", "+b", "-b/uid-b", "synced"]


def test_a_missing_right_is_waited_for():
    events, asked = play(Forbidden("no"), Forbidden("no"), listing(A))
    assert events == ["+a", "synced"]
    assert [call[0] for call in asked] == ["list", "list", "list", "watch"]


def test_a_right_lost_while_watching_is_listed_again():
    _, asked = play(listing(), [Forbidden("no")], listing())
    assert [call[0] for call in asked] == ["list", "watch", "list", "watch"]


def test_the_selection_goes_to_the_server():
    _, asked = play(listing(), field_selector="spec.nodeName=n1", namespace="x", label_selector="a=b")
    assert asked[0] == ("list", {"namespace": "x", "field_selector": "spec.nodeName=n1", "label_selector": "a=b"})


def test_a_server_that_ends_streams_at_once_is_not_hammered():
    waits = []

    class Counting(Backoff):
        def delay(self, *, at_least=0.0):
            waits.append(super().delay(at_least=at_least))
            return 0.0

    async def tell():
        async for _ in follow(Script(listing(), [], [], []), MIGRATIONS, backoff=Counting(chance=lambda: 0.0)):
            pass

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(tell())
    assert waits == [0.5, 1.0, 2.0]
