# SPDX-License-Identifier: Apache-2.0
"""Puts the memory of running KubeVirt VMs on the NUMA node where it belongs, and proves it."""

__version__ = "0.1.0"
