"""The client against servers that behave well: what is sent, what is read, which connections are kept."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from penstock.adapters.http import HttpClient
from penstock.adapters.tls import Tls
from penstock.errors import UpstreamUnreachable
from tests.adapters.http.conftest import Run
from tests.adapters.http.servers import answering, ask, read_request, serving

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-Many: a\r\nx-many: b\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n"


def test_request_carries_target_host_headers_and_body(run: Run[Any]) -> None:
    async def main() -> None:
        seen = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await read_request(reader))
            writer.write(OK)

        client = HttpClient()
        async with serving(handle) as server:
            response = await client.open(ask(server.port, url=f"http://127.0.0.1:{server.port}/v1/x?y=1"))
            assert (response.status, await response.read(100)) == (200, b"hi")
            assert response.headers == {"content-length": "2", "x-many": "a, b"}
            head, body = seen[0]
            assert head.splitlines() == [
                "POST /v1/x?y=1 HTTP/1.1",
                f"host: 127.0.0.1:{server.port}",
                "authorization: Bearer upstream-secret",
                "content-type: application/json",
                "content-length: 7",
                "",
            ]
            assert body == b'{"a":1}'
            await client.close()

    run(main())


def test_a_body_larger_than_one_write_arrives_whole(run: Run[Any]) -> None:
    async def main() -> None:
        sizes = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sizes.append(len((await read_request(reader))[1]))
            writer.write(OK)

        client = HttpClient()
        async with serving(handle) as server:
            response = await client.open(ask(server.port, body=b"x" * 3_000_000))
            assert await response.read(100) == b"hi"
        assert sizes == [3_000_000]
        await client.close()

    run(main())


@pytest.mark.parametrize("answer", [OK, CHUNKED])
def test_one_connection_serves_requests_one_after_another(run: Run[Any], answer: bytes) -> None:
    async def main() -> None:
        client = HttpClient(rest_s=0.0)
        async with serving(answering(answer)) as server:
            for _ in range(3):
                response = await client.open(ask(server.port))
                assert await response.read(100) in (b"hi", b"abcde")
            assert server.connections == 1
            await client.close()

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
    ],
    ids=["asked to close", "HTTP/1.0", "more than was asked for"],
)
def test_connection_is_not_used_again_where_the_answer_forbids_it(run: Run[Any], answer: bytes) -> None:
    async def main() -> None:
        client = HttpClient()
        async with serving(answering(answer)) as server:
            for _ in range(2):
                response = await client.open(ask(server.port))
                assert await response.read(100) == b"hi"
            assert server.connections == 2
            await client.close()

    run(main())


def test_requests_at_once_use_a_connection_each_up_to_the_bound(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient(connections_max=2)
        silent = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            await silent.wait()
            writer.write(OK)

        async with serving(handle) as server:
            tasks = [asyncio.create_task(client.open(ask(server.port))) for _ in range(3)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            with pytest.raises(UpstreamUnreachable, match="all 2 connections"):
                done.pop().result()
            silent.set()
            for task in tasks[:2]:
                assert await (await task).read(100) == b"hi"
            await client.close()

    run(main())


def test_interim_answers_are_skipped(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        hints = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
        async with serving(answering(hints + OK)) as server:
            response = await client.open(ask(server.port))
            assert (response.status, await response.read(100)) == (200, b"hi")
            assert "link" not in response.headers
            await client.close()

    run(main())


def test_body_without_a_length_ends_with_the_connection(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        async with serving(answering(b"HTTP/1.1 200 OK\r\n\r\nall of it", close=True)) as server:
            response = await client.open(ask(server.port))
            assert await response.read(100) == b"all of it"
            await client.close()

    run(main())


def test_closing_an_answer_early_disconnects_the_server(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await reader.read()

        async with serving(handle) as server:
            response = await client.open(ask(server.port))
            assert await anext(response.chunks()) == b"abc"
            response.close()
            response.close()
            await server.disconnected.wait()
            await client.close()

    run(main())


def test_cancelling_the_wait_for_an_answer_disconnects_the_server(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        arrived = asyncio.Event()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            arrived.set()
            await reader.read()

        async with serving(handle) as server:
            task = asyncio.create_task(client.open(ask(server.port)))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await server.disconnected.wait()
            await client.close()

    run(main())


def test_a_slow_reader_pauses_the_server(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        sent = 0
        blocked = asyncio.Event()
        total = 64 * 1024 * 1024

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await read_request(reader)
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {total}\r\n\r\n".encode())
            piece = b"x" * 65_536
            while sent < total:
                writer.write(piece)
                sent += len(piece)
                if writer.transport.get_write_buffer_size() > 1_000_000:
                    blocked.set()
                await writer.drain()

        async with serving(handle) as server:
            response = await client.open(ask(server.port))
            writing = asyncio.create_task(blocked.wait())
            await asyncio.wait([writing], timeout=0.3)
            assert sent < total
            writing.cancel()
            size = 0
            async for piece in response.chunks():
                size += len(piece)
            assert size == total
            await client.close()

    run(main())


def test_certificate_of_the_given_authority_is_trusted_and_others_are_not(run: Run[Any], tmp_path: Path) -> None:
    authority = trustme.CA()
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def main() -> None:
        async with serving(answering(OK), context) as server:
            request = ask(server.port, url=f"https://localhost:{server.port}/v1/chat/completions")
            trusting = HttpClient(tls={f"https://localhost:{server.port}": Tls(ca=ca_file)})
            for _ in range(2):
                response = await trusting.open(request)
                assert await response.read(100) == b"hi"
            assert server.connections == 1
            await trusting.close()
            doubting = HttpClient()
            with pytest.raises(UpstreamUnreachable, match="certificate is not trusted"):
                await doubting.open(request)
            other_name = ask(server.port, url=f"https://127.0.0.1:{server.port}/")
            misled = HttpClient(tls={f"https://127.0.0.1:{server.port}": Tls(ca=ca_file)})
            with pytest.raises(UpstreamUnreachable, match="certificate is not trusted"):
                await misled.open(other_name)

    run(main())


@pytest.mark.parametrize("url", ["ftp://x/", "/v1", "http://u:p@x/", "http://x/a b", "http://x/\r\nevil: 1"])
def test_url_that_is_no_plain_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the URL"):
        asyncio.run(HttpClient().open(ask(0, url=url)))


def test_header_with_a_line_break_is_refused(run: Run[Any]) -> None:
    with pytest.raises(ValueError, match="line break"):
        run(HttpClient().open(ask(1, headers={"authorization": "Bearer a\r\nevil: 1"})))
