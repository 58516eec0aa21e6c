"""What the hot path asks of our own server beside ASGI.

ASGI gives and takes messages, each through a coroutine, and tells of a client that left only to somebody who awaits
it all the while. That is more work for each request than its quota is. So the server puts a ``Wire`` into the scope;
whoever finds none there, as under another server, speaks ASGI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

WIRE: Final = "penstock.wire"
"""Where it lies in the scope."""


class Wire(Protocol):
    """One request and its answer, without messages. Nothing here waits."""

    def take_body(self) -> bytes | None:
        """The whole body, if all of it has come; else None, and ``receive`` gives it."""
        ...

    def watch(self, departed: Callable[[], None] | None) -> None:
        """Call this when the client leaves before its answer is complete, or now if it has; None ends that."""
        ...

    def answer(self, status: int, lines: bytes, body: bytes) -> bool:
        """Write a whole answer at once.

        Args:
            lines: Headers as they go over the wire, each ended by CR LF; of our own making, since they are not
                looked at again. Without content-length.

        Returns:
            False if that is not possible now; then nothing was written, and ``send`` does it.
        """
        ...

    def write(self, piece: bytes) -> bool:
        """Write a piece of a streamed answer that has begun; it is not empty. False as for ``answer``."""
        ...
