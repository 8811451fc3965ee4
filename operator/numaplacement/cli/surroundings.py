# SPDX-License-Identifier: Apache-2.0
"""What a command works with: the kernel and the clocks."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.ledger import DIRECTORY


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """The kernel, seconds that only go forward, the time of day, a wait of so many seconds, and where moves reserve."""

    kernel: Kernel = field(default_factory=Kernel)
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime.datetime] = _now
    sleep: Callable[[float], None] = time.sleep
    reservations: Path | None = DIRECTORY
