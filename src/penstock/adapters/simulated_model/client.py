"""One connection as the simulated model sees it: answers, pauses that end when the caller leaves, and rude closings."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

TRANSPORT = "penstock.transport"


class Protocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, and the application may reach the transport, to break off where no server would."""

    def on_message_begin(self) -> None:
        """Start a request's scope."""
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT: {"transport": self.transport}}


class ClientGone(Exception):
    """The caller closed the connection before its answer was complete."""


class Client:
    """The caller of one request."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None

    async def body(self) -> bytes:
        """Read the whole body.

        Raises:
            ClientGone: It never became complete.
        """
        parts = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)

    def header(self, name: bytes) -> str:
        """A header's value, or nothing."""
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value).decode("latin-1")
        return ""

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _gone(self) -> asyncio.Task[None]:
        if self._watch is None:
            self._watch = asyncio.create_task(self._until_gone())
        return self._watch

    async def pause(self, seconds: float | None) -> None:
        """Wait; None waits until the caller leaves.

        Raises:
            ClientGone: It left.
        """
        watch = self._gone()
        if not watch.done():
            await asyncio.wait({watch}, timeout=seconds)
        if watch.done():
            raise ClientGone

    async def pause_unless(self, other: asyncio.Task[Any]) -> None:
        """Wait for something else that ends the pause early, however long it takes.

        Raises:
            ClientGone: The caller left first.
        """
        watch = self._gone()
        await asyncio.wait({watch, other}, return_when=asyncio.FIRST_COMPLETED)
        if not other.done():
            raise ClientGone

    async def answer(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        """Send a whole answer."""
        await self._head(status, content_type, len(body))
        await self._send({"type": "http.response.body", "body": body})

    async def half_answer(self, body: bytes) -> None:
        """Send the first half of an answer and close."""
        await self._head(200, b"application/json", len(body))
        await self._send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        await self.cut()

    async def _head(self, status: int, content_type: bytes, length: int) -> None:
        headers = [(b"content-type", content_type), (b"content-length", b"%d" % length)]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def begin_events(self) -> None:
        """Send the head of a stream."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, data: bytes) -> None:
        """Send one event as a chunk of its own."""
        await self._send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    async def end(self) -> None:
        """End the stream as HTTP asks."""
        await self._send({"type": "http.response.body", "body": b""})

    async def cut(self) -> None:
        """Send what is written and close the connection, whatever is still owed."""
        self.scope["extensions"][TRANSPORT]["transport"].close()
        await self._gone()

    def leave(self) -> None:
        """Stop watching the caller; the request is over."""
        if self._watch is not None:
            self._watch.cancel()
