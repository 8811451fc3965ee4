# SPDX-License-Identifier: Apache-2.0
"""What a spec may say that this version cannot do: said aloud, never ignored."""

from __future__ import annotations

from numaplacement.api.placement import Mode, NumaPlacementSpec


def unsupported(spec: NumaPlacementSpec) -> str:
    """Return what this version cannot do of `spec` and what to do about it, in sentences; empty when it can do all."""
    if spec.mode is not Mode.ONCE:
        return f"spec.mode: {spec.mode} is not supported by this version: use {Mode.ONCE} or leave it out."
    return ""
