"""The client against servers that fail in each way that servers do."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from penstock.adapters.http import HttpClient
from penstock.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from tests.adapters.http.conftest import Run
from tests.adapters.http.servers import Handler, answering, ask, read_request, serving

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


async def exchange(handler: Handler, server: str = "the model server", /, **changes: Any) -> bytes:
    """One request to a server of this kind; its body."""
    client = HttpClient(server=server)
    async with serving(handler) as listening:
        try:
            response = await client.open(ask(listening.port, **changes))
            return await response.read(1000)
        finally:
            await client.close()


def silent_after(start: bytes) -> Handler:
    """Sends ``start``, then nothing."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(start)
        await reader.read()

    return handle


def test_nobody_listens_is_unreachable(run: Run[Any]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else can take the port
        with pytest.raises(UpstreamUnreachable, match="refused"):
            run(HttpClient().open(ask(held.getsockname()[1])))


def test_a_host_that_has_no_address_is_unreachable(run: Run[Any]) -> None:
    with pytest.raises(UpstreamUnreachable):
        run(HttpClient().open(ask(1, url="http://no-such-host.invalid/")))


def test_connect_bound_is_a_timeout_of_phase_connect(run: Run[Any]) -> None:
    async def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = full.getsockname()[1]
            with socket.socket() as first, socket.socket() as second:  # fill the queue of connections
                for filler in (first, second):
                    filler.setblocking(False)
                    filler.connect_ex(("127.0.0.1", port))
                with pytest.raises(UpstreamTimeout) as caught:
                    await HttpClient().open(ask(port, connect_s=0.05))
                assert caught.value.phase == "connect"

    run(main())


@pytest.mark.parametrize(
    ("start", "bounds", "phase"),
    [
        (b"", {"first_byte_s": 0.05}, "first_byte"),
        (b"HTTP/1.1 200 OK\r\n", {"first_byte_s": 0.05}, "first_byte"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", {"between_chunks_s": 0.05}, "between_chunks"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", {"total_s": 0.05}, "total"),
        (b"", {"total_s": 0.05}, "total"),
    ],
    ids=["no byte", "half a head", "silence in the body", "total with a body", "total without"],
)
def test_silence_is_a_timeout_that_names_its_phase(
    run: Run[Any], start: bytes, bounds: dict[str, float], phase: str
) -> None:
    with pytest.raises(UpstreamTimeout) as caught:
        run(exchange(silent_after(start), **bounds))
    assert caught.value.phase == phase


def test_steady_bytes_hold_off_the_bound_between_chunks(run: Run[Any]) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
        for _ in range(8):
            writer.write(b"x")
            await asyncio.wait([asyncio.ensure_future(reader.read())], timeout=0.03)

    assert run(exchange(handle, between_chunks_s=0.15)) == b"x" * 8


def test_a_reader_that_pauses_is_not_mistaken_for_a_silent_server(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 8000000\r\n\r\n" + b"x" * 8_000_000
        async with serving(answering(answer)) as server:
            response = await client.open(ask(server.port, between_chunks_s=0.05))
            await asyncio.wait([asyncio.ensure_future(asyncio.Event().wait())], timeout=0.2)
            size = 0
            async for piece in response.chunks():
                size += len(piece)
            assert size == 8_000_000
            await client.close()

    run(main())


@pytest.mark.parametrize("line", [b"x-pad: " + b"a" * 70_000, b"x-pad: aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 5000])
def test_a_head_without_end_is_refused_before_it_fills_the_memory(run: Run[Any], line: bytes) -> None:
    with pytest.raises(UpstreamBroken, match="head has more than 65536 bytes"):
        run(exchange(silent_after(b"HTTP/1.1 200 OK\r\n" + line)))


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x00garbage",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhi\r\n",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x-pad: " + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"x-pad: aaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 5000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"",
    ],
)
def test_an_answer_that_is_garbage_too_large_or_cut_off_is_broken(run: Run[Any], answer: bytes) -> None:
    with pytest.raises(UpstreamBroken):
        run(exchange(answering(answer, close=True)))


def test_what_arrived_before_the_break_is_handed_out_first(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        start = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
        async with serving(answering(start, close=True)) as server:
            response = await client.open(ask(server.port))
            await server.disconnected.wait()
            chunks = response.chunks()
            assert await anext(chunks) == b"abc"
            with pytest.raises(UpstreamBroken, match="in the middle"):
                await anext(chunks)
            await client.close()

    run(main())


def test_a_kept_connection_that_closes_without_an_answer_is_broken_not_retried(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        requests = 0

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal requests
            await read_request(reader)
            requests += 1
            writer.write(OK)
            await read_request(reader)  # the second one is read, may be carried out, and is never answered
            requests += 1

        async with serving(handle) as server:
            await (await client.open(ask(server.port))).read(10)
            with pytest.raises(UpstreamBroken, match="without an answer"):
                await client.open(ask(server.port))
            assert requests == 2
            await client.close()

    run(main())


def test_a_kept_connection_that_the_server_closed_is_replaced_by_a_fresh_one(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        async with serving(answering(OK, close=True)) as server:
            for count in (1, 2):
                await (await client.open(ask(server.port))).read(10)
                await server.disconnected.wait()
                while client.connections_open:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                assert server.connections == count
            await client.close()

    run(main())


def test_a_kept_connection_that_closed_unnoticed_is_replaced_by_a_fresh_one(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def answer_once() -> None:
                peer, _ = listener.accept()
                with peer:
                    peer.recv(65_536)
                    peer.sendall(OK)

            for _ in range(2):
                serving = threading.Thread(target=answer_once)
                serving.start()
                response = await client.open(ask(port))
                serving.join()  # this thread's event loop has no chance to see the end of the connection
                assert await response.read(10) == b"hi"
            await client.close()

    run(main())


def test_a_kept_connection_is_closed_after_its_time(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient(idle_s=0.05)
        async with serving(answering(OK)) as server:
            await (await client.open(ask(server.port, between_chunks_s=0.02))).read(10)
            await asyncio.wait_for(server.disconnected.wait(), 5)
            await client.close()

    run(main())


def test_a_server_that_keeps_connections_for_a_second_gets_a_fresh_one_each_time(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        answer = b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=1, max=5\r\ncontent-length: 2\r\n\r\nhi"
        async with serving(answering(answer)) as server:
            for _ in range(2):
                await (await client.open(ask(server.port))).read(10)
            assert server.connections == 2
            await client.close()

    run(main())


def test_bytes_that_nobody_asked_for_close_a_kept_connection(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        go = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(OK)
            await go.wait()
            writer.write(OK)
            await reader.read()

        async with serving(handle) as server:
            await (await client.open(ask(server.port))).read(10)
            go.set()
            await asyncio.wait_for(server.disconnected.wait(), 5)
            await client.close()

    run(main())


@pytest.mark.parametrize(
    ("handler", "bounds", "message"),
    [
        (answering(b"", close=True), {}, "the broker closed the connection without an answer"),
        (answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", close=True), {}, "the broker broke off"),
        (silent_after(b""), {"first_byte_s": 0.05}, "the broker did not begin to answer within 0.05 s"),
        (silent_after(OK[:-1]), {"between_chunks_s": 0.05}, "the broker fell silent for 0.05 s"),
        (silent_after(OK[:-1]), {"total_s": 0.05}, "the broker did not finish within 0.05 s"),
        (answering(OK), {"url": "http://no-such-host.invalid/"}, "the broker cannot be reached"),
    ],
)
def test_a_message_names_the_server_as_the_caller_does(
    run: Run[Any], handler: Handler, bounds: dict[str, Any], message: str
) -> None:
    with pytest.raises(UpstreamError, match=f"^{message}"):
        run(exchange(handler, "the broker", **bounds))


def test_no_message_carries_the_credential_or_the_address(run: Run[Any]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(UpstreamError) as caught:
            run(HttpClient().open(ask(held.getsockname()[1])))
    assert "upstream-secret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
