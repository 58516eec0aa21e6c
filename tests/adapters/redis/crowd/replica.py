"""A replica of a Redis that keeps nothing: it is told each write, in the order in which they took effect."""

from __future__ import annotations

import select
from collections.abc import Iterator

import hiredis

from tests.adapters.redis.crowd.line import Line

_MORE = object()


class Replica:
    """What one call wrote arrives as one transaction."""

    def __init__(self, port: int) -> None:
        self._open: list[list[bytes]] | None = None
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._line = Line(port)
        self._begin()

    def close(self) -> None:
        """Stop listening."""
        self._line.close()

    def _begin(self) -> None:
        """Ask for everything from now on; what was there before comes first, as a file that nobody needs."""
        self._line.socket.sendall(b"SYNC\r\n")
        received = b""
        while b"\r\n" not in (received := received.lstrip(b"\n")):
            received += self._line.socket.recv(1 << 16)
        header, _, rest = received.partition(b"\r\n")
        file_bytes = int(header.removeprefix(b"$"))
        while len(rest) < file_bytes:
            rest += self._line.socket.recv(1 << 16)
        self._reader.feed(rest[file_bytes:])

    def transactions(self, wait_s: float) -> Iterator[list[list[bytes]]]:
        """What has arrived, after waiting so long for the first of it: the commands of each transaction."""
        if not select.select([self._line.socket], [], [], wait_s)[0]:
            return
        received = self._line.socket.recv(1 << 18)
        if not received:
            raise ConnectionError("Redis ended the replica's connection")
        self._reader.feed(received)
        while (command := self._reader.gets()) is not _MORE:
            name = command[0].upper()
            if name == b"MULTI":
                self._open = []
            elif name == b"EXEC":
                whole, self._open = self._open or [], None
                yield whole
            elif self._open is not None:
                self._open.append(command)
            else:
                yield [command]
