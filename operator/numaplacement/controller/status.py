# SPDX-License-Identifier: Apache-2.0
"""Status as it is stored: whether it says anything new, and the document that is applied."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from numaplacement.api.conditions import CONDITIONS_OF, State, shortened, state_conditions
from numaplacement.api.placement import NumaPlacementStatus, VmState, VmStatus
from numaplacement.api.resources import Document, Metadata, to_document

from .reasons import Reason
from .rows import shown

_OURS = frozenset(CONDITIONS_OF[State.READY])


def status_document(metadata: Metadata, status: NumaPlacementStatus) -> Document:
    """Return what is applied.

    The resource version keeps it off a placement that has changed since, and off another of the same name: a UID alone
    is not compared when the status of a custom resource is applied.
    """
    return {
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "resourceVersion": metadata.resource_version,
        },
        "status": to_document(status),
    }


def same_status(stored: NumaPlacementStatus, wanted: NumaPlacementStatus) -> bool:
    """Say whether `wanted` is stored already. Conditions that others have added do not matter."""
    return _canonical(stored) == _canonical(wanted)


def only_progress(stored: NumaPlacementStatus, wanted: NumaPlacementStatus) -> bool:
    """Say whether the two differ in figures and sentences alone: nothing that anybody acts on."""
    return _gist(stored) == _gist(wanted)


def not_accepted(
    status: NumaPlacementStatus, *, refused: Mapping[str, str], now: datetime.datetime
) -> NumaPlacementStatus:
    """Return `status` as it is when the API server did not take some orders: `refused` has its words by order name."""
    words = next(iter(refused.values()))
    rows = [_refused(row, refused[row.order]) if row.order in refused else row for row in status.vms]
    return status.model_copy(
        update={
            "vms": shown(rows),
            "conditions": state_conditions(
                State.WORKING,
                reason=Reason.ORDER_NOT_ACCEPTED,
                message=f"The order is not accepted: {words}",
                generation=status.observed_generation,
                now=now,
                previous=status.conditions,
            ),
        }
    )


def _refused(row: VmStatus, words: str) -> VmStatus:
    return row.model_copy(
        update={
            "state": VmState.WAITING,
            "reason": str(Reason.ORDER_NOT_ACCEPTED),
            "message": shortened(f"The order is not accepted: {words}"),
            "order": "",
        }
    )


def _canonical(status: NumaPlacementStatus) -> Document:
    document = to_document(status)
    document["conditions"] = _by(
        "type", [condition for condition in document["conditions"] if condition["type"] in _OURS]
    )
    for row in document["vms"]:
        row |= {
            "before": _by("numaNode", row["before"]),
            "after": _by("numaNode", row["after"]),
            "residue": _by("reason", row["residue"]),
        }
    document["vms"] = _by("name", document["vms"])
    return document


def _by(key: str, rows: list[Any]) -> dict[Any, Any]:
    return {row[key]: row for row in rows}


def _gist(status: NumaPlacementStatus) -> object:
    conditions = {(each.type, each.status, each.reason) for each in status.conditions if each.type in _OURS}
    rows = {(row.name, row.state, row.reason, row.order) for row in status.vms}
    return (status.observed_generation, conditions, rows, status.summary.vms, status.summary.placed)
