# SPDX-License-Identifier: Apache-2.0
"""One emulated host and one installation for all end-to-end tests; each test has a namespace and VMs of its own."""

import pytest

from tests.rig.guest import Guest
from tests.rig.installation import Installation

TIME_LIMIT = 900.0
SETTINGS = {"RETRY": "1s", "TAKE_UP": "10s"}


@pytest.fixture(scope="session")
def guest():
    # AutoNUMA moves a VM's pages by itself; without it what two looks count can be compared to the page.
    with Guest(time_limit=TIME_LIMIT, kernel_args=["numa_balancing=disable"]) as running:
        yield running


@pytest.fixture(scope="session")
def installation(control_plane, guest):
    with Installation(control_plane=control_plane, guest=guest, logs=guest.folder) as installed:
        installed.install()
        installed.start_controller(**SETTINGS)
        installed.start_agent()
        installed.wait_agent()
        yield installed


@pytest.fixture
def vms(installation):
    """Starts VMs that are gone after the test."""
    started = []

    def start(**words):
        started.append(installation.start_vm(**words))
        return started[-1]

    yield start
    for vm in started:
        installation.stop_vm(vm)
