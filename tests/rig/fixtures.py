# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test that needs a cluster; tests/conftest.py hands them out."""

import secrets
from collections.abc import Iterator

import pytest

from tests.rig.control_plane import ControlPlane


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One control plane for the session: all CRDs installed, the controller-manager running."""
    with ControlPlane() as running:
        running.install_crds()
        running.start_controller_manager()
        yield running


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace; its VMs, pods and placements are gone when the next test starts."""
    name = f"test-{secrets.token_hex(4)}"
    control_plane.create_namespace(name)
    yield name
    control_plane.delete_namespace(name)
