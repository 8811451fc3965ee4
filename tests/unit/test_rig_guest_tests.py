# SPDX-License-Identifier: Apache-2.0
"""Tests in an emulated host: one that dies or stands still is replaced once, and a failing test is not run again."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import pytest

from tests.rig import guest_tests
from tests.rig.guest import Guest, GuestError, OnOutput

LIMIT = 10


@dataclass
class FakeProcess:
    """Prints one line at each look, as long as there are some; then ends with `status`, or never."""

    said: int
    status: int | None
    lost: bool
    on_output: OnOutput
    clock: list[float]

    def wait(self, timeout: float) -> int:
        self.clock[0] += 10 * timeout  # so that all lines together take longer than a silence may
        if self.said:
            self.said -= 1
            self.on_output("stdout", b".")
        elif self.lost:
            raise GuestError("kernel panic")
        elif self.status is not None:
            return self.status
        raise subprocess.TimeoutExpired("pytest", timeout)


@dataclass
class FakeGuest:
    """A guest that does as it is told; the real one is tested in tests/e2e/test_rig_guest.py."""

    status: int | None = 0
    lost: bool = False
    clock: list[float] = field(default_factory=lambda: [0.0])
    boot_seconds: float = 1.0
    shared: Path = Path("/shared")
    closed: bool = False
    out_of_time: bool = False

    def start(self, argv: list[str], *, cwd: Path, on_output: OnOutput) -> FakeProcess:
        assert (argv[-1], cwd) == ("tests/kernel", Path.cwd())
        return FakeProcess(10, self.status, self.lost, on_output, self.clock)

    def tail(self) -> str:
        return "soft lockup"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True


def outcome(guests: list[FakeGuest]) -> int:
    made = iter(guests)
    for guest in guests:
        guest.clock = guests[0].clock
    return guest_tests.run(
        ["tests/kernel"],
        make=lambda: cast("Guest", next(made)),
        test_limit=LIMIT,
        clock=lambda: guests[0].clock[0],
    )


@pytest.mark.parametrize("status", [0, 1, 5])
def test_what_pytest_says_is_what_counts(status: int) -> None:
    guests = [FakeGuest(status=status)]
    assert outcome(guests) == status
    assert guests[0].closed


@pytest.mark.parametrize(
    ("first", "why"), [(FakeGuest(lost=True), "kernel panic"), (FakeGuest(status=None), "printed nothing for 100 s")]
)
def test_a_lost_host_is_replaced_and_said(first: FakeGuest, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome([first, FakeGuest(status=1)]) == 1
    assert first.closed
    said = capsys.readouterr().err
    assert "THE EMULATED HOST WAS LOST" in said
    assert why in said


def test_a_second_lost_host_is_a_failure() -> None:
    with pytest.raises(GuestError, match="soft lockup"):
        outcome([FakeGuest(lost=True), FakeGuest(status=None)])


def test_a_suite_that_takes_too_long_is_not_begun_again() -> None:
    with pytest.raises(GuestError, match="kernel panic"):
        outcome([FakeGuest(lost=True, out_of_time=True), FakeGuest(status=0)])


def test_a_host_that_says_something_now_and_then_is_left_alone() -> None:
    assert outcome([FakeGuest(status=0)]) == 0


def test_a_test_is_ended_before_its_host_is() -> None:
    command = guest_tests.words(["tests/kernel"], test_limit=LIMIT)
    assert {"--timeout=10", "faulthandler_timeout=40"} <= set(command)


def test_stacks_are_printed_before_silence_counts() -> None:
    assert 0 < guest_tests.STACKS_AFTER < guest_tests.SILENCE_AFTER
