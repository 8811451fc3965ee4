# SPDX-License-Identifier: Apache-2.0
"""From NumaPlacements to orders for the agents, and back to status: gather, decide, apply. Knows no Linux."""
