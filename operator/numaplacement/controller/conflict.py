# SPDX-License-Identifier: Apache-2.0
"""Two placements that want one VM in different places: the older one has it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping

from numaplacement.api.resources import NumaPlacement

from .selection import selects
from .supported import unsupported

_BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)


def claims(placement: NumaPlacement) -> bool:
    """Say whether the placement acts on VMs at all.

    One that is suspended, on its way out, a dry run, or refused as not supported takes no VM away from another.
    """
    spec = placement.spec
    gone = placement.metadata.deletion_timestamp is not None
    return not (gone or spec.suspend or spec.dry_run or unsupported(spec))


def winner(
    placement: NumaPlacement, *, rivals: Iterable[NumaPlacement], vm: str, labels: Mapping[str, str]
) -> NumaPlacement | None:
    """Return the placement that has VM `vm` in place of `placement`, or None when there is no contradiction.

    Of all that claim the VM the oldest has it: by creation time, then by UID, so that everybody finds the same one.
    Another with the same target contradicts nothing.
    """
    if not claims(placement):
        return None
    claimants = [rival for rival in rivals if claims(rival) and selects(rival.spec.vm, name=vm, labels=labels)]
    oldest = min((placement, *claimants), key=_age)
    return None if _target(oldest) == _target(placement) else oldest


def _age(placement: NumaPlacement) -> tuple[datetime.datetime, str]:
    return (placement.metadata.creation_timestamp or _BEGINNING, placement.metadata.uid)


def _target(placement: NumaPlacement) -> object:
    return (placement.spec.numa_node, placement.spec.cells)
