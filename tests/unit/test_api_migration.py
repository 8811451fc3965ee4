# SPDX-License-Identifier: Apache-2.0
import pytest

from numaplacement.api.migration import OrderTarget


def cells(**assigned):
    return {"cells": [{"cell": int(cell[1:]), "numaNode": numa_node} for cell, numa_node in assigned.items()]}


@pytest.mark.parametrize(
    ("target", "numa_nodes", "words"),
    [
        ({"numaNode": 0}, (0,), "NUMA node 0"),
        (cells(c0=3), (3,), "NUMA node 3 (cell 0)"),
        (cells(c1=1, c0=3), (1, 3), "NUMA node 3 (cell 0) and 1 (cell 1)"),
        (cells(c0=2, c1=2, c2=0), (0, 2), "NUMA node 2 (cell 0), 2 (cell 1) and 0 (cell 2)"),
    ],
)
def test_a_target_in_numbers_and_in_words(target, numa_nodes, words):
    parsed = OrderTarget.model_validate(target)
    assert (parsed.numa_nodes, parsed.words) == (numa_nodes, words)
