"""Confirms of the tests' own publisher, in the orders in which a broker may send them."""

from __future__ import annotations

import socket
import struct
from threading import Thread

import pytest

from tests.system.broker_wire import ACK, END, METHOD, Message, Publisher

pytestmark = pytest.mark.timeout(30)
OPENING = [(10, 10), (10, 30), (10, 41), (20, 11), (85, 11)]


def frame(payload: bytes) -> bytes:
    return struct.pack(">BHI", METHOD, 1, len(payload)) + payload + END


def test_a_later_message_may_be_confirmed_before_all_earlier_ones_together() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def broker() -> None:
        client, _ = listener.accept()
        with client:
            answers = [struct.pack(">HH", *method) for method in OPENING]
            confirms = [struct.pack(">HHQB", *ACK, tag, multiple) for tag, multiple in [(3, 0), (2, 1)]]
            client.sendall(b"".join(frame(payload) for payload in answers + confirms))
            while client.recv(65_536):
                pass

    serving = Thread(target=broker)
    serving.start()
    with listener, Publisher(f"amqp://u:p@127.0.0.1:{listener.getsockname()[1]}/v") as publisher:
        assert publisher.publish([Message(b"")] * 3) == 3
    serving.join()
