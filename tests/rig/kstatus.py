# SPDX-License-Identifier: Apache-2.0
"""What Flux and `kubectl wait`-like tools make of an object: the rule of sigs.k8s.io/cli-utils, pkg/kstatus/status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kstatus(document: Mapping[str, Any]) -> str:
    """Return Terminating, InProgress, Failed or Current, in the order generic.go asks."""
    metadata, status = document["metadata"], document.get("status", {})
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata.get("generation"):
        return "InProgress"
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    if "Ready" in conditions and conditions["Ready"] != "True":
        return "InProgress"
    return "Current"
