# SPDX-License-Identifier: Apache-2.0
"""From an order to what the engine is asked for; what cannot be meant is refused, never ignored."""

from __future__ import annotations

from dataclasses import dataclass

from numaplacement.api.migration import NumaMigrationSpec, Result
from numaplacement.api.placement import Threads
from numaplacement.api.quantities import parse_duration, parse_quantity
from numaplacement.engine.verdict import Allow, Request


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why an order is not carried out: `reason` one word, `seen` and `remedy` a sentence each.

    `permanent`: the same order would be refused again, whatever becomes of host and VM.
    """

    reason: str
    seen: str
    remedy: str
    permanent: bool = False
    result: Result = Result.REFUSED


def engine_request(spec: NumaMigrationSpec) -> Request | Refusal:
    """Return what the engine is to be asked for, or why it is not."""
    try:
        tolerance_bytes, tolerance_share = _tolerance(spec.tolerance)
        latency = _more_than_none(
            "limits.callLatency", spec.limits.call_latency, parse_duration(spec.limits.call_latency)
        )
        deadline = _more_than_none("limits.deadline", spec.limits.deadline, parse_duration(spec.limits.deadline))
        bandwidth = spec.limits.bandwidth
        if bandwidth is not None:
            bandwidth = int(_more_than_none("limits.bandwidth", bandwidth, parse_quantity(bandwidth)))
    except ValueError as error:
        return invalid(str(error))
    return Request(
        target=spec.target.numa_node,
        cells={each.cell: each.numa_node for each in spec.target.cells or ()},
        allow=frozenset(Allow(word) for word in spec.allow),
        follow_threads=spec.threads is Threads.FOLLOW,
        dry_run=spec.dry_run,
        call_latency=latency,
        bandwidth=bandwidth,
        deadline=deadline,
        tolerance_bytes=tolerance_bytes,
        tolerance_share=tolerance_share,
    )


def invalid(problem: str) -> Refusal:
    """Return the refusal of an order that cannot be understood."""
    return Refusal(
        reason="InvalidOrder",
        seen=f"The order cannot be understood: {problem}.",
        remedy="Correct the placement, or bring operator and agent to the same version.",
        permanent=True,
    )


def _tolerance(text: int | str) -> tuple[int, float]:
    if isinstance(text, str) and text.endswith("%"):
        share = float(text[:-1])
        if not 0 <= share <= 100:  # noqa: PLR2004 - a percentage
            raise ValueError(f"tolerance: {text} is not a percentage from 0% to 100%")
        return 0, share / 100
    return parse_quantity(text), 0.0


def _more_than_none(field: str, text: str | int, value: float) -> float:
    if value <= 0:
        raise ValueError(f"{field}: with {text} nothing would ever move")
    return value
