# SPDX-License-Identifier: Apache-2.0
"""How much can be moved to a NUMA node without anybody there having to give memory back.

Pages to move to are asked for with GFP_HIGHUSER_MOVABLE | __GFP_THISNODE (mm/migrate.c, alloc_migration_target). Above
the high watermark, plus what a zone protects against requests that could use a higher one, such a request wakes no
reclaim at all (mm/page_alloc.c, __zone_watermark_ok).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

_SECTION = re.compile(r"^Node (\d+), zone\s+(\S+)$", re.MULTILINE)
_FREE = re.compile(r"^\s+pages free\s+(\d+)$", re.MULTILINE)
_MIN = re.compile(r"^\s+min\s+(\d+)$", re.MULTILINE)
_LOW = re.compile(r"^\s+low\s+(\d+)$", re.MULTILINE)
_HIGH = re.compile(r"^\s+high\s+(\d+)$", re.MULTILINE)
_PROTECTION = re.compile(r"^\s+protection: \(([\d, ]*)\)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Zone:
    """One zone of a NUMA node, in base pages; `protection` is the entry for requests that may use ZONE_MOVABLE.

    `minimum`, `low` and `high` are its watermarks.
    """

    name: str
    free: int
    minimum: int = 0
    low: int = 0
    high: int
    protection: int

    @property
    def safe(self) -> int:
        """Base pages that can be taken without waking reclaim."""
        return max(0, self.free - self.high - self.protection)


def zones(zoneinfo: str, numa_node: int) -> tuple[Zone, ...]:
    """Return the zones of one NUMA node from the text of /proc/zoneinfo; empty when it has none there."""
    start = zoneinfo.find(f"Node {numa_node}, zone")
    if start < 0:
        return ()
    after = zoneinfo.find(f"Node {numa_node + 1}, zone", start)
    own = zoneinfo[start : after if after >= 0 else len(zoneinfo)]
    heads = list(_SECTION.finditer(own))
    names = [head[2] for head in heads if int(head[1]) == numa_node]
    found: list[Zone] = []
    for head, following in zip_longest(heads, heads[1:]):
        if int(head[1]) != numa_node:
            continue
        body = own[head.end() : following.start() if following else len(own)]
        free, high, protection = _FREE.search(body), _HIGH.search(body), _PROTECTION.search(body)
        if free is None or high is None:
            continue
        found.append(
            Zone(
                name=head[2],
                free=int(free[1]),
                minimum=_number(_MIN, body),
                low=_number(_LOW, body),
                high=int(high[1]),
                protection=_for_movable(protection[1] if protection else "", names),
            )
        )
    return tuple(found)


def _number(pattern: re.Pattern[str], body: str) -> int:
    found = pattern.search(body)
    return int(found[1]) if found else 0


def _for_movable(protection: str, names: list[str]) -> int:
    """Return the protection entry with the index of ZONE_MOVABLE among the node's zones, or the greatest."""
    entries = [int(entry) for entry in protection.split(",") if entry.strip()]
    index = names.index("Movable") if "Movable" in names else len(entries)
    if index < len(entries):
        return entries[index]
    return max(entries, default=0)


def safe_bytes(zoneinfo: str, *, numa_node: int, page_size: int) -> int:
    """Return S = sum over zones of max(0, free - high - protection), in bytes."""
    return sum(zone.safe for zone in zones(zoneinfo, numa_node)) * page_size
