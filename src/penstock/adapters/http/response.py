"""An answer that is arriving on a connection, and the three ways to have its body: whole, piece by piece, or poured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Final

from penstock.errors import UpstreamBroken, UpstreamError

if TYPE_CHECKING:
    from penstock.adapters.http.connection import Connection

BUFFER_BYTES_MAX: Final = 256 * 1024  # more than this unread, and reading from the socket pauses


class Response:
    """An answer whose head has arrived (``penstock.ports.UpstreamResponse``)."""

    __slots__ = ("_buffered", "_complete", "_connection", "_error", "_pieces", "_take", "_waiter", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._connection: Connection | None = connection
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._complete = False
        self._error: UpstreamError | None = None

    async def wait_head(self) -> None:
        """Return when the head has arrived. Raises like ``UpstreamClient.open``."""
        while self.status == 0:
            if self._error is not None:
                raise self._error
            await self._arrival()

    async def read(self, bytes_max: int) -> bytes:
        """The whole body, see ``UpstreamResponse.read``."""
        if int(self.headers.get("content-length", 0)) > bytes_max:
            self.close()
            raise UpstreamBroken(f"the answer has more than {bytes_max} bytes")
        if self._complete and self._buffered <= bytes_max:  # most come in one piece, with their head
            pieces, self._pieces = self._pieces, []
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces = []
        size = 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > bytes_max:
                self.close()
                raise UpstreamBroken(f"the answer has more than {bytes_max} bytes")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; what arrived together comes as one piece."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._complete:
                raise StopAsyncIteration
            await self._arrival()
        pieces = self._pieces
        self._pieces = []
        self._buffered = 0
        if self._connection is not None:
            self._connection.resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        """See ``UpstreamResponse.pour``; what arrived together is given together."""
        while self._pieces:
            if not take(await self.__anext__()):
                return
        if self._complete or self._error is not None:
            return
        self._take = take
        try:
            await self._arrival()
        finally:
            self._take = None

    def close(self) -> None:
        """Done with it, see ``UpstreamResponse.close``. Twice does nothing more."""
        self._pieces = []
        if self._connection is not None:
            self._connection.fail(UpstreamBroken("the answer was closed before its end"))

    def _arrival(self) -> asyncio.Future[None]:
        assert self._connection is not None
        self._waiter = waiter = self._connection.loop.create_future()
        return waiter

    # --- told by the connection ------------------------------------------------------------------------------

    def arrive(self, piece: bytes) -> bool:
        """Take a piece of the body; true if enough is waiting that reading should pause."""
        self._pieces.append(piece)
        self._buffered += len(piece)
        if self._waiter is not None and self._take is None:
            self.wake()
        return self._buffered > BUFFER_BYTES_MAX

    def hand_over(self) -> bool:
        """Give what arrived to whoever it is poured to, if it is; true if that made room."""
        take, pieces = self._take, self._pieces
        if take is None or not pieces:
            return False
        self._pieces = []
        self._buffered = 0
        if not take(pieces[0] if len(pieces) == 1 else b"".join(pieces)):
            self._take = None
            self.wake()
        return True

    def end(self, error: UpstreamError | None) -> None:
        """No more will arrive; what did is still handed out first."""
        self._complete = error is None
        self._error = error
        self._connection = None
        if self._waiter is not None:
            self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():  # its reader was cancelled
                waiter.set_result(None)
