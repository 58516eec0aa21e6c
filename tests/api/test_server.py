"""Starting and stopping: running requests end, and what does not end in time is told so."""

from __future__ import annotations

import socket
import threading

import pytest

from penstock.api.application import application
from penstock.api.server import bind
from penstock.errors import ConfigurationError
from tests.api.door import listening, read_answer
from tests.api.test_departure import gated


def test_a_running_request_is_answered_before_the_service_stops() -> None:
    door, gate = gated()
    with listening(application(door.services())) as (door.port, stop):
        connection = door.begin()
        assert gate.reached.wait(10)
        stopping = threading.Thread(target=stop)
        stopping.start()
        while True:  # until the listener is closed, which is the stop's first step
            try:
                door.connect().close()
            except (ConnectionRefusedError, ConnectionResetError):
                break
        gate.open()
        answer = read_answer(connection)
        connection.close()
        stopping.join()
    assert answer.status == 200
    assert door.watcher.last().outcome == "ok"


def test_a_request_that_does_not_end_in_time_is_told_to_come_again_and_settled() -> None:
    door, gate = gated()
    with listening(application(door.services()), shutdown_s=0.2) as (door.port, stop):
        connection = door.begin()
        assert gate.reached.wait(10)
        stop()
        answer = read_answer(connection)
        connection.close()
    assert (answer.status, answer.error()["code"]) == (503, "stopping")
    assert answer.headers["retry-after"] == "1"
    assert door.lane.stopped.is_set()
    assert not door.store.inspected().holds
    assert door.watcher.last().status == 503


def test_a_stream_that_does_not_end_in_time_ends_with_an_error_and_without_done() -> None:
    door, gate = gated()
    with listening(application(door.services()), shutdown_s=0.2) as (door.port, stop):
        connection = door.begin(stream=True)
        assert gate.reached.wait(10)
        stop()
        answer = read_answer(connection)
        connection.close()
    assert answer.body.rstrip().splitlines()[-1].startswith(b'data: {"error"')
    assert b"[DONE]" not in answer.body
    assert not door.store.inspected().holds


def test_a_taken_port_is_an_error_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as refused:
            bind("127.0.0.1", port)
    assert refused.value.message == (
        f"port: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "stop what listens there, or choose another port"
    )


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1:0: .*; choose another"):
        bind("192.0.2.1", 0)
