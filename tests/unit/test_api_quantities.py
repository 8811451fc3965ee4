# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaplacement.api import quantities


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0),
        ("0", 0),
        (17, 17),
        ("512Mi", 512 * 2**20),
        ("1.5Gi", 3 * 2**29),
        ("2G", 2 * 10**9),
        ("1k", 1000),
        ("0.0001Ki", 1),
    ],
)
def test_quantity(text, expected):
    assert quantities.parse_quantity(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1Kib", "Mi", "1 Gi", "1e3", "100m", "1,5Gi", "50%"])
def test_no_quantity_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="is not a quantity such as 512Mi"):
        quantities.parse_quantity(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("20ms", 0.02), ("1s", 1), ("1m30s", 90), ("1h", 3600), ("1.5s", 1.5), ("0.5ms", 0.0005)]
)
def test_duration(text, seconds):
    assert quantities.parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["", "20", "ms", "1 s", "1d", "-1s", "1s2", "10us"])
def test_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="is not a duration such as 20ms"):
        quantities.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "asked", "expected"),
    [
        (0, 100, 0),
        ("0", 100, 0),
        ("1%", 1000, 10),
        ("0.5%", 1000, 5),
        ("0.1%", 999, 0),
        ("100%", 7, 7),
        ("1Ki", 10, 1024),
    ],
)
def test_tolerance(text, asked, expected):
    assert quantities.parse_tolerance(text, asked=asked) == expected


@pytest.mark.parametrize("text", ["101%", "-1%", "1Kib"])
def test_tolerance_out_of_range_is_refused(text):
    with pytest.raises((ValueError, ArithmeticError)):
        quantities.parse_tolerance(text, asked=100)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (768, "768"),
        (1023, "1023"),
        (1024, "1Ki"),
        (1536, "1.5Ki"),
        (2**30, "1Gi"),
        (5 * 2**60, "5Ei"),
        (2**70, "1024Ei"),
    ],
)
def test_bytes_for_people(count, text):
    assert quantities.format_bytes(count) == text


@given(part=st.integers(0, 2**60), whole=st.integers(1, 2**60))
def test_percent_says_all_only_when_it_is_all(part, whole):
    assert (quantities.format_percent(part, whole) == "100%") == (part >= whole)


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 0, "100%"), (0, 5, "0%"), (1, 3, "33.3%"), (9999, 10000, "99.9%")]
)
def test_percent(part, whole, text):
    assert quantities.format_percent(part, whole) == text


@given(st.floats(0.0001, 10_000))
def test_duration_for_people_reads_back(seconds):
    assert quantities.parse_duration(quantities.format_seconds(seconds)) == pytest.approx(seconds, abs=0.051)
