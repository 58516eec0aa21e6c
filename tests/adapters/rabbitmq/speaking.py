"""As much AMQP 0-9-1 as it takes to be refused: connect as a user, try one method, and read what the broker says.

Our streams speak it in Go; here a test must say what those never would.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from tests.system.services import RabbitMQ

METHOD, HEADER, BODY, END = 1, 2, 3, 0xCE
CHANNEL_CLOSE: Final = (20, 40)


def short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


class Speaker:
    """One connection with one channel, of one user."""

    def __init__(self, broker: RabbitMQ, vhost: str, user: str, password: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", broker.port), timeout=30)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        assert self._receive()[:2] == (10, 10)
        login = f"\0{user}\0{password}".encode()
        self._send(
            0, 10, 11, struct.pack(">I", 0) + short("PLAIN") + struct.pack(">I", len(login)) + login + short("en_US")
        )
        assert self._receive()[:2] == (10, 30)
        self._send(0, 10, 31, struct.pack(">HIH", 16, 131_072, 0))
        self._send(0, 10, 40, short(vhost) + short("") + b"\0")
        assert self._receive()[:2] == (10, 41)
        self._send(1, 20, 10, short(""))
        assert self._receive()[:2] == (20, 11)

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def publish(self, exchange: str, key: str) -> int:
        """0 if the broker confirmed it, else the code of its refusal."""
        self._send(1, 85, 10, b"\0")
        assert self._receive()[:2] == (85, 11)
        self._send(1, 60, 40, struct.pack(">H", 0) + short(exchange) + short(key) + b"\0")
        self._frame(HEADER, 1, struct.pack(">HHQH", 60, 0, 2, 0))
        self._frame(BODY, 1, b"{}")
        return self._verdict()

    def get(self, queue: str) -> int:
        self._send(1, 60, 70, struct.pack(">H", 0) + short(queue) + b"\0")
        return self._verdict()

    def declare(self, queue: str) -> int:
        self._send(1, 50, 10, struct.pack(">H", 0) + short(queue) + b"\0" + struct.pack(">I", 0))
        return self._verdict()

    def delete(self, queue: str) -> int:
        self._send(1, 50, 40, struct.pack(">H", 0) + short(queue) + b"\0")
        return self._verdict()

    def purge(self, queue: str) -> int:
        self._send(1, 50, 30, struct.pack(">H", 0) + short(queue) + b"\0")
        return self._verdict()

    def bind(self, queue: str, exchange: str) -> int:
        names = short(queue) + short(exchange) + short("x")
        self._send(1, 50, 20, struct.pack(">H", 0) + names + b"\0" + struct.pack(">I", 0))
        return self._verdict()

    def _verdict(self) -> int:
        kind, method, rest = self._receive()
        return int(struct.unpack(">H", rest[:2])[0]) if (kind, method) == CHANNEL_CLOSE else 0

    def _send(self, channel: int, kind: int, method: int, arguments: bytes) -> None:
        self._frame(METHOD, channel, struct.pack(">HH", kind, method) + arguments)

    def _frame(self, kind: int, channel: int, payload: bytes) -> None:
        self._socket.sendall(struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([END]))

    def _receive(self) -> tuple[int, int, bytes]:
        """The next method; contents and heartbeats are passed over."""
        while True:
            kind, _, size = struct.unpack(">BHI", self._file.read(7))
            payload = self._file.read(size + 1)[:-1]
            if kind == METHOD:
                return (*struct.unpack(">HH", payload[:4]), payload[4:])
