# SPDX-License-Identifier: Apache-2.0
"""Linux: the memory of a process on its NUMA nodes. Survey, plan, move, verify, explain. Knows no Kubernetes."""
