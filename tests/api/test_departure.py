"""A client that leaves: its work is cancelled and settled, whatever it was doing."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading

import pytest

from tests.api.door import TOKEN, Door, chat_body, open_door


class Gate:
    """Holds the lane until it is cancelled or opened; made for the server's loop, used from the test's thread."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._future: asyncio.Future[None] | None = None

    def wait(self) -> asyncio.Future[None]:
        self._future = asyncio.get_running_loop().create_future()
        self.reached.set()
        return self._future

    def open(self) -> None:
        assert self._future is not None
        self._future.get_loop().call_soon_threadsafe(self._future.set_result, None)


def gated() -> tuple[Door, Gate]:
    door, gate = Door(), Gate()
    door.lane.pause = gate.wait
    return door, gate


def leave(connection: socket.socket, how: str) -> None:
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_the_work_and_frees_its_hold(how: str, stream: bool) -> None:
    door, gate = gated()
    with open_door(door):
        connection = door.begin(stream=stream)
        assert gate.reached.wait(10)
        assert door.store.inspected().holds
        leave(connection, how)
        assert door.lane.stopped.wait(10)
        record = door.watcher.last()
    assert record.outcome == "client_gone"
    assert record.status == (200 if stream else 499)
    assert not door.store.inspected().holds
    monthly = {limit.limit: limit.used for limit in door.store.inspected().limits}["acme/tokens/month"]
    assert monthly == (11 if stream else 10)


def test_a_client_that_stays_is_answered_though_it_was_watched() -> None:
    door, gate = gated()
    with open_door(door):
        connection = door.begin()
        assert gate.reached.wait(10)
        gate.open()
        answer = connection.recv(65536)
        connection.close()
        assert answer.startswith(b"HTTP/1.1 200")
        assert door.watcher.last().outcome == "ok"


def test_a_client_that_leaves_before_its_body_is_complete_reaches_no_lane() -> None:
    with open_door() as door:
        connection = door.connect()
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
            "content-type: application/json\r\ncontent-length: 100\r\n\r\n{".encode()
        )
        door.watcher.wait_begun(1)
        connection.close()
        assert door.watcher.last().outcome == "client_gone"
        assert not door.lane.seen


def test_a_client_that_stops_reading_stops_the_model_too() -> None:
    """Backpressure: a stream of 200 MB to a client that reads nothing waits in the lane, not in memory."""
    door = Door()
    door.lane.words = ["x" * 100_000] * 2_000
    door.lane.pause = lambda: asyncio.sleep(0)
    with open_door(door):
        connection = door.begin(stream=True)
        first = connection.recv(1024)
        assert first.startswith(b"HTTP/1.1 200")
        leave(connection, "reset")
        assert door.watcher.last().outcome == "client_gone"
    used = {limit.limit: limit.used for limit in door.store.inspected().limits}["acme/tokens/month"]
    assert used < 10 + 200


def test_two_requests_on_one_connection_are_answered_in_order() -> None:
    with open_door() as door:
        connection = door.begin()
        body = json.dumps(chat_body(model="nothing")).encode()
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        door.watcher.last(2)
        answers = b""
        while answers.count(b"HTTP/1.1") < 2:
            answers += connection.recv(65536)
        connection.close()
    assert answers.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 400" in answers
