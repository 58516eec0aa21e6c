"""One request and its answer on a connection: uvicorn's, with fewer system calls and less done again for each piece.

uvicorn writes an answer's head and its body apart: two packets, and two wake-ups of the client. Here the head of an
answer whose length is known waits for the body, which follows at once, and a piece of a stream is written without
looking at what cannot have changed since its head. Everything else is uvicorn's own.

What ASGI has only awkward ways for, the hot path asks of the cycle itself, which is a ``wire.Wire``.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from penstock.api.wire import WIRE

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]").search
_defaults: tuple[list[tuple[bytes, bytes]], bytes] = [], b""  # as last seen, and as lines


class Cycle(RequestResponseCycle):
    """What ``server.BoundedProtocol`` gives to the application as ``receive`` and ``send``.

    Args:
        on_response: Called when the answer is complete.
        tasks: Of the server; ``task``, which runs this, is taken out at its end.
    """

    # What is so at the beginning of each; uvicorn's own sets them one by one.
    logger = logging.getLogger("uvicorn.error")
    access_logger = logging.getLogger("uvicorn.access")
    access_log = False
    disconnected = False
    body: Any = b""
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    _head = b""  # of an answer whose body has not come yet
    _departed: Callable[[], None] | None = None
    _event: asyncio.Event | None = None  # made when somebody waits
    _has_news = False  # for whom ``_event`` is made
    task: asyncio.Task[None] | None = None

    def __init__(
        self,
        *,
        scope: Any,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: list[tuple[bytes, bytes]],
        expect_100_continue: bool,
        keep_alive: bool,
        on_response: Callable[[], None],
        tasks: set[asyncio.Task[None]],
    ) -> None:
        self.tasks = tasks
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.default_headers = default_headers
        self.on_response = on_response
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = expect_100_continue
        scope[WIRE] = self

    async def run_asgi(self, app: Any) -> None:
        """Answer by the application; what it does wrong ends the connection."""
        try:
            await super().run_asgi(app)
        finally:
            self.scope.pop(WIRE, None)  # type: ignore[typeddict-item]  # it holds the scope
            if self.task is not None:
                self.tasks.discard(self.task)
                self.task = None

    # --- told by the connection ----------------------------------------------------------------------------------

    def take(self, piece: bytes) -> int:
        """A piece of the body has come; how many bytes wait to be read."""
        self.body = body = self.body + piece if self.body else piece
        self.tell()
        return len(body)

    def tell(self) -> None:
        """Something has changed for whoever waits in ``receive``, or will."""
        if self._event is None:
            self._has_news = True
        else:
            self._event.set()

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override] # uvicorn makes it for each request
        """What ``receive`` waits for."""
        if self._event is None:
            self._event = asyncio.Event()
            if self._has_news:
                self._event.set()
        return self._event

    def leave(self) -> None:
        """The client has left."""
        if not self.response_complete:
            self.disconnected = True
        self.tell()
        if self._departed is not None:
            self._departed()

    # --- wire.Wire -----------------------------------------------------------------------------------------------

    def take_body(self) -> bytes | None:
        """See ``Wire.take_body``."""
        if self.more_body or self.disconnected:
            return None
        self._has_news = False
        if self._event is not None:
            self._event.clear()
        body: bytes = self.body
        self.body = b""
        return body

    def watch(self, departed: Callable[[], None] | None) -> None:
        """See ``Wire.watch``."""
        self._departed = departed
        if departed is not None and self.disconnected:
            departed()

    def answer(self, status: int, lines: bytes, body: bytes) -> bool:
        """See ``Wire.answer``."""
        global _defaults
        if self.response_started or self.disconnected or self.flow.write_paused or self.scope["method"] == "HEAD":
            return False
        defaults = self.default_headers
        if _defaults[0] is not defaults:
            _defaults = defaults, b"".join([b"%b: %b\r\n" % header for header in defaults])
        end = b"" if self.keep_alive else b"connection: close\r\n"
        head = STATUS_LINE[status] + _defaults[1] + lines
        self.transport.write(b"%bcontent-length: %d\r\n%b\r\n%b" % (head, len(body), end, body))
        self.response_started = True
        self.waiting_for_100_continue = False
        self._complete()
        return True

    def write(self, piece: bytes) -> bool:
        """See ``Wire.write``."""
        if self.disconnected or self.flow.write_paused or not self.chunked_encoding or self.response_complete:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

    # --- ASGI ----------------------------------------------------------------------------------------------------

    async def send(self, message: Any) -> None:
        """See ASGI."""
        if self.disconnected or self.flow.write_paused:
            pass
        elif not self.response_started:
            if message["type"] == "http.response.start" and self._keep_head(message["status"], message["headers"]):
                return
        elif not self.response_complete and message["type"] == "http.response.body":
            body = message.get("body", b"")
            more = message.get("more_body", False)
            if self._head and not more and len(body) == self.expected_content_length:
                self.transport.write(self._head + body)
                self._complete()
                return
            if self.chunked_encoding and more and body and not self._head:
                self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
                return
        if self._head:
            self.transport.write(self._head)
            self._head = b""
        await super().send(message)

    def _keep_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bool:
        """Write the head of an answer of known length, for later; False leaves it, and what is wrong, to uvicorn."""
        if self.scope["method"] == "HEAD":
            return False
        content_bytes = None
        lines = [STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in self.default_headers)]
        for name, value in headers:
            if name == b"content-length":
                content_bytes = value
            elif name == b"connection" or name == b"transfer-encoding":
                return False
            lines.append(b"%b: %b\r\n" % (name, value))
        if content_bytes is None:
            return False
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or _CONTROL(head):
            return False
        self.response_started = True
        self.waiting_for_100_continue = False
        self.chunked_encoding = False
        self.expected_content_length = int(content_bytes)
        self._head = head + b"\r\n"
        return True

    def _complete(self) -> None:
        self._head = b""
        self.expected_content_length = 0
        self.response_complete = True
        self.tell()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
