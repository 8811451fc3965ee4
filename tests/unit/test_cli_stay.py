# SPDX-License-Identifier: Apache-2.0
"""What a person is told of memory that did not stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from numaplacement.cli import running
from numaplacement.engine.staying import with_stay
from numaplacement.engine.verdict import Verdict
from tests.unit.cli_world import PID, Desk, Region, World

WORDS = "2.0 MiB of 2.0 MiB on NUMA node 0; it did not stay: 2.0 MiB more on NUMA node 1; AutoNUMA is off."


@pytest.mark.parametrize("form", ["table", "json"])
def test_memory_that_was_back_before_anybody_looked_did_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    desk = Desk(root=tmp_path, world=World(regions=[Region(0x10_0000, [1] * 512)]))

    def late(verdict: Verdict, **more: Any) -> Verdict:
        desk.world.regions[0].nodes[:] = [1] * 512
        return with_stay(verdict, **more)

    monkeypatch.setattr(running, "with_stay", late)
    result = desk.run("move", str(PID), "--to", "0", "-o", form)
    assert result.exit_code == 3
    assert WORDS in " ".join(result.stdout.split())
    assert "no longer on target" in result.stdout or '"stayed": false' in result.stdout
