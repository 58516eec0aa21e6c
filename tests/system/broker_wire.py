"""AMQP 0-9-1 as far as publishing goes, for messages that no client library would send.

Frames are written as the specification has them, so a body may be any bytes, a content type any text and a header of
any type. Each message is confirmed.

Source:
    AMQP 0-9-1 specification, sections 2.3.5 and 4.2; RabbitMQ's publisher confirms.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final
from urllib.parse import unquote, urlsplit

FRAME_BYTES: Final = 131_072
WINDOW: Final = 200
"""Messages that may wait for their confirm."""
BOUND_S: Final = 60.0
METHOD, HEADER, BODY, END = 1, 2, 3, b"\xce"
ACK, NACK, RETURNED, CLOSED = (60, 80), (60, 120), (60, 50), (20, 40)


@dataclass(frozen=True, slots=True)
class Message:
    """What is published. ``headers``: values may be of any type that ``table`` writes."""

    body: bytes
    exchange: str = "penstock.jobs"
    routing_key: str = "jobs.m.standard.0"
    content_type: str = "application/json"
    message_id: str = ""
    headers: Mapping[str, Any] = field(default_factory=dict)


class Publisher:
    """One connection with one channel, as a context."""

    def __init__(self, url: str) -> None:
        found = urlsplit(url)
        self._credentials = f"\0{unquote(found.username or '')}\0{unquote(found.password or '')}".encode()
        self._vhost = found.path.removeprefix("/")
        self._address = (found.hostname or "127.0.0.1", found.port or 5672)

    def __enter__(self) -> Publisher:
        self._socket = socket.create_connection(self._address, timeout=BOUND_S)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._expect(10, 10)
        plain = _short("PLAIN") + _long(self._credentials) + _short("en_US")
        self._method(0, 10, 11, table({}) + plain)
        self._expect(10, 30)
        self._method(0, 10, 31, struct.pack(">HIH", 1, FRAME_BYTES, 0))
        self._method(0, 10, 40, _short(self._vhost) + b"\0\0")
        self._expect(10, 41)
        self._method(1, 20, 10, b"\0")
        self._expect(20, 11)
        self._method(1, 85, 10, b"\0")
        self._expect(85, 11)
        self._sent = 0
        self._unconfirmed: set[int] = set()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._socket.close()

    def publish(self, messages: Iterable[Message]) -> int:
        """Publish all, and wait until the broker has confirmed each; how many there were.

        Raises:
            AssertionError: One was returned or refused.
        """
        before = self._sent
        for message in messages:
            self._socket.sendall(self._frames(message))
            self._sent += 1
            self._unconfirmed.add(self._sent)
            while len(self._unconfirmed) >= WINDOW:
                self._confirm()
        while self._unconfirmed:
            self._confirm()
        return self._sent - before

    def _confirm(self) -> None:
        kind, payload = self._frame()
        if kind != METHOD:  # of a heartbeat, or of what is returned
            return
        method = struct.unpack_from(">HH", payload)
        assert method == ACK, f"the broker answered {method}: {payload[4:200]!r}"
        tag, multiple = struct.unpack_from(">QB", payload, 4)
        self._unconfirmed -= {each for each in self._unconfirmed if each == tag or (multiple and each < tag)}

    def _frames(self, message: Message) -> bytes:
        target = _short(message.exchange) + _short(message.routing_key)
        frames = self._wrapped(METHOD, 1, struct.pack(">HHH", 60, 40, 0) + target + b"\x01")  # mandatory
        properties = _short(message.content_type) + table(message.headers) + b"\x02" + _short(message.message_id)
        flags = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 7  # content type, headers, delivery mode, message id
        frames += self._wrapped(HEADER, 1, struct.pack(">HHQH", 60, 0, len(message.body), flags) + properties)
        size = FRAME_BYTES - 8
        for start in range(0, len(message.body), size):
            frames += self._wrapped(BODY, 1, message.body[start : start + size])
        return frames

    def _wrapped(self, kind: int, channel: int, payload: bytes) -> bytes:
        return struct.pack(">BHI", kind, channel, len(payload)) + payload + END

    def _method(self, channel: int, number: int, method: int, arguments: bytes) -> None:
        self._socket.sendall(self._wrapped(METHOD, channel, struct.pack(">HH", number, method) + arguments))

    def _frame(self) -> tuple[int, bytes]:
        head = self._file.read(7)
        assert len(head) == 7, "the broker ended the connection"
        kind, _, size = struct.unpack(">BHI", head)
        payload = self._file.read(size)
        assert self._file.read(1) == END
        return kind, payload

    def _expect(self, number: int, method: int) -> None:
        _, payload = self._frame()
        assert struct.unpack_from(">HH", payload) == (number, method), payload[:200]


def table(values: Mapping[str, Any]) -> bytes:
    """A field table; a value's type is found from Python's.

    Example:
        >>> table({"a": True})
        b'\\x00\\x00\\x00\\x04\\x01at\\x01'
    """
    written = b"".join(_short(name) + _value(value) for name, value in values.items())
    return struct.pack(">I", len(written)) + written


def _value(value: Any) -> bytes:
    if value is None:
        return b"V"
    if isinstance(value, bool):
        return b"t" + bytes([value])
    if isinstance(value, int):
        return b"l" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"d" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"x" + _long(value)
    if isinstance(value, Mapping):
        return b"F" + table(value)
    if isinstance(value, list):
        return b"A" + _long(b"".join(_value(each) for each in value))
    return b"S" + _long(str(value).encode())


def _short(text: str) -> bytes:
    raw = text.encode()[:255]
    return bytes([len(raw)]) + raw


def _long(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw
