# SPDX-License-Identifier: Apache-2.0
"""A way to the API server that can be cut, and that can fall silent without being cut."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

from tests.rig.control_plane import LOOPBACK


class BreakableWay:
    """Passes bytes between clients and the API server, TLS and all, for as long as it is told to."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener: asyncio.Server | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.attempts = 0
        """Connections that clients tried while it was cut, and those that came through."""
        self._cut = False

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator["BreakableWay"]:
        """Yield a way to the API server that listens on `port` of this machine."""
        way = cls(port)
        way._listener = await asyncio.start_server(way._accept, LOOPBACK)
        way.port = way._listener.sockets[0].getsockname()[1]
        try:
            yield way
        finally:
            way._listener.close()
            way.cut()
            await asyncio.gather(*way._under_way, return_exceptions=True)
            await asyncio.gather(*(writer.wait_closed() for writer in way._writers), return_exceptions=True)
            await way._listener.wait_closed()

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        self._cut = True
        for writer in tuple(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        """Let new connections through again."""
        self._cut = False

    def fall_silent(self) -> None:
        """Pass nothing on any more over the connections there are, without ending them; new ones work."""
        for task in tuple(self._under_way):
            task.cancel()

    def kubeconfig(self, original: Path, folder: Path) -> Path:
        """Return a kubeconfig like `original` that goes this way."""
        config = json.loads(original.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://{LOOPBACK}:{self.port}"
        path = folder / f"kubeconfig-{self.port}.json"
        path.write_text(json.dumps(config))
        return path

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.attempts += 1
        self._writers.add(writer)
        if self._cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._server_port)
        self._writers.add(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.close()
