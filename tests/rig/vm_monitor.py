# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from tests.rig.vm_memory import VmError


def wait_for_monitor(state_dir: Path, cgroup: Path, *, deadline: float) -> int:
    """Wait until QEMU has made its machine, memory and devices included; its PID. Raises VmError when it ends first."""
    path = state_dir / "monitor.sock"
    while time.monotonic() < deadline and (cgroup / "cgroup.procs").read_text():
        try:
            # The greeting comes from a thread of its own, before the machine is made: only the answer to a command
            # tells.
            qmp(path, "query-status", {}, timeout=deadline - time.monotonic())
            with socket.socket(socket.AF_UNIX) as monitor:
                monitor.connect(str(path))
                credentials = monitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return int.from_bytes(credentials[:4], "little")
        except (FileNotFoundError, ConnectionError):
            time.sleep(0.05)
        except TimeoutError:
            break
    raise VmError(f"QEMU did not come up: {(state_dir / 'qemu.log').read_text().strip()[-2000:]}")


def qmp(path: Path, command: str, arguments: dict[str, object], *, timeout: float = 30) -> object:
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(timeout)
        monitor.connect(str(path))
        answer: dict[str, object] = {}
        with monitor.makefile("rb") as lines:
            for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                monitor.sendall(json.dumps(request).encode())
                # The greeting and events come in between.
                messages = (message for message in map(json.loads, lines) if not {"QMP", "event"} & set(message))
                answer = next(messages, {})
                if not answer:
                    raise ConnectionResetError("QEMU closed its monitor")
        if "error" in answer:
            raise VmError(f"QEMU refuses {command}: {answer['error']}")
        return answer["return"]
