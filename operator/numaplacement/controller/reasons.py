# SPDX-License-Identifier: Apache-2.0
"""The reasons the operator gives in conditions and rows. What became of a move has the agent's reason instead."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """Why a placement, or one VM of it, is in the state it is in."""

    PLACED = "Placed"
    """The memory is where it belongs."""
    PLANNED = "Planned"
    """A dry run has said what would be moved."""
    ORDERED = "Ordered"
    """An order was given and its agent has not taken it up yet."""
    QUEUED = "Queued"
    """The agent has the order and others go first."""
    MOVING = "Moving"
    """The agent is at it."""
    VM_NOT_FOUND = "VmNotFound"
    """No such VirtualMachineInstance exists."""
    VM_NOT_RUNNING = "VmNotRunning"
    """It exists and does not run."""
    VM_MIGRATING = "VmMigrating"
    """It is being live-migrated between hosts."""
    AGENT_ABSENT = "AgentAbsent"
    """No agent has ever reported from its host."""
    AGENT_NOT_READY = "AgentNotReady"
    """The agent of its host says that it cannot move memory."""
    AGENT_NOT_RESPONDING = "AgentNotResponding"
    """The agent of its host does not take the order up, or fell silent."""
    NUMA_NODE_NOT_FOUND = "NumaNodeNotFound"
    """Its host has no NUMA node of that number."""
    CONFLICT = "Conflict"
    """An older placement wants the same VM elsewhere."""
    NOT_SUPPORTED = "NotSupported"
    """The spec asks for something this version cannot do."""
    SUSPENDED = "Suspended"
    """spec.suspend is set."""
    UNREADABLE = "Unreadable"
    """An object is not of a form this version knows."""
    ORDER_ENDING = "OrderEnding"
    """An earlier order is being deleted and has to be gone first."""
    ORDER_NOT_ACCEPTED = "OrderNotAccepted"
    """The API server does not accept the order."""
