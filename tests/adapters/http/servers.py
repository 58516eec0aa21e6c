"""Model servers on a real socket, which behave as each test wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from penstock.ports import UpstreamRequest

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A server on a free loopback port, with what it was sent."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.connections = 0
        self.disconnected = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            await self._handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.disconnected.set()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.remove(writer)  # one that has ended cannot be aborted any more

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def serving(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Serve each connection with ``handler``."""
    server = Server(handler)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        server.abort()
        await asyncio.sleep(0)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """One request: its head as text, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    body_bytes = 0
    for line in head.splitlines():
        if line.lower().startswith("content-length:"):
            body_bytes = int(line.split(":")[1])
    return head, await reader.readexactly(body_bytes)


def answering(*answers: bytes, close: bool = False) -> Handler:
    """A handler that answers the first request with the first of ``answers``, and so on; then the last for ever."""
    left = list(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()
            if close:
                return

    return handle


def ask(port: int, **changes: Any) -> UpstreamRequest:
    """A request to a local server."""
    fields = {
        "method": "POST",
        "url": f"http://127.0.0.1:{port}/v1/chat/completions",
        "headers": {"authorization": "Bearer upstream-secret", "content-type": "application/json"},
        "body": b'{"a":1}',
    }
    return UpstreamRequest(**(fields | changes))
