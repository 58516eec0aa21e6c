"""A blocking connection to Redis: what one process of a crowd needs, and nothing that a SIGKILL could leave behind."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import hiredis

PATIENT_S = 120.0
_MORE = object()


class Line:
    """Commands out in one write, replies in."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=_MORE)

    def ask(self, commands: Sequence[bytes]) -> list[Any]:
        """The replies to packed commands; the first error reply is raised."""
        replies = self.hear(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def hear(self, commands: Sequence[bytes]) -> list[Any]:
        """The replies to packed commands, error replies among them."""
        self.socket.sendall(b"".join(commands))
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is _MORE:
                received = self.socket.recv(1 << 18)
                if not received:
                    raise ConnectionError("Redis ended the connection")
                self._reader.feed(received)
            else:
                replies.append(reply)
        return replies

    def close(self) -> None:
        """End it."""
        self.socket.close()
