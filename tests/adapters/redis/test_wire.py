"""A wire whose event loop was held up reads what has arrived before it says that nothing has."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from penstock.adapters.redis.client import pack
from penstock.adapters.redis.wire import Wire, WireLost
from tests.system.services import Redis

BOUND_S = 0.05


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_loop_that_was_held_up_does_not_blame_redis(
    new_loop: Callable[[], asyncio.AbstractEventLoop], service: Redis
) -> None:
    async def run() -> bytes:
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(lambda: Wire(bound_s=BOUND_S), "127.0.0.1", service.port)
        here, there = socket.socketpair()
        loop.add_reader(here, hold_up, here)
        reply = wire.send(pack("PING"))
        loop.call_soon(there.send, b".")  # after the write; Redis answers while this is being read
        try:
            found: bytes = await reply
            return found
        finally:
            wire.close()
            loop.remove_reader(here)
            here.close()
            there.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(run()) == b"PONG"


def hold_up(readable: socket.socket) -> None:
    """Keep the loop busy for longer than a reply may take."""
    readable.recv(1)
    until_s = time.monotonic() + 2 * BOUND_S
    while time.monotonic() < until_s:
        pass


def test_a_reply_that_does_not_come_ends_the_wire_and_every_wait_on_it(service: Redis) -> None:
    async def run() -> list[object]:
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(lambda: Wire(bound_s=BOUND_S), "127.0.0.1", service.port)
        service.freeze()
        waits = [wire.send(pack("PING")) for _ in range(3)]
        found: list[object] = await asyncio.gather(*waits, return_exceptions=True)
        service.thaw()
        assert wire.is_lost
        return [*found, *await asyncio.gather(wire.send(pack("PING")), return_exceptions=True)]

    assert [type(each) for each in asyncio.run(run())] == [WireLost] * 4
