# SPDX-License-Identifier: Apache-2.0
"""The emulated host does what a test may rely on, and is gone when nobody needs it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading

import pytest

from tests.rig.guest import MACHINE_ADDRESS, REPOSITORY, Guest, GuestError

SESSION = """
import time
from tests.rig.guest import Guest
with Guest(time_limit=300) as guest:
    print(guest.qemu_pid, guest._leash.pid, flush=True)
    time.sleep(300)
"""


def test_four_numa_nodes_with_what_a_host_needs(guest: Guest) -> None:
    assert "available: 4 nodes (0-3)" in guest.run(["numactl", "--hardware"], timeout=30).stdout
    guest.run(["test", "-c", "/dev/kvm"], timeout=30)
    controllers = guest.run(["cat", "/sys/fs/cgroup/cgroup.subtree_control"], timeout=30).stdout.split()
    assert {"cpuset", "cpu", "memory", "hugetlb", "pids"} <= set(controllers)


def test_output_status_input_and_files_come_back(guest: Guest) -> None:
    result = guest.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=30, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (3, "out\n", "err\n")
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        guest.run(["sh", "-c", "exit 3"], timeout=30)
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        guest.run(["no-such-program"], timeout=30)
    large = b"x" * 3_000_000
    assert guest.run(["cat"], stdin=large, timeout=60).stdout.encode() == large
    guest.run(["sh", "-c", 'echo "$GREETING" >"$0"/greeting', guest.shared], env={"GREETING": "hello"}, timeout=30)
    assert (guest.shared / "greeting").read_text() == "hello\n"


def test_many_processes_at_once_live(guest: Guest) -> None:
    talking = [
        guest.start(["sh", "-c", f"echo {number}; read line; echo got $line"], stdin=True) for number in range(5)
    ]
    lines = [process.lines(timeout=60) for process in talking]
    assert [next(line) for line in lines] == ["0", "1", "2", "3", "4"]
    for process in reversed(talking):
        process.write(f"to {process.argv[2][5]}\n".encode())
    assert [next(line) for line in lines] == [f"got to {number}" for number in range(5)]
    assert [process.wait(30) for process in talking] == [0] * 5


def test_processes_can_be_ended(guest: Guest) -> None:
    process = guest.start(["sh", "-c", "echo up; sleep 300; true"])
    assert next(process.lines(timeout=30)) == "up"
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    with pytest.raises(subprocess.TimeoutExpired):
        guest.run(["sleep", "301"], timeout=0.5)
    assert guest.run(["pgrep", "-fx", "sleep 30[01]"], timeout=30, check=False).returncode == 1


def test_the_machines_loopback_can_be_reached_from_inside(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"from outside")

        server = threading.Thread(target=answer)
        server.start()
        address = (MACHINE_ADDRESS, listener.getsockname()[1])
        code = f"import socket; print(socket.create_connection({address}).recv(99).decode())"
        assert guest.run([sys.executable, "-c", code], timeout=60).stdout == "from outside\n"
        server.join(30)


def test_time_limit_ends_a_guest_that_hangs() -> None:
    guest = Guest(time_limit=3)  # it cannot even boot in that time
    with pytest.raises(GuestError, match="time limit of 3 s"), guest:
        pass
    assert guest.qemu_pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(guest.qemu_pid, 0)


def test_the_guest_powers_off_when_its_session_is_killed() -> None:
    """Even where the leash cannot act: it is stopped here. What it does when it can: tests/unit/test_rig_leash.py."""
    with subprocess.Popen(
        [sys.executable, "-c", SESSION], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as session:
        assert session.stdout
        qemu, leash = map(int, session.stdout.readline().split())
        handle = os.pidfd_open(qemu)
        os.kill(leash, signal.SIGSTOP)
        session.send_signal(signal.SIGKILL)
    try:
        assert select.select([handle], [], [], 60)[0], f"QEMU {qemu} still runs"
    finally:
        os.close(handle)
        os.kill(leash, signal.SIGKILL)
