"""Sends requests over kept connections, to model servers above all (``penstock.ports.UpstreamClient``).

What is tried again here: a request that finds its kept connection closed before a byte of it was written goes out
on a fresh one. Nothing else. A kept connection that closes after the write, without an answer, may have carried
the request to a server that ran it, so that is ``UpstreamBroken``. To make it rare, connections are kept for less
time (2 s) than usual servers keep theirs (5 s), or less than a server's Keep-Alive header says.

llama.cpp's server says that it keeps a connection, and ends it after each answer in chunks; a request that is written
in between is lost. So a connection rests for a second after such an answer, until one of its server has outlived that;
from then on they are used again at once, until one is ended so soon.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping
from typing import Final

from penstock.adapters.http.addresses import Address, Origin, parse_address, request_head
from penstock.adapters.http.connection import Connection
from penstock.adapters.http.response import Response
from penstock.adapters.tls import Tls
from penstock.errors import UpstreamTimeout, UpstreamUnreachable
from penstock.ports import UpstreamRequest

ADDRESSES_MAX: Final = 4096


class _Pool:
    """The connections to one origin, the last used first."""

    __slots__ = ("emptied", "idle", "idle_max", "keeps_chunked", "open")

    def __init__(self, idle_max: int) -> None:
        self.idle: list[Connection] = []
        self.idle_max = idle_max
        self.open: set[Connection] = set()
        self.emptied: asyncio.Event | None = None  # somebody waits for the last one to close
        self.keeps_chunked = False  # whether the server, as last seen, keeps connections after answers in chunks

    def take(self) -> Connection | None:
        while self.idle:
            connection = self.idle.pop() if self.keeps_chunked else self._pop_rested()
            if connection is None:
                return None
            if connection.is_usable:
                self.keeps_chunked = self.keeps_chunked or connection.has_rested
                return connection
            connection.close()
        return None

    def _pop_rested(self) -> Connection | None:
        for at in range(len(self.idle) - 1, -1, -1):
            if not self.idle[at].is_resting:
                return self.idle.pop(at)
        return None

    def keep(self, connection: Connection) -> None:
        if len(self.idle) >= self.idle_max:
            connection.close()
        else:
            self.idle.append(connection)

    def forget(self, connection: Connection) -> None:
        if connection.was_cut:
            self.keeps_chunked = False
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if self.emptied is not None and not self.open:
            self.emptied.set()


class HttpClient:
    """An HTTP/1.1 client for a few origins that are called again and again.

    Args:
        server: Who answers, as errors name them.
        tls: Origin as ``https://host:port`` to how TLS is spoken with it alone; with every other origin the system's
            authorities are trusted.
        connections_max: Per origin; one more is ``UpstreamUnreachable``.
        idle_max: Per origin, how many are kept without a request; ``idle_s`` for how long.
        rest_s: A server that ends a connection so soon after an answer in chunks does not keep it.
    """

    def __init__(
        self,
        *,
        server: str = "the model server",
        tls: Mapping[str, Tls] | None = None,
        connections_max: int = 1024,
        idle_max: int = 256,
        idle_s: float = 2.0,
        rest_s: float = 1.0,
    ) -> None:
        self._server = server
        own = {str(parse_address(origin).origin): each for origin, each in (tls or {}).items()}
        self._contexts = {origin: each.context() for origin, each in own.items()}
        self._names = {origin: each.server_name for origin, each in own.items()}
        self._system_context: ssl.SSLContext | None = None
        self._connections_max = connections_max
        self._idle_max = idle_max
        self._idle_s = idle_s
        self._rest_s = rest_s
        self._addresses: dict[str, tuple[Address, _Pool]] = {}
        self._pools: dict[Origin, _Pool] = {}
        self._connecting: dict[Origin, int] = {}

    async def open(self, request: UpstreamRequest) -> Response:
        """Send, and wait for the answer's head; see ``UpstreamClient.open``."""
        address, pool = self._addresses.get(request.url) or self._learn(request.url)
        head = request_head(request.method, address, request.headers, len(request.body))
        response = None
        while response is None and (connection := pool.take()) is not None:
            response = connection.send(head, request.body, request)
        if response is None:
            connection = await self._connect(address.origin, pool, request.connect_s)
            response = connection.send(head, request.body, request)
            if response is None:
                raise UpstreamUnreachable(f"{self._server} closed the connection at once; nothing was sent")
        try:
            await response.wait_head()
        except asyncio.CancelledError:  # the head may have arrived all the same
            response.close()
            raise
        return response

    @property
    def connections_open(self) -> int:
        """How many connections there are, used and kept."""
        return sum(len(pool.open) for pool in self._pools.values())

    async def close(self) -> None:
        """Close every connection; answers under way break off."""
        for pool in self._pools.values():
            pool.emptied = asyncio.Event()
            for connection in tuple(pool.open):
                connection.close()
            if pool.open:
                await pool.emptied.wait()

    async def _connect(self, origin: Origin, pool: _Pool, connect_s: float) -> Connection:
        under_way = self._connecting.get(origin, 0)
        if len(pool.open) + under_way >= self._connections_max:
            raise UpstreamUnreachable(
                f"all {self._connections_max} connections to {self._server} are in use; add a replica"
            )
        self._connecting[origin] = under_way + 1
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(
                        loop,
                        server=self._server,
                        idle_s=self._idle_s,
                        rest_s=self._rest_s,
                        on_idle=pool.keep,
                        on_closed=pool.forget,
                    ),
                    origin.host,
                    origin.port,
                    ssl=self._context(origin) if origin.tls else None,
                    server_hostname=(self._names.get(str(origin)) or origin.host) if origin.tls else None,
                )
        except TimeoutError as error:
            raise UpstreamTimeout(f"no connection to {self._server} within {connect_s:g} s", phase="connect") from error
        except OSError as error:  # refused, no such host, and ssl.SSLError
            raise UpstreamUnreachable(f"{self._server} cannot be reached: {_why(error)}") from error
        finally:
            self._connecting[origin] -= 1
        if connection.is_open:
            pool.open.add(connection)
        return connection

    def _learn(self, url: str) -> tuple[Address, _Pool]:
        if len(self._addresses) >= ADDRESSES_MAX:
            self._addresses.clear()
        address = parse_address(url)
        pool = self._pools.get(address.origin)
        if pool is None:
            pool = self._pools[address.origin] = _Pool(self._idle_max)
        self._addresses[url] = address, pool
        return address, pool

    def _context(self, origin: Origin) -> ssl.SSLContext:
        context = self._contexts.get(str(origin))
        if context is None:
            if self._system_context is None:
                self._system_context = ssl.create_default_context()
            context = self._system_context
        return context


def _why(error: OSError) -> str:
    """What the operating system says, without addresses."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); give its authority's file"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake failed ({error.reason or 'no reason given'})"
    if isinstance(error, socket.gaierror):
        return "its host has no address; correct the name or wait for DNS"
    return os.strerror(error.errno) if error.errno else type(error).__name__
