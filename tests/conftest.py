# SPDX-License-Identifier: Apache-2.0
"""One control plane for a whole session, whichever folders its tests are in."""

from tests.rig.fixtures import control_plane, namespace

__all__ = ["control_plane", "namespace"]
