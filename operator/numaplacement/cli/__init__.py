# SPDX-License-Identifier: Apache-2.0
"""numaplace: the memory of this host's processes on its NUMA nodes, for a person at a terminal; needs no cluster."""
