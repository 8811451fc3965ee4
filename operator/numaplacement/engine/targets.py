# SPDX-License-Identifier: Apache-2.0
"""Which NUMA node memory was asked to be on, mapping by mapping."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

from .mappings import Mapping


@dataclass(frozen=True, order=True)
class TargetRange:
    """Addresses from `start` to `end` belong on a NUMA node."""

    start: int
    end: int
    numa_node: int


@dataclass(frozen=True, kw_only=True)
class Targets:
    """NUMA node for the memory in `ranges`, ascending and apart, and `default` for all other; None: nothing asked.

    Ranges and not mappings, since mappings may be split and merged while memory moves.
    """

    default: int | None = None
    ranges: tuple[TargetRange, ...] = ()

    def of(self, mapping: Mapping) -> int | None:
        """Return where a mapping's memory was asked to be; None where nothing was asked of it."""
        index = bisect.bisect_right(self.ranges, mapping.start, key=lambda each: each.start) - 1
        if index >= 0 and mapping.start < self.ranges[index].end:
            return self.ranges[index].numa_node
        return self.default

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """All NUMA nodes asked for, ascending."""
        found = {each.numa_node for each in self.ranges}
        return tuple(sorted(found if self.default is None else found | {self.default}))


def targets_of_cells(assigned: Iterable[tuple[Mapping, int]]) -> Targets:
    """Return the targets when each of some mappings was asked to be on a NUMA node, and nothing of the others."""
    return Targets(
        ranges=tuple(sorted(TargetRange(mapping.start, mapping.end, numa_node) for mapping, numa_node in assigned))
    )
