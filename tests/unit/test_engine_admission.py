# SPDX-License-Identifier: Apache-2.0
"""How much a NUMA node can take."""

from __future__ import annotations

import pytest

from numaplacement.engine.admission import safe_bytes, zones

ZONEINFO = """Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 2
  pages free     3840
        boost    0
        min      31
        low      38
        high     45
        spanned  4095
        present  3998
        managed  3840
        cma      0
        protection: (0, 1923, 1923, 1923, 1923)
      nr_free_pages 3840
  pagesets
    cpu: 0
              count: 0
              high:  14
              batch: 1
  node_unreclaimable:  0
  start_pfn:           1
Node 0, zone    DMA32
  pages free     400000
        boost    0
        min      4036
        low      5045
        high     6054
        spanned  520160
        protection: (0, 0, 0, 0, 0)
  pagesets
    cpu: 0
              count: 369
              high:  1000
  start_pfn:           4096
Node 0, zone   Normal
  pages free     0
        min      0
        low      0
        high     0
        protection: (0, 0, 0, 0, 0)
Node 0, zone  Movable
  pages free     0
        min      0
        low      0
        high     0
        protection: (0, 0, 0, 0, 0)
Node 1, zone      DMA
  pages free     0
        high     0
        protection: (0, 0, 0, 100, 100)
Node 1, zone   Normal
  pages free     100
        high     100
        protection: (0, 0, 0, 0, 0)
Node 1, zone  Movable
  pages free     900
        high     100
        protection: (0, 0, 0, 0, 0)
Node 10, zone   Normal
  pages free     77
        high     7
"""


def test_zones_of_one_numa_node() -> None:
    assert [(zone.name, zone.free, zone.high, zone.protection) for zone in zones(ZONEINFO, 0)] == [
        ("DMA", 3840, 45, 1923),
        ("DMA32", 400000, 6054, 0),
        ("Normal", 0, 0, 0),
        ("Movable", 0, 0, 0),
    ]


@pytest.mark.parametrize(
    ("numa_node", "pages"),
    [(0, (3840 - 45 - 1923) + (400000 - 6054)), (1, 800), (10, 70), (2, 0), (9, 0)],
)
def test_safe_is_what_lies_above_watermark_and_protection_zone_by_zone(numa_node: int, pages: int) -> None:
    assert safe_bytes(ZONEINFO, numa_node=numa_node, page_size=4096) == pages * 4096


def test_a_zone_below_its_watermark_takes_nothing_from_the_others() -> None:
    text = ZONEINFO.replace("free     3840", "free     40")
    assert safe_bytes(text, numa_node=0, page_size=1) == 400000 - 6054


def test_no_zone_at_all() -> None:
    assert safe_bytes("", numa_node=0, page_size=4096) == 0
