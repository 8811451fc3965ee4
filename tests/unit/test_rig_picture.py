# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.rig.picture import bar, mebibytes


@pytest.mark.parametrize(
    ("part", "whole", "drawn"), [(0, 8, "·"), (8, 8, "████"), (4, 8, "██"), (1, 1_000_000, "▏"), (5, 8, "██▌")]
)
def test_bar(part, whole, drawn):
    assert bar(part, whole, width=4) == drawn


def test_numbers_are_in_mib_and_pages():
    assert mebibytes(512 * 2**20) == "512.00 MiB, 131072 pages"
