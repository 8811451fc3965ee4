# SPDX-License-Identifier: Apache-2.0
"""Whether a VM runs, and in which pod on which host, from its VirtualMachineInstance alone.

Labels of pods are never asked: whoever may create pods can forge them. ``status.activePods`` is written by KubeVirt
(kubevirt.io/api core/v1 types.go): pod UID to host, with two entries during a live migration.
"""

from __future__ import annotations

from dataclasses import dataclass

from numaplacement.api.resources import VirtualMachineInstance

from .reasons import Reason

FINAL_PHASES = frozenset({"Succeeded", "Failed"})
"""Phases from which an instance never runs again."""


@dataclass(frozen=True)
class Running:
    """The VM runs in this pod on this host."""

    pod_uid: str
    host: str


@dataclass(frozen=True)
class NotRunning:
    """There is no one pod in which it runs; why, and a sentence about it."""

    reason: Reason
    message: str


def examine(vmi: VirtualMachineInstance) -> Running | NotRunning:
    """Return where the VM runs, or why it does not run in exactly one place."""
    name, status = vmi.metadata.name, vmi.status
    if vmi.metadata.deletion_timestamp is not None:
        return NotRunning(Reason.VM_NOT_RUNNING, f"VM {name} is being shut down.")
    if status.phase != "Running":
        phase = status.phase or "not set"
        return NotRunning(Reason.VM_NOT_RUNNING, f"VM {name} is not running: its phase is {phase}.")
    migration = status.migration_state
    ended = migration is None or migration.completed or migration.failed or migration.end_timestamp is not None
    if migration is not None and migration.start_timestamp is not None and not ended:
        return NotRunning(Reason.VM_MIGRATING, f"VM {name} is being live-migrated; its memory is moved afterwards.")
    pods = status.active_pods
    if not pods or not status.node_name:
        return NotRunning(Reason.VM_NOT_RUNNING, f"VM {name} is running, but KubeVirt names no pod of it yet.")
    [(pod_uid, host), *others] = sorted(pods.items())
    if others or host != status.node_name:
        return NotRunning(
            Reason.VM_MIGRATING,
            f"VM {name} has pods on {', '.join(sorted(set(pods.values()) | {status.node_name}))}: it is being "
            "live-migrated; its memory is moved afterwards.",
        )
    return Running(pod_uid=pod_uid, host=host)
