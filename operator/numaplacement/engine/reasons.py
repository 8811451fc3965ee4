# SPDX-License-Identifier: Apache-2.0
"""Why memory is not where it was asked to be: one constant a reason, and the remedy in words."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """Why a byte is not on target, from what refuses the whole call down to what keeps a single page."""

    SYSCALL_BLOCKED = "syscall-blocked"
    NO_ACCESS = "no-access-to-process"
    AGENT_CPUSET = "agent-cpuset"
    VM_CPUSET = "vm-cpuset"
    NODE_HAS_NO_MEMORY = "node-has-no-memory"
    DESTINATION_FULL = "destination-full"
    PINNED_BY_DEVICE = "pinned-by-device"
    ENCRYPTED_GUEST = "encrypted-guest"
    STRICT_BINDING = "strict-binding"
    REALTIME = "realtime"
    HUGETLB_NOT_YET = "hugetlb-not-supported"
    SHARED_WITHOUT_PRIVILEGE = "shared-without-privilege"
    SHARED_FILE = "shared-file"
    NEW_ON_SOURCE = "new-on-source"
    NOT_ATTEMPTED = "not-attempted"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    PLANNED = "planned"
    UNEXPLAINED = "unexplained"
