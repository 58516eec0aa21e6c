"""Requests that mean harm, over raw sockets: each is answered or cut off, and the next one is served."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

from penstock.api.services import Bounds
from tests.api.door import TOKEN, Door, chat_body, open_door, read_answer

HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
JSON = "content-type: application/json\r\n"


def test_a_body_declared_too_large_is_refused_before_it_is_read(door: Door) -> None:
    answer = door.raw(f"{HEAD}{JSON}content-length: 8000001\r\n\r\n".encode())
    assert (answer.status, answer.error()["code"]) == (413, "body_too_large")


def test_a_body_of_unknown_length_is_read_only_so_far(door: Door) -> None:
    with door.connect() as connection:
        connection.sendall(f"{HEAD}{JSON}transfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"x" * 65_536
        for _ in range(8_000_000 // len(chunk) + 1):
            connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        assert read_answer(connection).status == 413


def test_the_largest_body_is_read(door: Door) -> None:
    padding = "x" * (8_000_000 - len(json.dumps(chat_body(padding=""))))
    body = json.dumps(chat_body(padding=padding)).encode()
    assert len(body) == 8_000_000
    assert door.ask("POST", "/v1/chat/completions", body).status == 200


def test_a_body_that_trickles_is_given_up() -> None:
    with open_door(Door(bounds=Bounds(body_s=0.05))) as door, door.connect() as connection:
        connection.sendall(f"{HEAD}{JSON}content-length: 100\r\n\r\n{{".encode())
        answer = read_answer(connection)
    assert answer.status == 408


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_a_body_of_another_type_is_refused(door: Door, content_type: str) -> None:
    answer = door.ask("POST", "/v1/chat/completions", chat_body(), headers=(("content-type", content_type),))
    assert answer.status == 415


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_may_be_spelt_otherwise(door: Door, content_type: str) -> None:
    answer = door.ask("POST", "/v1/chat/completions", chat_body(), headers=(("content-type", content_type),))
    assert answer.status == 200


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer  "])
def test_the_scheme_is_read_in_any_case(door: Door, scheme: str) -> None:
    answer = door.ask(
        "POST", "/v1/chat/completions", chat_body(), token=None, headers=(("authorization", f"{scheme} {TOKEN}"),)
    )
    assert answer.status == 200


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN} x"])
def test_anything_but_a_bearer_key_is_no_key(door: Door, value: str) -> None:
    answer = door.ask("POST", "/v1/chat/completions", chat_body(), token=None, headers=(("authorization", value),))
    assert answer.status == 401


@pytest.mark.parametrize("pieces", [1, 40])
def test_a_head_that_is_too_large_is_refused(door: Door, pieces: int) -> None:
    head = (HEAD + "".join(f"x-{at}: {'y' * 400}\r\n" for at in range(42))).encode()
    with door.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        step = len(head) // pieces + 1
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused, and closed, before all was sent
            for at in range(0, len(head), step):
                connection.sendall(head[at : at + step])
            connection.sendall(b"\r\n")
        answer = read_answer(connection)
    assert (answer.status, answer.error()["code"]) == (431, "head_too_large")


def test_a_header_line_without_end_is_cut_off(door: Door) -> None:
    with door.connect() as connection:
        connection.sendall(f"{HEAD}x-endless: ".encode())
        try:
            for _ in range(10_000):
                connection.sendall(b"y" * 1_000)
        except (BrokenPipeError, ConnectionResetError):
            return
    raise AssertionError("10 MB of one header line were read")


def test_a_head_of_fifteen_kilobytes_is_read(door: Door) -> None:
    padding = tuple((f"x-{at}", "y" * 400) for at in range(36))
    assert door.ask("POST", "/v1/chat/completions", chat_body(), headers=padding).status == 200


@pytest.mark.parametrize("first", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost:"])
def test_a_head_that_never_ends_is_cut_off(first: bytes) -> None:
    with open_door(head_s=0.05) as door, door.connect() as connection:
        connection.sendall(first)
        assert connection.recv(100) == b""


def test_the_second_head_of_a_connection_is_timed_too() -> None:
    with open_door(head_s=0.2) as door, door.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_answer(connection).status == 200
        connection.sendall(b"GET /health HT")
        assert connection.recv(100) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /health HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /health HTTP/1.1\r\nx: a\x00b\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_a_400_in_json_and_the_connection_ends(door: Door, request_bytes: bytes) -> None:
    with door.connect() as connection:
        connection.sendall(request_bytes)
        answer = read_answer(connection)
        assert connection.recv(1) == b""
    assert (answer.status, answer.error()["code"]) == (400, "invalid_http")
    assert door.chat().status == 200


def test_a_wish_for_another_protocol_is_answered_in_this_one(door: Door) -> None:
    upgrade = (("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "x"))
    assert door.ask("GET", "/health", token=None, headers=upgrade).status == 200


def test_a_path_that_is_spelt_otherwise_is_the_same_path_with_the_same_permission(door: Door) -> None:
    assert door.ask("POST", "/v1/chat%2Fcompletions", chat_body(), token=None).status == 401
    assert door.ask("GET", "/v1/%75sage", token=None).status == 401


@pytest.mark.parametrize("path", ["/v1/usage/", "//v1/usage", "/v1/../v1/usage", "/v1/usage;x", "/V1/usage"])
def test_a_path_that_nearly_is_one_is_none(door: Door, path: str) -> None:
    assert door.ask("GET", path, token=TOKEN).status == 404


def test_a_malformed_host_changes_nothing(door: Door) -> None:
    answer = door.raw(b"GET /v1/usage HTTP/1.1\r\nhost: a/v1/health?\r\n\r\n")
    assert answer.status == 401


def test_no_answer_repeats_what_could_break_a_header(door: Door) -> None:
    answer = door.ask("GET", "/v1/models/%0d%0aset-cookie:%20x", headers=(("x-request-id", "a b"),))
    assert answer.status == 404
    assert "set-cookie" not in answer.headers


SMUGGLED = b"GET /v1/usage HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
BODY = json.dumps(chat_body()).encode()


def posted(*lines: str, body: bytes = BODY, end: str = "\r\n") -> bytes:
    return end.join([HEAD.rstrip(), JSON.rstrip(), *lines, "", ""]).encode() + body + SMUGGLED


@pytest.mark.parametrize(
    "request_bytes",
    [
        posted("content-length: 0", "transfer-encoding: chunked", body=b"0\r\n\r\n"),
        posted("transfer-encoding: chunked", f"content-length: {len(BODY)}"),
        posted(f"content-length: {len(BODY)}", "content-length: 0"),
        posted(f"content-length: {len(BODY)}, 0"),
        posted(f"content-length: +{len(BODY)}"),
        posted(f"content-length: {len(BODY):#x}"),
        posted(f"content-length : {len(BODY)}"),
        posted("content-length: 99999999999999999999999"),
        posted("transfer-encoding: chunked, identity", body=b"0\r\n\r\n"),
        posted("transfer-encoding: xchunked", body=b"0\r\n\r\n"),
        posted("transfer-encoding : chunked", body=b"0\r\n\r\n"),
        posted("transfer-encoding: chunked", "transfer-encoding: identity", body=b"0\r\n\r\n"),
        posted("transfer-encoding: chunked", body=b"-1\r\n\r\n"),
        posted("transfer-encoding: chunked", body=b"0x5\r\nabcde\r\n0\r\n\r\n"),
        posted("transfer-encoding: chunked", body=b"5\r\nabcdeXX0\r\n\r\n"),
        posted("transfer-encoding: chunked", body=b"fffffffffffffffff\r\n"),
        posted("x-a: b", " folded: c", f"content-length: {len(BODY)}"),
        posted(f"content-length: {len(BODY)}", end="\n"),
        posted("x: a\rcontent-length: 0"),
        posted("x: a\x00b"),
    ],
)
def test_a_request_in_a_requests_clothes_is_never_served(door: Door, request_bytes: bytes) -> None:
    """However two parsers may differ about where it ends: what follows is not taken for a request of its own."""
    with door.connect() as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
    assert received.count(b"HTTP/1.1 ") <= 2
    assert b'"group_by"' not in received, received
    assert door.chat().status == 200


def test_a_chunk_extension_is_ignored_and_what_follows_is_its_own_request(door: Door) -> None:
    chunked = b"%x;a=b;c\r\n%s\r\n0;d\r\nx-trailer: 1\r\n\r\n" % (len(BODY), BODY)
    with door.connect() as connection:
        connection.sendall(f"{HEAD}{JSON}transfer-encoding: chunked\r\n\r\n".encode() + chunked)
        assert read_answer(connection).status == 200


def test_a_thousand_headers_are_refused_or_read_and_the_next_client_is_served(door: Door) -> None:
    flood = "".join(f"x-{at}:\r\n" for at in range(1_000))
    assert door.raw(f"GET /health HTTP/1.1\r\nhost: x\r\n{flood}\r\n".encode()).status in (200, 431)
    assert door.chat().status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"model":' * 200_000,
        b'{"model":"chat-small","messages":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"model":"chat-small","max_tokens":' + b"9" * 1_000_000 + b"}",
        b'{"model":"chat-small","n":1e999999999}',
        b'{"model":"chat-small","n":-0.0}',
        b'{"' + b"k" * 1_000_000 + b'":1}',
        b'{"model":"chat-small",' + b",".join(b'"model":"x%d"' % at for at in range(50_000)) + b"}",
        b'{"model":"chat-small","messages":[' + b",".join([b"{}"] * 300_000) + b"]}",
        b'"' + b"\\u0000" * 100_000 + b'"',
    ],
)
def test_a_body_that_is_meant_to_burst_a_parser_is_refused(door: Door, body: bytes) -> None:
    answer = door.ask("POST", "/v1/chat/completions", body)
    assert 400 <= answer.status < 500
    assert len(answer.body) < 10_000
    assert all((each or "").isprintable() for each in answer.error().values())


def test_fifty_clients_that_trickle_are_cut_off_while_another_is_served() -> None:
    with open_door(Door(bounds=Bounds(body_s=0.3)), head_s=0.3) as door:
        slow = [door.connect() for _ in range(50)]
        for at, connection in enumerate(slow):
            connection.sendall(b"POST /v1/ch" if at % 2 else f"{HEAD}{JSON}content-length: 100\r\n\r\n{{".encode())
        assert door.chat().status == 200
        for at, connection in enumerate(slow):
            received = connection.recv(65_536)
            assert received == b"" if at % 2 else b" 408 " in received.partition(b"\r\n")[0]
            connection.close()
