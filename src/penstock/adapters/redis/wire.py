"""One connection to Redis: commands of one tick of the event loop leave in one write, replies come back in order.

Apart from the client that replaces it: a wire is used until something is wrong with it, and then never again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import hiredis

OVERDUE_S: Final = 0.002


def pack(*words: Any) -> bytes:
    """A command as Redis reads it.

    Example:
        >>> pack("GET", "a")
        b'*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\na\\r\\n'
    """
    return bytes(hiredis.pack_command(words))


def read_info(reply: bytes) -> dict[str, str]:
    """The fields of an ``INFO`` reply.

    Example:
        >>> read_info(b"# Server\\r\\nredis_version:7.0.15\\r\\n")
        {'redis_version': '7.0.15'}
    """
    lines = (line.partition(":") for line in reply.decode().splitlines() if ":" in line and not line.startswith("#"))
    return {name: value for name, _, value in lines}


class WireLost(Exception):
    """The connection ended, or a reply took longer than its bound. Whether the command was carried out is unknown."""


class Refusal(Exception):
    """Redis answered with an error reply; its first word says which."""

    @property
    def code(self) -> str:
        """The first word: ``NOPERM``, ``LOADING``, ``ERR``..."""
        return str(self).partition(" ")[0]


class Wire(asyncio.Protocol):
    """A connection's commands on their way, first in, first out.

    Args:
        bound_s: The longest that a reply may take, in seconds; the first that does not come in time ends the wire.
    """

    def __init__(self, *, bound_s: float) -> None:
        self._bound_s = bound_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(protocolError=WireLost, replyError=Refusal, notEnoughData=self)
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._overdue: asyncio.Future[Any] | None = None
        self.is_lost = False

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """Put a command on its way, as Redis reads it; the reply, in time.

        Raises (from the future):
            WireLost: The wire ended first.
            Refusal: Redis refused.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.is_lost:
            future.set_exception(WireLost("the connection has ended"))
            return future
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(command)
        self._waiting.append((future, self._loop.time() + self._bound_s))
        if self._timer is None:
            self._timer = self._loop.call_later(self._bound_s, self._look_at_first)
        return future

    def close(self) -> None:
        """End it. Whoever waits is told."""
        self._lose("the connection was closed here")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``. Not asserted: uvloop's transports are no subclass."""
        self._transport = transport
        if self.is_lost:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not self:
                if not self._waiting:
                    self._lose("Redis said something that nobody had asked")
                    return
                future, _ = self._waiting.popleft()
                if future.done():  # its caller left
                    continue
                if isinstance(reply, Refusal):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except WireLost as error:
            self._lose(f"Redis said what is not its protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._lose(f"Redis ended the connection{f': {exc}' if exc else ''}")

    def _flush(self) -> None:
        if self._transport is not None and not self.is_lost:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _look_at_first(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        first, due_s = self._waiting[0]
        left_s = due_s - self._loop.time()
        if left_s <= 0 and first is self._overdue:
            self._lose(f"no reply within {self._bound_s * 1000:.0f} ms")
            return
        if left_s <= 0:  # a loop that was held up sees the time before what has arrived: that is read first
            self._overdue, left_s = first, OVERDUE_S
        self._timer = self._loop.call_later(left_s, self._look_at_first)

    def _lose(self, why: str) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self._outgoing.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(WireLost(why))
