# SPDX-License-Identifier: Apache-2.0
"""Conditions of all three resources, and the kstatus rules they keep.

Every object of ours carries ``Ready``, ``Reconciling`` and ``Stalled``, in the meaning of kstatus
(sigs.k8s.io/cli-utils,
``pkg/kstatus``): *Reconciling* while there is something left to do or to wait for, *Stalled* once nothing more happens
until
somebody acts, *Ready* when the object is what it asks to be. At most one of the three is ``True``.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterable
from typing import Annotated

import pydantic

from .schema import ObservedModel

MESSAGE_LIMIT = 1024
"""Longest condition message in characters: enough for a sentence per cause, small enough for `kubectl get -o wide`."""
_KEPT = 320
"""Characters at the end of a message that are never cut: what to do about it, and where to read more, stand there."""
_CUT = " … "


class ConditionStatus(enum.StrEnum):
    """Truth of a condition, as the Kubernetes API conventions spell it."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ObservedModel):
    """One observed aspect of the object, as the Kubernetes API conventions define it."""

    type: Annotated[str, pydantic.Field(pattern=r"^[A-Z][A-Za-z]*$", max_length=64)]
    """What is observed: Ready, Reconciling, Stalled, or on a NumaHost one of its self-tests."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=128)]
    """One word for programs that says why."""
    message: Annotated[str, pydantic.Field(max_length=MESSAGE_LIMIT)] = ""
    """A sentence for people that says why, and what to do about it."""
    observed_generation: Annotated[int, pydantic.Field(ge=0, json_schema_extra={"format": "int64"})] = 0
    """metadata.generation this was observed at."""
    last_transition_time: datetime.datetime
    """When the status last changed from one value to another."""


CONDITION_LIST = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "maxItems": 16}
"""Schema of a list of conditions: merged by type under server-side apply."""

Conditions = Annotated[tuple[Condition, ...], pydantic.Field(json_schema_extra=CONDITION_LIST)]
"""At most one condition of each type."""


class State(enum.StrEnum):
    """The four states an object of ours can be in; each is one row of `CONDITIONS_OF`."""

    READY = "Ready"
    """It is what it asks to be."""
    WORKING = "Working"
    """Something is being done, or waited for that comes by itself."""
    STALLED = "Stalled"
    """Nothing more happens until somebody acts."""
    IDLE = "Idle"
    """It was told to do nothing (suspended)."""


_TRUTH = {
    State.READY: ("True", "False", "False"),
    State.WORKING: ("False", "True", "False"),
    State.STALLED: ("False", "False", "True"),
    State.IDLE: ("False", "False", "False"),
}

CONDITIONS_OF: dict[State, dict[str, ConditionStatus]] = {
    state: dict(zip(("Ready", "Reconciling", "Stalled"), map(ConditionStatus, truth), strict=True))
    for state, truth in _TRUTH.items()
}
"""The three kstatus conditions of each state."""


def state_conditions(
    state: State,
    *,
    reason: str,
    message: str,
    generation: int,
    now: datetime.datetime,
    previous: Iterable[Condition] = (),
) -> tuple[Condition, ...]:
    """Return the three kstatus conditions for `state`.

    `previous` are the conditions the object carries already: a condition whose status stays keeps its transition time.
    """
    wanted = tuple(
        Condition(
            type=kind,
            status=status,
            reason=reason,
            message=shortened(message),
            observed_generation=generation,
            last_transition_time=now,
        )
        for kind, status in CONDITIONS_OF[state].items()
    )
    return with_transition_times(wanted, previous=previous)


def with_transition_times(wanted: Iterable[Condition], *, previous: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return `wanted`, with the transition time of `previous` wherever type and status did not change."""
    before = {condition.type: condition for condition in previous}
    return tuple(
        condition.model_copy(update={"last_transition_time": old.last_transition_time})
        if (old := before.get(condition.type)) is not None and old.status == condition.status
        else condition
        for condition in wanted
    )


def find(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """Return the condition of type `kind`, or None when there is none."""
    return next((condition for condition in conditions if condition.type == kind), None)


def shortened(message: str) -> str:
    """Return `message`, cut so that it fits into a condition: in its middle, which is evidence, and between words."""
    if len(message) <= MESSAGE_LIMIT:
        return message
    head, tail = message[: MESSAGE_LIMIT - _KEPT - len(_CUT)], message[-_KEPT:]
    return f"{head.rpartition(' ')[0] or head}{_CUT}{tail.partition(' ')[2] or tail}"
