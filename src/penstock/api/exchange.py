"""One request of the hot path and what has been sent of its answer: over the wire itself, or by ASGI's messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from penstock.api.departure import Departure, Receive, WatchedWire
from penstock.api.failures import Failure
from penstock.api.headers import Headers, rate_headers, rate_lines
from penstock.api.wire import WIRE, Wire
from penstock.lanes.requests import Reply, StreamReply
from penstock.ports import RequestRecord
from penstock.quota.operations import Reading

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

_JSON = (b"content-type", b"application/json")


class Exchange:
    """A request, its record, and its answer as far as it has gone.

    Args:
        record: Its ``request_id`` goes into the answer's head.
    """

    __slots__ = ("answering", "departure", "receive", "record", "repeat_key", "scope", "send", "started", "wire")

    def __init__(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.record = record
        self.started = False
        self.wire: Wire | None = scope.get(WIRE)
        self.departure: Departure | WatchedWire | None = None
        self.answering: Callable[..., Reply | StreamReply] | None = None
        self.repeat_key: bytes | None = None

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""
        self.started = True
        self.record.status = status
        headers.append((b"x-request-id", self.record.request_id.encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def whole(self, status: int, body: bytes, readings: Iterable[Reading], extra: Headers) -> None:
        """Send an answer that is complete; from here on nothing is left to cancel."""
        self.ignore_departure()
        if self.wire is not None and not extra and not self.started:
            request_id = self.record.request_id.encode()
            lines = b"%bcontent-type: application/json\r\nx-request-id: %b\r\n" % (rate_lines(readings), request_id)
            if self.wire.answer(status, lines, body):
                self.started = True
                self.record.status = status
                return
        headers = rate_headers(readings)
        headers += extra
        headers.append(_JSON)
        headers.append((b"content-length", b"%d" % len(body)))
        await self.start(status, headers)
        await self.send({"type": "http.response.body", "body": body})

    def watch_departure(self) -> None:
        """Cancel the current task when the client leaves."""
        task = asyncio.current_task()
        assert task is not None
        if self.wire is not None:
            self.departure = WatchedWire(self.wire, task=task)
        else:
            self.departure = Departure(self.receive, task=task, loop=asyncio.get_running_loop())

    def ignore_departure(self) -> None:
        """Stop watching the client."""
        if self.departure is not None and not self.departure.happened:
            self.departure.ignore()
            self.departure = None

    async def fail(self, failed: Failure, readings: tuple[Reading, ...] = ()) -> None:
        """Send an error: as the answer, or as the last event of a stream that has begun."""
        self.record.outcome = failed.outcome
        if not self.started:
            await self.whole(failed.status, failed.body, failed.readings or readings, failed.headers)
            return
        await self.send({"type": "http.response.body", "body": b"data: " + failed.body + b"\n\n"})
