"""One connection to a server, and what arrives on it.

::

    idle -> sent -> head -> body -> idle (kept)        any -> closed

One timer per connection guards all bounds: it never fires later than the nearest bound, and moves itself when it
finds that bytes have arrived since. So a chunk costs a reading of the loop's clock and no timer.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final, cast

import httptools

from penstock.adapters.http.response import Response
from penstock.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from penstock.ports import UpstreamRequest

HEAD_BYTES_MAX: Final = 64 * 1024
JOIN_BYTES_MAX: Final = 64 * 1024  # up to this, head and body go out in one write


class Connection(asyncio.Protocol):
    """A connection that answers one request at a time.

    Args:
        server: Who answers, as errors name them.
        idle_s: How long it is kept without a request.
        rest_s: How long it should not be used again after an answer in chunks, if its server may end it then.
        on_idle: Called when it may be used again.
        on_closed: Called once, when it is lost.

    ``was_cut``: it was lost before it had rested, and not by ``close``.
    """

    __slots__ = (
        "_bounds",
        "_extra",
        "_head_bytes",
        "_header_lines",
        "_heard_at",
        "_idle_s",
        "_idle_until",
        "_interim",
        "_kept",
        "_on_closed",
        "_on_idle",
        "_parser",
        "_paused",
        "_poll",
        "_response",
        "_rest_s",
        "_rests_until",
        "_server",
        "_started_at",
        "_timer",
        "_timer_at",
        "_transport",
        "loop",
        "was_cut",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        server: str,
        idle_s: float,
        rest_s: float,
        on_idle: Callable[[Connection], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self.loop = loop
        self._server = server
        self._idle_s = idle_s
        self._rest_s = rest_s
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._response: Response | None = None
        self._bounds: UpstreamRequest | None = None
        self._header_lines: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._heard_at = self._started_at = self._idle_until = self._timer_at = 0.0
        self._rests_until = 0.0  # 0: the answer before was not in chunks, or there was none
        self._timer: asyncio.TimerHandle | None = None
        self._interim = self._extra = self._kept = self._paused = self.was_cut = False

    # --- used by the client ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """It was made, and its loss was not reported yet."""
        return self._transport is not None

    @property
    def is_resting(self) -> bool:
        """It has given an answer in chunks a moment ago."""
        return self.loop.time() < self._rests_until

    @property
    def has_rested(self) -> bool:
        """It has given an answer in chunks, and was not ended for it."""
        return 0 < self._rests_until <= self.loop.time()

    @property
    def is_usable(self) -> bool:
        """It is open, has not been idle for too long, and the server has neither closed it nor sent anything.

        The last is asked of the operating system: the event loop learns of it only in its next round, and until then
        a request would be written to a server that is gone.
        """
        transport = self._transport
        if transport is None or transport.is_closing() or self.loop.time() >= self._idle_until:
            return False
        return self._poll is None or not self._poll.poll(0)

    def send(self, head: bytes, body: bytes, bounds: UpstreamRequest) -> Response | None:
        """Send one request; None if the connection turned out to be gone before a byte could be written."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return None
        self._response = response = Response(self)
        self._bounds = bounds
        self._head_bytes = 0
        self._started_at = now_s = self.loop.time()
        if len(body) <= JOIN_BYTES_MAX:
            transport.write(head + body)
            if transport.is_closing():
                self._response = None
                return None
        else:
            transport.write(head)
            transport.write(body)
        due_s = now_s + min(bounds.first_byte_s, bounds.between_chunks_s, bounds.total_s)
        if self._timer is None or self._timer_at > due_s:
            self._arm(due_s)
        return response

    def resume(self) -> None:
        """The reader took what had arrived."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._heard_at = self.loop.time()
            self._transport.resume_reading()

    def fail(self, error: UpstreamError) -> None:
        """Give the answer up, and the connection with it."""
        response = self._response
        self._response = None
        if response is not None:
            response.end(error)
        self.close()

    def close(self) -> None:
        """Close at once."""
        self._rests_until = 0.0
        if self._transport is not None:
            self._transport.abort()

    # --- told by the event loop ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)
        if hasattr(select, "poll"):  # not on Windows
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        response = self._response
        if response is None:  # nobody asked: whatever it is, it must not answer the next request
            self.close()
            return
        self._heard_at = self.loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(UpstreamBroken(f"the answer is not HTTP: {error}"))
            return
        if self._response is None:
            self._after_answer()
        elif response.status == 0:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self.fail(UpstreamBroken(f"the answer's head has more than {HEAD_BYTES_MAX} bytes"))
        elif response.hand_over() and self._paused:
            self.resume()

    def connection_lost(self, error: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        response = self._response
        self.was_cut = (self.loop.time() if response is None else self._started_at) < self._rests_until
        self._transport = self._response = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if response is not None:
            framed = response.headers.keys() & {"content-length", "transfer-encoding"}
            if response.status and not framed and error is None:
                response.end(None)  # a body that ends with the connection
            elif response.status:
                response.end(UpstreamBroken(f"{self._server} broke off in the middle of its answer"))
            else:
                response.end(UpstreamBroken(f"{self._server} closed the connection without an answer"))
        self._on_closed(self)

    # --- told by the parser ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins; a second one to the same request is garbage."""
        self._header_lines = []
        self._interim = False
        self._extra = self._response is None

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or trailer."""
        self._header_lines.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        response = self._response
        if response is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._interim = True
            return
        headers: dict[str, str] = {}
        for name, value in self._header_lines:
            key = name.decode("latin-1").lower()
            text = value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        response.headers = headers
        response.status = status
        self._rests_until = 0.0
        self._kept = self._parser.should_keep_alive()
        response.wake()

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        if (
            self._response is not None
            and self._response.arrive(piece)
            and not self._paused
            and self._transport is not None
        ):
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was an interim one."""
        if self._interim or self._response is None:
            return
        response = self._response
        self._response = None
        keep_alive = response.headers.get("keep-alive")
        kept_s = self._idle_s if keep_alive is None else min(self._idle_s, _kept_s(keep_alive))
        now_s = self.loop.time()
        self._idle_until = now_s + kept_s
        if "transfer-encoding" in response.headers:
            self._rests_until = now_s + self._rest_s
        response.end(None)

    # --- time ------------------------------------------------------------------------------------------------

    def _after_answer(self) -> None:
        transport = self._transport
        assert transport is not None
        if self._paused:
            self.resume()
        if self._extra or not self._kept or transport.is_closing() or transport.get_write_buffer_size():
            self.close()
            return
        self._bounds = None
        if self._timer is None or self._timer_at > self._idle_until:
            self._arm(self._idle_until)
        self._on_idle(self)

    def _arm(self, at_s: float) -> None:
        if self._timer is not None:
            if self._timer_at <= at_s:
                return
            self._timer.cancel()
        self._timer_at = at_s
        self._timer = self.loop.call_at(at_s, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        now_s = self.loop.time()
        bounds = self._bounds
        if self._response is None or bounds is None:
            if now_s >= self._idle_until:
                self.close()
            else:
                self._arm(self._idle_until)
            return
        due_s, phase, bound_s = self._started_at + bounds.total_s, "total", bounds.total_s
        if self._response.status == 0:
            near = (self._started_at + bounds.first_byte_s, "first_byte", bounds.first_byte_s)
        elif self._paused:  # our reader is the slow one
            near = (due_s, phase, bound_s)
        else:
            near = (self._heard_at + bounds.between_chunks_s, "between_chunks", bounds.between_chunks_s)
        due_s, phase, bound_s = min(near, (due_s, phase, bound_s))
        if now_s >= due_s:
            self.fail(UpstreamTimeout(f"{self._server} {_TOO_SLOW[phase].format(bound_s)}", phase=phase))
        else:
            self._arm(min(due_s, now_s + bounds.between_chunks_s))


_TOO_SLOW: Final = {
    "first_byte": "did not begin to answer within {:g} s",
    "between_chunks": "fell silent for {:g} s in the middle of its answer",
    "total": "did not finish within {:g} s",
}


def _kept_s(keep_alive: str) -> float:
    """How long the server promises to keep the connection, less a second for the way; infinite if it says nothing."""
    for part in keep_alive.split(","):
        name, _, value = part.strip().partition("=")
        if name.lower() == "timeout" and value.isdecimal():
            return max(0.0, int(value) - 1.0)
    return float("inf")
