# SPDX-License-Identifier: Apache-2.0
"""One process for each host: own orders, the VM's process, the engine, status; and what the host has."""
