# SPDX-License-Identifier: Apache-2.0
"""A disk that takes a write and does not say it is done, and a migration that waits for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

DEVICE = "/dev/nbd0"
_SIZE, _BLOCK = 32 << 20, 4096
_SET_SOCK, _SET_BLKSIZE, _DO_IT, _CLEAR_SOCK, _SET_SIZE_BLOCKS, _DISCONNECT = (
    0xAB00,
    0xAB01,
    0xAB03,
    0xAB04,
    0xAB07,
    0xAB08,
)  # linux/nbd.h
_REQUEST, _REPLY = struct.Struct(">II8sQI"), struct.Struct(">II8s")
_REPLY_MAGIC = 0x67446698
_READ, _WRITE, _END = 0, 1, 2


class Disk:
    """The far end of a network block device: all zeroes, and nothing written is kept."""

    def __init__(self, connection: socket.socket) -> None:
        self.one_page = {"path": DEVICE, "offset": _SIZE // 2, "pages": 1}
        self._connection = connection
        self._answering = threading.Event()
        self._answering.set()
        self._held: list[bytes] = []
        self._holds = threading.Event()

    def serve(self) -> None:
        """Answer until the other side ends."""
        with self._connection.makefile("rb") as requests:
            while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
                _, kind, handle, _, length = _REQUEST.unpack(head)
                if kind == _END:
                    self._connection.shutdown(socket.SHUT_RDWR)
                    return
                if kind == _WRITE:
                    requests.read(length)
                if kind == _WRITE and not self._answering.is_set():
                    self._held.append(handle)
                    self._holds.set()
                else:
                    self._answer(handle, bytes(length) if kind == _READ else b"")

    def _answer(self, handle: bytes, data: bytes = b"") -> None:
        self._connection.sendall(_REPLY.pack(_REPLY_MAGIC, 0, handle) + data)

    @contextlib.contextmanager
    def holding_a_write(self) -> Iterator[None]:
        """What was written through a mapping is under way to the disk, and stays so inside the block."""
        self._answering.clear()
        writer = threading.Thread(target=_flush)
        writer.start()
        assert self._holds.wait(30), "nothing was written"
        try:
            yield
        finally:
            self._answering.set()
            for handle in self._held:
                self._answer(handle)
            writer.join()


def _run(device: int) -> None:
    with contextlib.suppress(OSError):  # how it ends is of no interest
        fcntl.ioctl(device, _DO_IT)


def _flush() -> None:
    file = os.open(DEVICE, os.O_RDWR)
    os.fsync(file)
    os.close(file)


@contextlib.contextmanager
def stuck_disk() -> Iterator[Disk]:
    """A disk at DEVICE, whose `one_page` is a file region of cause_child.py."""
    subprocess.run(["modprobe", "nbd", "nbds_max=1", "max_part=0"], check=True)
    here, there = socket.socketpair()
    disk = Disk(there)
    device = os.open(DEVICE, os.O_RDWR)
    for request, argument in ((_SET_BLKSIZE, _BLOCK), (_SET_SIZE_BLOCKS, _SIZE // _BLOCK), (_SET_SOCK, here.fileno())):
        fcntl.ioctl(device, request, argument)
    threads = [threading.Thread(target=disk.serve), threading.Thread(target=_run, args=(device,))]
    for thread in threads:
        thread.start()
    try:
        yield disk
    finally:
        fcntl.ioctl(device, _DISCONNECT)
        for thread in threads:
            thread.join(30)
        fcntl.ioctl(device, _CLEAR_SOCK)
        os.close(device)
        here.close()
        there.close()


class Migration:
    """migratepages(8) from one NUMA node to another, which ends when the disk answers.

    It takes all pages off their lists first and copies them afterwards, in the order of their addresses.
    """

    def __init__(self, pid: int, *, origin: int, to: int) -> None:
        self._command = ["migratepages", str(pid), str(origin), str(to)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.wait(60)

    def start(self) -> None:
        """Begin."""
        self._process = subprocess.Popen(self._command)

    def waits(self) -> bool:
        """Whether it waits for the disk."""
        assert self._process
        return Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "D"
