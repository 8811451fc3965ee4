# SPDX-License-Identifier: Apache-2.0
import pytest

from numaplacement.agent.support import engine_request
from numaplacement.api.migration import NumaMigrationSpec
from numaplacement.api.placement import Allowance
from numaplacement.engine.verdict import Allow, Request


def spec(**fields):
    return NumaMigrationSpec.model_validate(
        {"nodeName": "n1", "vm": {"name": "db", "uid": "u"}, "podUID": "p", "target": {"numaNode": 2}} | fields
    )


def test_an_order_without_wishes():
    assert engine_request(spec()) == Request(target=2)


ASKED = {
    "leave threads": ({"threads": "Leave"}, {"follow_threads": False}),
    "dry run": ({"dryRun": True}, {"dry_run": True}),
    "latency": ({"limits": {"callLatency": "5ms"}}, {"call_latency": 0.005}),
    "bandwidth": ({"limits": {"bandwidth": "500Mi"}}, {"bandwidth": 500 * 2**20}),
    "bandwidth as a number": ({"limits": {"bandwidth": 1000}}, {"bandwidth": 1000}),
    "deadline": ({"limits": {"deadline": "1m30s"}}, {"deadline": 90.0}),
    "tolerance in bytes": ({"tolerance": "64Mi"}, {"tolerance_bytes": 64 * 2**20}),
    "tolerance as a number": ({"tolerance": 4096}, {"tolerance_bytes": 4096}),
    "tolerance as a share": ({"tolerance": "0.5%"}, {"tolerance_share": 0.005}),
    "all may stay": ({"tolerance": "100%"}, {"tolerance_share": 1.0}),
    "priority": ({"priority": 7}, {}),
    "a later attempt": ({"attempt": 3, "limits": {"attempts": 9}}, {}),
}


@pytest.mark.parametrize("name", ASKED)
def test_every_wish_reaches_the_engine(name):
    fields, expected = ASKED[name]
    assert engine_request(spec(**fields)) == Request(target=2, **expected)


@pytest.mark.parametrize("word", list(Allowance))
def test_each_word_of_allow_reaches_the_engine(word):
    assert engine_request(spec(allow=[word])) == Request(target=2, allow=frozenset({Allow(word)}))


def test_all_words_of_allow_at_once():
    assert engine_request(spec(allow=list(Allowance))).allow == frozenset(Allow)


def test_cells_reach_the_engine():
    cells = [{"cell": 0, "numaNode": 1}, {"cell": 1, "numaNode": 3}]
    assert engine_request(spec(target={"cells": cells})) == Request(cells={0: 1, 1: 3})


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tolerance": "lots"}, "lots"),
        ({"tolerance": "101%"}, "101%"),
        ({"limits": {"bandwidth": "fast"}}, "fast"),
        ({"limits": {"bandwidth": "0"}}, "limits.bandwidth"),
        ({"limits": {"callLatency": "0ms"}}, "limits.callLatency"),
        ({"limits": {"deadline": "0s"}}, "limits.deadline"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, word):
    refusal = engine_request(spec(**fields))
    assert (refusal.reason, refusal.permanent) == ("InvalidOrder", True)
    assert word in refusal.seen
