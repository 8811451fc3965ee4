# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from numaplacement.apiserver.errors import (
    TRANSIENT,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    error_of,
)


def answer(status, *, body=b"", headers=None):
    return error_of(status, action="get Node n1", body=body, headers=headers or {})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (410, Gone),
        (422, Invalid),
        (429, TooManyRequests),
        (500, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (418, ApiError),
    ],
)
def test_kind_follows_the_status(status, kind):
    error = answer(status)
    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_server_may_say_when_to_come_back(status):
    error = answer(status, headers={"Retry-After": "7"})
    assert isinstance(error, TRANSIENT)
    assert error.retry_after == 7.0


@pytest.mark.parametrize("header", ["", "soon", "-1", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_strange_retry_after_is_none(header):
    assert answer(503, headers={"Retry-After": header}).retry_after == 0.0


def test_the_message_says_what_was_tried_and_what_the_server_said():
    body = json.dumps({"kind": "Status", "message": 'nodes "n1" not found'}).encode()
    assert str(answer(404, body=body)) == 'cannot get Node n1: nodes "n1" not found (HTTP 404)'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no reason given"),
        (b"upstream\n  connect error", "upstream connect error"),
        (b"[1, 2]", "no reason given"),
        (b'{"message": 5}', "no reason given"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_body_of_any_form_makes_a_message(body, words):
    assert words in str(answer(502, body=body))


def test_an_endless_body_makes_a_short_message():
    assert len(str(answer(502, body=b"x" * 100_000))) < 600
