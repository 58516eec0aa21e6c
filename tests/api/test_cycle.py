"""Answers as they go over the wire: in as few pieces as they can, and never other than HTTP wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from penstock.api.server import BoundedProtocol

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

JSON = (b"content-type", b"application/json")


class Wire(asyncio.Transport):
    """Keeps each write apart."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        """What arrives is given by the test."""

    def resume_reading(self) -> None:
        """As above."""


def answered(app: Application, *requests: bytes) -> tuple[list[bytes], bool]:
    """What was written, piece by piece, for these requests, and whether the connection was closed."""

    async def run() -> tuple[list[bytes], bool]:
        config = uvicorn.Config(app, lifespan="off", interface="asgi3", log_config=None, access_log=False, ws="none")
        protocol = BoundedProtocol(config, ServerState(), {})
        wire = Wire()
        protocol.connection_made(wire)
        for request in requests:
            protocol.data_received(request)
        while protocol.tasks:
            await asyncio.gather(*protocol.tasks)
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        return wire.writes, wire.closed

    return asyncio.run(run())


def whole(*headers: tuple[bytes, bytes], body: bytes = b"{}", length: int | None = None) -> Application:
    """Answers with this body, and declares ``length``."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        declared = b"%d" % (len(body) if length is None else length)
        fields = [JSON, *headers, (b"content-length", declared)]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    return app


GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n"


def test_a_whole_answer_is_one_write() -> None:
    assert answered(whole(), GET)[0] == [HEAD + b"\r\n{}"]


def test_answers_on_a_kept_connection_follow_each_other() -> None:
    assert answered(whole(), GET + GET, GET)[0] == [HEAD + b"\r\n{}"] * 3


def test_a_client_that_wants_the_connection_closed_is_told_so() -> None:
    writes, closed = answered(whole(), b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    assert (writes, closed) == ([HEAD + b"connection: close\r\n\r\n{}"], True)


def test_an_answer_to_head_has_no_body() -> None:
    assert b"".join(answered(whole(), GET.replace(b"GET", b"HEAD"))[0]) == HEAD + b"\r\n"


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\0b", b"a\x7f"])
def test_a_header_that_would_split_the_head_is_never_written(value: bytes) -> None:
    writes, closed = answered(whole((b"x-made-up", value)), GET)
    assert b"x-made-up" not in b"".join(writes)
    assert closed


@pytest.mark.parametrize("length", [1, 3])
def test_a_body_of_another_length_than_declared_ends_the_connection(length: int) -> None:
    assert answered(whole(length=length), GET)[1]


def test_a_body_in_pieces_comes_after_its_head() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [JSON, (b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await send({"type": "http.response.body", "body": b"}"})

    assert answered(app, GET)[0] == [HEAD + b"\r\n", b"{", b"}"]


def test_each_piece_of_a_stream_is_one_write_at_once() -> None:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"data: 1\n\n", b"", b"data: 2\n\n"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    writes = [write for write in answered(app, GET)[0] if write]
    assert writes == [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"9\r\ndata: 1\n\n\r\n",
        b"9\r\ndata: 2\n\n\r\n",
        b"0\r\n\r\n",
    ]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/v1/models", "/v1/models", b""),
        (b"/v1/models?a=b%20c", "/v1/models", b"a=b%20c"),
        (b"/v1/%6dodels", "/v1/models", b""),
        (b"http://other.test/v1/models", "/v1/models", b""),
    ],
)
def test_the_path_is_what_the_target_says(target: bytes, path: str, query: bytes) -> None:
    seen: list[tuple[str, bytes]] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append((scope["path"], scope["query_string"]))
        await whole()(scope, receive, send)

    answered(app, GET.replace(b"/ ", target + b" ", 1))
    assert seen == [(path, query)]
