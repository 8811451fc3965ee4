# SPDX-License-Identifier: Apache-2.0
"""Free TCP ports on loopback for servers that are started by number and restarted on the same one."""

import random
import socket

# Below the kernel's range for outgoing connections (ip_local_port_range, 32768 and up): no connection of anybody's can
# take the port between choosing and listening, nor while a server is stopped for a fault test.
LOWEST, HIGHEST = 20000, 32000


def free_ports(count: int) -> list[int]:
    """Return `count` different ports on which nobody listens on 127.0.0.1."""
    ports: list[int] = []
    for port in random.sample(range(LOWEST, HIGHEST), HIGHEST - LOWEST):
        if len(ports) == count:
            return ports
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
    raise OSError(f"no {count} free ports between {LOWEST} and {HIGHEST}")
