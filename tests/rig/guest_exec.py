# SPDX-License-Identifier: Apache-2.0
"""The exec agent inside the emulated host: starts processes for the session outside and brings their output back.

It connects out to the session's loopback listener, proves itself with a one-time token and then does what it is told.
When that connection ends, so does the agent, and with it the guest (guest_init.sh powers off). Standard library only,
and little of it: an import costs twenty times more under emulation.

A frame is two big-endian 32-bit lengths, a JSON header of the first length and raw bytes of the second.

    to the guest      {"op": "start", "id", "argv", "env", "cwd"}   {"op": "stdin", "id"} + bytes, none = end of file
                      {"op": "signal", "id", "signal"}              (to the whole process group)
    from the guest    {"op": "hello", "token"}   {"op": "started", "id", "pid"}   {"op": "failed", "id", "error"}
                      {"op": "stdout" | "stderr", "id"} + bytes      {"op": "exit", "id", "status"}
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator

_LENGTHS = struct.Struct("!II")
_CHUNK = 1 << 16
_LARGEST = 1 << 26
Header = dict[str, object]


def encode_frame(header: Header, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    text = json.dumps(header).encode()
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


class FrameDecoder:
    """Cuts a byte stream back into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Header, bytes]]:
        """Add what was received; yields each frame that is now whole. Raises ValueError when the stream cannot be
        frames.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTHS.size:
            header_length, payload_length = _LENGTHS.unpack_from(self._buffer)
            if header_length + payload_length > _LARGEST:
                raise ValueError(f"a frame of {header_length + payload_length} bytes: this is not the guest protocol")
            middle = _LENGTHS.size + header_length
            end = middle + payload_length
            if len(self._buffer) < end:
                return
            header = json.loads(self._buffer[_LENGTHS.size : middle])
            payload = bytes(self._buffer[middle:end])
            del self._buffer[:end]
            yield header, payload


class _Process:
    """One started process: its pipes, its pidfd, and input not written yet (None once it may be closed)."""

    def __init__(self, number: int, argv: list[str], env: dict[str, str], cwd: str) -> None:
        self.number = number
        stdin, self.stdin = os.pipe()
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        self.unwritten = bytearray()
        self.stdin_ends = False
        try:
            os.chdir(cwd)  # posix_spawn has no cwd of its own; this process has one thread and no relative path
            self.pid = os.posix_spawnp(
                argv[0],
                argv,
                env,
                file_actions=[(os.POSIX_SPAWN_DUP2, end, target) for target, end in enumerate((stdin, stdout, stderr))],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these two and would pass that on
            )
        except BaseException:
            for descriptor in (self.stdin, self.stdout, self.stderr):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (stdin, stdout, stderr):
                os.close(descriptor)
        self.pidfd = os.pidfd_open(self.pid)
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(descriptor, False)


class Agent:
    """Serves one connection until it ends."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder = FrameDecoder()
        self._processes: dict[int, _Process] = {}
        self._by_descriptor: dict[int, _Process] = {}
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def serve(self) -> None:
        """Run until the session closes the connection."""
        while True:
            for descriptor, _event in self._poll.poll():
                if descriptor == self._connection.fileno():
                    data = self._connection.recv(_CHUNK)
                    if not data:
                        return
                    for header, payload in self._decoder.feed(data):
                        self._obey(header, payload)
                elif process := self._by_descriptor.get(descriptor):
                    if descriptor == process.pidfd:
                        self._finish(process)
                    elif descriptor == process.stdin:
                        self._write(process)
                    else:
                        self._forward(process, descriptor)

    def _send(self, header: Header, payload: bytes = b"") -> None:
        self._connection.sendall(encode_frame(header, payload))

    def _obey(self, header: Header, payload: bytes) -> None:
        number = int(str(header["id"]))
        if header["op"] == "start":
            self._start(number, header)
        elif process := self._processes.get(number):  # else it has ended meanwhile: nothing to do
            if header["op"] == "stdin":
                process.unwritten += payload
                process.stdin_ends = process.stdin_ends or not payload
                self._write(process)
            elif header["op"] == "signal":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, int(str(header["signal"])))

    def _start(self, number: int, header: Header) -> None:
        argv, env, cwd = header["argv"], header["env"], header["cwd"]
        try:
            process = _Process(number, argv, {**os.environ, **env}, cwd)  # type: ignore[arg-type, dict-item]
        except (OSError, ValueError) as error:
            self._send({"op": "failed", "id": number, "error": str(error)})
            return
        self._processes[number] = process
        for descriptor in (process.pidfd, process.stdout, process.stderr):
            self._watch(process, descriptor, select.POLLIN)
        self._send({"op": "started", "id": number, "pid": process.pid})

    def _watch(self, process: _Process, descriptor: int, events: int) -> None:
        self._by_descriptor[descriptor] = process
        self._poll.register(descriptor, events)

    def _drop(self, descriptor: int) -> None:
        if self._by_descriptor.pop(descriptor, None):
            self._poll.unregister(descriptor)
        os.close(descriptor)

    def _write(self, process: _Process) -> None:
        """Pass on as much input as the pipe takes now; the rest when it can take more."""
        if process.stdin < 0:
            return
        try:
            while process.unwritten:
                del process.unwritten[: os.write(process.stdin, process.unwritten[:_CHUNK])]
        except BlockingIOError:
            if process.stdin not in self._by_descriptor:
                self._watch(process, process.stdin, select.POLLOUT)
            return
        except BrokenPipeError:
            process.stdin_ends = True
        if process.stdin_ends:
            self._drop(process.stdin)
            process.stdin = -1
        elif self._by_descriptor.pop(process.stdin, None):
            self._poll.unregister(process.stdin)

    def _forward(self, process: _Process, descriptor: int) -> bool:
        """Send one piece of output; False when there is none now or ever again."""
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._send({"op": "stdout" if descriptor == process.stdout else "stderr", "id": process.number}, data)
        else:
            self._drop(descriptor)
            if descriptor == process.stdout:
                process.stdout = -1
            else:
                process.stderr = -1
        return bool(data)

    def _finish(self, process: _Process) -> None:
        """The process ended: what is in its pipes goes out, then its status. Children that keep a pipe open are not
        waited for.
        """
        pid, status = os.waitpid(process.pid, os.WNOHANG)
        if not pid:  # an event of a descriptor number that was another process's a moment ago
            return
        for descriptor in (process.stdout, process.stderr):
            while descriptor >= 0 and self._forward(process, descriptor):
                pass
        for descriptor in (process.stdin, process.stdout, process.stderr, process.pidfd):
            if descriptor >= 0:
                self._drop(descriptor)
        del self._processes[process.number]
        self._send({"op": "exit", "id": process.number, "status": os.waitstatus_to_exitcode(status)})


def main(settings_file: str) -> None:
    """Connect to the session named in `settings_file` (JSON: host, port, token) and serve it."""
    with open(settings_file, encoding="utf-8") as file:  # noqa: PTH123 - pathlib is not worth its import here
        settings = json.load(file)
    with socket.create_connection((settings["host"], settings["port"]), timeout=30) as connection:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(encode_frame({"op": "hello", "token": settings["token"]}))
        Agent(connection).serve()


if __name__ == "__main__":
    main(sys.argv[1])
