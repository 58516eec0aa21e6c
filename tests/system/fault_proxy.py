"""A link that a test breaks: TCP between one of our processes and a service, cut, delayed or half-closed at will.

It runs in a thread with an event loop of its own, so that tests which wait for processes can drive it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

CHUNK_BYTES: Final = 1 << 16
STOP_S: Final = 10.0
DELAY_S: Final = 0.05
FAULTS: Final = ("cut", "half_close", "delay", "refuse")


class Connection:
    """One client and its way to the service."""

    def __init__(self, client: asyncio.StreamWriter, service: asyncio.StreamWriter) -> None:
        self.client = client
        self.service = service

    def cut(self) -> None:
        """Both ends see a reset."""
        self.client.transport.abort()
        self.service.transport.abort()

    def half_close(self) -> None:
        """The service sees the end of what the client says, which goes on listening."""
        if self.service.can_write_eof():
            self.service.write_eof()


class FaultProxy:
    """Listens on a port of its own and forwards every connection to ``target_port`` on loopback.

    Its faults may be asked for from any thread; they concern the connections that are open then.

    Args:
        passing: Given all that passes, before it does: the number of its connection, whether it is the service that
            speaks, and what is said.
    """

    def __init__(self, target_port: int, *, passing: Callable[[int, bool, bytes], None] | None = None) -> None:
        self.port = 0
        self.accepted = 0
        self._target_port = target_port
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = passing
        self._delay_s = 0.0
        self._refuses = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{target_port}", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._server: asyncio.Server = self._wait(self._listen())

    def stop(self) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_S)
        self._loop.close()

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        return self._each(Connection.cut)

    def half_close(self) -> int:
        """End the client's half of every connection; how many there were."""
        return self._each(Connection.half_close)

    def delay(self, delay_s: float) -> None:
        """From now on every piece that passes takes so much longer; 0 ends it."""
        self._delay_s = delay_s

    def refuse(self, refuses: bool) -> None:
        """From now on new connections are reset at once, or no longer."""
        self._refuses = refuses

    def _each(self, fault: Callable[[Connection], None]) -> int:
        async def carry_out() -> int:
            connections = tuple(self._open)
            for connection in connections:
                fault(connection)
            return len(connections)

        return int(self._wait(carry_out()))

    def _wait(self, work: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(STOP_S)

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self) -> None:
        self._server.close()
        for connection in tuple(self._open):
            connection.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            if self._refuses:
                raise ConnectionResetError
            from_service, service = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            client.transport.abort()
            return
        connection = Connection(client, service)
        self._open.add(connection)
        try:
            await asyncio.gather(
                self._forward(number, False, reader, service), self._forward(number, True, from_service, client)
            )
        finally:
            connection.cut()
            self._open.discard(connection)

    async def _forward(
        self, number: int, is_answer: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self._passing is not None:
                    self._passing(number, is_answer, data)
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof() and not writer.is_closing():
                writer.write_eof()
        except (OSError, RuntimeError):
            writer.transport.abort()


def disturb(proxy: FaultProxy, fault: str) -> None:
    """Begin one of ``FAULTS``."""
    if fault == "delay":
        proxy.delay(DELAY_S)
    elif fault == "refuse":
        proxy.refuse(True)
        proxy.cut()
    else:
        getattr(proxy, fault)()


def mend(proxy: FaultProxy) -> None:
    """End it; what was cut stays cut."""
    proxy.delay(0)
    proxy.refuse(False)
