"""One request and its answer on a connection: uvicorn's, with fewer system calls and less done again for each piece.

uvicorn writes an answer's head and its body apart: two packets, and two wake-ups of the client. Here the head of an
answer whose length is known waits for the body, which follows at once, and a piece of a stream is written without
looking at what cannot have changed since its head. Everything else is uvicorn's own.
"""

from __future__ import annotations

import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]").search


class Cycle(RequestResponseCycle):
    """What ``server.BoundedProtocol`` gives to the application as ``receive`` and ``send``."""

    _head = b""  # of an answer whose body has not come yet

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
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
