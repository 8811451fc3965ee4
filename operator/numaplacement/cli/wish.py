# SPDX-License-Identifier: Apache-2.0
"""The options that say where memory belongs and how hard a move may press, as the engine's request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import click

from numaplacement.api.migration import OrderTarget
from numaplacement.api.placement import NUMA_NODE_LIMIT, CellTarget
from numaplacement.api.quantities import parse_duration, parse_quantity
from numaplacement.engine.verdict import Allow, Request

Command = TypeVar("Command", bound=Callable[..., Any])
_NONE = Request(target=0)
_HIGHEST_CELL = 127


class Quantity(click.ParamType[int]):
    """Bytes, more than none, such as 500Mi."""

    name = "quantity"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Return the bytes."""
        try:
            count = parse_quantity(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if count <= 0:
            self.fail(f"with {value} nothing would ever move", param, ctx)
        return count


class Duration(click.ParamType[float]):
    """Seconds, more than none, such as 20ms or 10m."""

    name = "duration"

    def __init__(self, *, of_none: str = "with {} nothing would ever move") -> None:
        self._of_none = of_none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """Return the seconds."""
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds <= 0:
            self.fail(self._of_none.format(value), param, ctx)
        return seconds


class Tolerance(click.ParamType[tuple[int, float]]):
    """Bytes such as 64Mi or a share such as 0.5%."""

    name = "tolerance"

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, float]:
        """Return the bytes and the share, one of which is 0."""
        if isinstance(value, tuple):
            return value
        if percent := re.fullmatch(r"((?:100|[0-9]{1,2})(?:\.[0-9]+)?)%", value):
            share = float(percent[1]) / 100
            if share <= 1:
                return 0, share
        try:
            return parse_quantity(value), 0.0
        except ValueError:
            self.fail(f"{value!r} is neither a quantity such as 64Mi nor a percentage from 0% to 100%", param, ctx)


class CellAssignment(click.ParamType[tuple[int, int]]):
    """Guest cell and NUMA node, such as 0=1."""

    name = "C=N"

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, int]:
        """Return the two numbers."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([0-9]{1,4})=([0-9]{1,4})", value)
        if match is None or int(match[1]) > _HIGHEST_CELL or int(match[2]) > NUMA_NODE_LIMIT:
            self.fail(f"{value!r} is no guest cell and NUMA node such as 0=1", param, ctx)
        return int(match[1]), int(match[2])


def target_options(command: Command) -> Command:
    """Add the options that say where memory belongs, what is allowed and what may stay behind."""
    for add in reversed(
        (
            click.option(
                "--to",
                metavar="N",
                type=click.IntRange(0, NUMA_NODE_LIMIT),
                help="The NUMA node all of the memory belongs on.",
            ),
            click.option(
                "--cell",
                "cells",
                metavar="C=N",
                type=CellAssignment(),
                multiple=True,
                help="NUMA node N for the memory of guest cell C; once for each cell, in place of --to.",
            ),
            click.option(
                "--allow",
                metavar="WORD",
                type=click.Choice([str(word) for word in Allow]),
                multiple=True,
                help=f"Permit one thing that is not harmless: {', '.join(Allow)}. May be given several times.",
            ),
            click.option(
                "--tolerance",
                metavar="AMOUNT",
                type=Tolerance(),
                default="0",
                show_default=True,
                help="Memory that may stay behind and it still counts as placed: 64Mi, 0.5%.",
            ),
        )
    ):
        command = add(command)
    return command


def move_options(command: Command) -> Command:
    """Add the options that say how a move goes."""
    for add in reversed(
        (
            click.option(
                "--bandwidth", metavar="BYTES", type=Quantity(), help="At most so many bytes a second: 500Mi."
            ),
            click.option(
                "--call-latency",
                metavar="DURATION",
                type=Duration(),
                default="20ms",
                show_default=True,
                help="What the 99th percentile of the kernel calls aims at; the VM may wait so long for a page.",
            ),
            click.option(
                "--deadline",
                metavar="DURATION",
                type=Duration(),
                default="10m",
                show_default=True,
                help="The longest it may take; what has moved by then stays moved.",
            ),
            click.option(
                "--threads",
                type=click.Choice(["follow", "leave"], case_sensitive=False),
                default="follow",
                show_default=True,
                help="Whether threads may then run on the CPUs of the target only.",
            ),
        )
    ):
        command = add(command)
    return command


class TargetWish(TypedDict):
    """What `target_options` hands to a command."""

    to: int | None
    cells: tuple[tuple[int, int], ...]
    allow: tuple[str, ...]
    tolerance: tuple[int, float]


class MoveWish(TargetWish):
    """What `move_options` hands over beside that."""

    bandwidth: int | None
    call_latency: float
    deadline: float
    threads: str
    dry_run: bool


def request(
    *,
    to: int | None,
    cells: tuple[tuple[int, int], ...],
    allow: tuple[str, ...],
    tolerance: tuple[int, float],
    dry_run: bool,
    bandwidth: int | None = None,
    call_latency: float = _NONE.call_latency,
    deadline: float = _NONE.deadline,
    threads: str = "follow",
) -> Request:
    """Return what the engine is asked for. Raises UsageError unless exactly one target is given."""
    if (to is None) is not bool(cells):
        raise click.UsageError("Give exactly one of --to N and --cell C=N.")
    if len({cell for cell, _ in cells}) < len(cells):
        raise click.UsageError("Give each guest cell once.")
    return Request(
        target=to,
        cells=dict(cells),
        allow=frozenset(Allow(word) for word in allow),
        tolerance_bytes=tolerance[0],
        tolerance_share=tolerance[1],
        dry_run=dry_run,
        bandwidth=bandwidth,
        call_latency=call_latency,
        deadline=deadline,
        follow_threads=threads == "follow",
    )


def target_of(asked: Request) -> OrderTarget:
    """Return the target as the API has it."""
    if asked.target is not None:
        return OrderTarget(numa_node=asked.target)
    return OrderTarget(
        cells=tuple(CellTarget(cell=cell, numa_node=numa_node) for cell, numa_node in asked.cells.items())
    )
