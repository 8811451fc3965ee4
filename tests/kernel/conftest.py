# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests that run inside the emulated host (`make test-kernel` boots it and runs them there)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.causes.record import absent, judge, pytest_configure, pytest_runtest_makereport
from tests.rig.vm import RunningVm, VmSpec, start_vm

__all__ = ["absent", "judge", "pytest_configure", "pytest_runtest_makereport"]
NUMA_NODES = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--contents-moves",
        type=int,
        default=3,
        metavar="N",
        help="how often test_contents.py moves each VM (3)",
    )


@pytest.fixture(scope="session", autouse=True)
def four_numa_nodes() -> None:
    """Refuse any other host: these tests move memory, load modules and start VMs."""
    found = len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))
    if found != NUMA_NODES or "rig.shared=" not in Path("/proc/cmdline").read_text():
        pytest.exit(
            "tests/kernel runs only inside the emulated host of four NUMA nodes: "
            "python -m tests.rig.guest -- python -m pytest tests/kernel",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


@pytest.fixture
def start() -> Iterator[Callable[[VmSpec], RunningVm]]:
    """Starts real VMs and ends them with the test."""
    started: list[RunningVm] = []

    def start_one(spec: VmSpec) -> RunningVm:
        started.append(start_vm(spec))
        return started[-1]

    yield start_one
    for vm in started:
        vm.stop()


@pytest.fixture
def numa_balancing() -> Iterator[Callable[[bool], None]]:
    """Switches AutoNUMA on and off; puts it back with the end of the test."""
    setting = Path("/proc/sys/kernel/numa_balancing")
    before = setting.read_text()
    yield lambda on: setting.write_text("1" if on else "0") and None
    setting.write_text(before)


@pytest.fixture
def autonuma_off(numa_balancing: Callable[[bool], None]) -> None:
    """Keep AutoNUMA from moving pages between an action and the check of what it did."""
    numa_balancing(False)
