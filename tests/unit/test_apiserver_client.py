# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaplacement.apiserver.backoff import Backoff
from numaplacement.apiserver.client import Lines

LINE = st.binary(min_size=1, max_size=40).map(lambda line: line.replace(b"\n", b".").strip()).filter(bool)


@given(lines=st.lists(LINE), cuts=st.lists(st.integers(0, 400)))
def test_lines_are_the_same_however_the_stream_is_cut(lines, cuts):
    stream = b"".join(line + b"\n" for line in lines)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    together = Lines()
    found = [line for start, end in itertools.pairwise(edges) for line in together.feed(stream[start:end])]
    assert found == lines


def test_a_line_that_is_not_complete_is_kept_back():
    together = Lines()
    assert list(together.feed(b'{"type":')) == []
    assert list(together.feed(b'"ADDED"}\n{')) == [b'{"type":"ADDED"}']


@pytest.mark.parametrize("stream", [b"\n\n", b"\r\n", b" \n"])
def test_empty_lines_are_nothing(stream):
    assert list(Lines().feed(stream)) == []


def test_waits_double_up_to_the_most():
    pause = Backoff(first=1, most=5, chance=lambda: 0.0)
    assert [pause.delay() for _ in range(5)] == [1, 2, 4, 5, 5]
    pause.reset()
    assert pause.delay() == 1


def test_waits_are_shortened_by_at_most_half():
    assert Backoff(first=4, most=5, chance=lambda: 1.0).delay() == 2


def test_a_server_may_ask_for_more():
    assert Backoff(first=1, most=5, chance=lambda: 0.0).delay(at_least=9) == 9
