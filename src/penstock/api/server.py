"""Listens: uvicorn with httptools, a bound on request heads, and an end that lets running requests finish.

uvicorn's httptools protocol bounds neither the size of a head nor the time it may take, and answers what it cannot
read in plain text; the subclass here adds that, and gives requests to ``cycle.Cycle``. Where its hooks cost something
per request they do nothing unless a head is unusually large or slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import signal
import socket
from collections.abc import Callable, Generator
from typing import Any, ClassVar, Final, cast
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from penstock.api.cycle import Cycle
from penstock.api.failures import error_body
from penstock.errors import ConfigurationError

HEAD_TOO_LARGE = 431
BACKLOG = 2048
CLEANUP_S = 5.0
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_NOT_PLAIN = re.compile(rb"[^!-~]|[%?#]").search


class HeadTooLarge(Exception):
    """Raised through the parser, which turns it into its own error."""


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose heads are bounded in bytes and in time.

    A head that arrives in one small packet, as nearly all do, is bounded by that. Only of a large packet, or of one
    that continues a head, the bytes are counted.
    """

    head_bytes_max: ClassVar[int] = 16_000
    head_s: ClassVar[float] = 10.0
    _continued_bytes = 0
    _is_counted = False
    _is_in_head = False
    _head_timer: asyncio.TimerHandle | None = None
    _idle_since_s = 0.0  # 0: not idle
    _refusal = 400

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection that never sends a whole head is closed."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_s, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits for the client, or for room to write to it, is told."""
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        if self.cycle is not None:
            cast(Cycle, self.cycle).leave()
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment]

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_in_head = True
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """A head ended."""
        self._is_in_head = False
        if self._head_timer is not None:
            self._stop_head_timer()
        if self._is_counted:
            self._continued_bytes = 0
            head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if head_bytes > self.head_bytes_max:
                self._refusal = HEAD_TOO_LARGE
                raise HeadTooLarge
        self._begin_cycle()

    def _begin_cycle(self) -> None:
        """As uvicorn does where nothing can be upgraded, nothing is mounted, and connections are not counted."""
        parser, url = self.parser, self.url
        version = parser.get_http_version()
        if url.startswith(b"/") and not _NOT_PLAIN(url):
            path, raw_path, query = url.decode("ascii"), url, b""
        else:
            parsed = httptools.parse_url(url)
            path, raw_path, query = unquote(parsed.path.decode("ascii")), parsed.path, parsed.query or b""
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "headers": self.headers,
            "state": {},
            "method": parser.get_method().decode("ascii"),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
        }
        before = self.cycle
        self.cycle = cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            default_headers=self.server_state.default_headers,
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
            tasks=self.tasks,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:  # sent before the answer to the one before: it waits its turn
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """The cycle itself forgets its task at the end: a callback for that would be one more turn of the loop."""
        cycle.task = task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)

    def on_body(self, body: bytes) -> None:
        """A piece of the body, which nobody reads any more once the answer is complete."""
        cycle: Any = self.cycle
        if not cycle.response_complete and cycle.take(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        """The body is whole."""
        cycle: Any = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.tell()

    def on_response_complete(self) -> None:
        """Turn to the request that came meanwhile; if there is none, the connection is idle from now on.

        Its timer is left as it is: one that is stopped and set for each request costs more than one that looks again.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        """The time of an idle connection may have passed; one that is in use gets its timer when it is idle again."""
        self.timeout_keep_alive_task = None
        if self._idle_since_s and not self.transport.is_closing():
            left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
            if left_s > 0:
                self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
            else:
                self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; count what continues a head that is still unfinished."""
        was_in_head = self._is_in_head
        self._is_counted = was_in_head or len(data) > self.head_bytes_max
        self._idle_since_s = 0.0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
            return
        except httptools.HttpParserUpgrade:
            pass  # a request to speak another protocol is answered in this one, which is what HTTP asks
        if self._is_in_head and not self.transport.is_closing():
            if was_in_head:
                self._continued_bytes += len(data)
                if self._continued_bytes > self.head_bytes_max:
                    self._refusal = HEAD_TOO_LARGE
                    self.send_400_response("")
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(self.head_s, self._head_too_slow)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read gets an error like any other, and the connection ends."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            is_large = self._refusal == HEAD_TOO_LARGE
            text = f"the head is larger than {self.head_bytes_max} bytes" if is_large else "this is not valid HTTP/1.1"
            body = error_body(text, kind="invalid_request_error", code="head_too_large" if is_large else "invalid_http")
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[self._refusal] + head + body)
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: wiring stops several listeners together."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def bind(host: str, port: int, *, setting: str = "port") -> socket.socket:
    """Take an address without answering on it yet, so that one that is taken is told before anything else starts.

    Args:
        port: 0 for a free one, which ``getsockname`` then tells.
        setting: Where the port is configured, for the error.

    Raises:
        ConfigurationError: It is taken, or not of this machine.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an end a moment ago is no hindrance
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        fix = "stop what listens there, or choose another port" if error.errno == errno.EADDRINUSE else "choose another"
        raise ConfigurationError((f"{setting}: cannot listen on {host}:{port}: {error.strerror}; {fix}",)) from error
    return listener


async def serve(
    application: Callable[..., Any],
    listener: socket.socket,
    *,
    stop: asyncio.Event,
    started: Callable[[], None] = lambda: None,
    delay_s: float = 0.0,
    shutdown_s: float = 30.0,
    head_bytes_max: int = 16_000,
    head_s: float = 10.0,
    keep_alive_s: float = 75.0,
) -> None:
    """Answer until ``stop`` is set and ``delay_s`` have passed, then accept no more, and let running requests end.

    Run it in a uvloop (``uvloop.run``); it takes the loop that it finds.

    Args:
        listener: As ``bind`` gives it; closed at the end.
        started: Told once connections are accepted.
        delay_s: How long connections are still accepted after ``stop``: for load balancers to notice.
        shutdown_s: Then what still runs is cancelled, and its client told to send the request again.
        head_bytes_max: Of a request line with its headers.
        head_s: How long these may take to arrive.
        keep_alive_s: How long a connection may be idle.
    """
    listener.listen(BACKLOG)
    protocol = type("Protocol", (BoundedProtocol,), {"head_bytes_max": head_bytes_max, "head_s": head_s})
    config = uvicorn.Config(
        application,
        http=protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=keep_alive_s,  # type: ignore[arg-type] # any number of seconds works
        timeout_graceful_shutdown=shutdown_s,  # type: ignore[arg-type]
    )
    server = _Server(config)

    async def stop_when_told() -> None:
        await stop.wait()
        await asyncio.sleep(delay_s)
        server.should_exit = True

    waiting = asyncio.create_task(stop_when_told())
    try:
        started()
        await server.serve(sockets=[listener])
    finally:
        waiting.cancel()
        listener.close()
    if server.server_state.tasks:  # cancelled above: let them settle what they had begun
        await asyncio.wait(server.server_state.tasks, timeout=CLEANUP_S)


def stop_on_signals(stop: asyncio.Event, *, told_to: Callable[[], None] = lambda: None) -> None:
    """Set ``stop`` and call ``told_to`` at the first SIGINT or SIGTERM; a second SIGINT ends the process as usual."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        stop.set()
        told_to()
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)

    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, told)
