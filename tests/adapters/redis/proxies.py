"""A network between the store and Redis that loses things when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Network:
    """Forwards every connection to one Redis; counts connections, and the sizes of what came in at once."""

    def __init__(self, url: str) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._target = urlsplit(url).port
        self._open: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._withheld: set[asyncio.StreamWriter] = set()
        self._cut: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.connections = 0
        self.writes: list[int] = []

    def withhold_replies(self) -> None:
        """From now on, nothing comes back on the connections that are open now."""
        self._withheld |= set(self._open)

    def cut_at_next_reply(self) -> None:
        """Every connection ends when Redis next has something to say on it, which nobody hears."""
        self._cut |= set(self._open)

    async def end(self) -> None:
        """Cut everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self) -> asyncio.Server:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._tasks.append(asyncio.create_task(self._accept(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open[writer] = there
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._commands(reader, there))
                group.create_task(self._replies(there_reader, writer))
        except* OSError:
            pass
        finally:
            del self._open[writer]
            writer.transport.abort()
            there.transport.abort()

    async def _commands(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            self.writes.append(len(data))
            there.write(data)
        raise ConnectionResetError

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            if writer in self._cut:
                break
            if writer not in self._withheld:
                writer.write(data)
        raise ConnectionResetError


@asynccontextmanager
async def network(url: str) -> AsyncIterator[Network]:
    """A network in front of a Redis."""
    between = Network(url)
    server = await between.serve()
    try:
        yield between
    finally:
        server.close()
        await between.end()
