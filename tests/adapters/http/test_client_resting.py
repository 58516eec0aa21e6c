"""The client against servers that say they keep a connection, and end it after an answer in chunks."""

from __future__ import annotations

import asyncio
from typing import Any

from penstock.adapters.http import HttpClient
from tests.adapters.http.conftest import Run
from tests.adapters.http.servers import Server, ask, read_request, serving

OK = b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=5, max=100\r\ncontent-length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=5, max=100\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
A_MOMENT_S = 0.002


class Ending:
    """Answers; if it ``ends``, then each connection a moment after its answer in chunks, as llama.cpp's server does."""

    def __init__(self, *, ends: bool, answer: bytes = CHUNKED) -> None:
        self.ends, self.answer = ends, answer

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(self.answer)
            if self.ends and self.answer is CHUNKED:
                asyncio.get_running_loop().call_later(A_MOMENT_S, writer.transport.abort)


async def asked(client: HttpClient, server: Server, *, times: int) -> int:
    """Ask again as soon as the answer is whole; how many connections that took."""
    before = server.connections
    for _ in range(times):
        assert await (await client.open(ask(server.port))).read(10) == b"hi"
    return server.connections - before


async def trusted(client: HttpClient, server: Server) -> None:
    """Ask until a connection is used again after an answer in chunks."""
    async with asyncio.timeout(10):
        while await asked(client, server, times=1):
            pass


def test_no_request_is_written_to_a_connection_that_is_about_to_end(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        async with serving(Ending(ends=True)) as server:
            assert await asked(client, server, times=20) == 20
            await client.close()

    run(main())


def test_a_connection_that_outlived_its_rest_shows_that_the_server_keeps_them(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient(rest_s=0.05)
        async with serving(Ending(ends=False)) as server:
            assert await asked(client, server, times=2) == 2
            await trusted(client, server)
            assert await asked(client, server, times=20) == 0
            await client.close()

    run(main())


def test_a_server_that_ended_one_too_soon_is_not_trusted_any_more(run: Run[Any]) -> None:
    async def main() -> None:
        client, handle = HttpClient(rest_s=0.5, idle_max=1), Ending(ends=False)
        async with serving(handle) as server:
            await trusted(client, server)
            handle.ends = True
            assert await asked(client, server, times=1) == 0
            async with asyncio.timeout(10):
                for _ in iter(lambda: client.connections_open, 0):
                    await asyncio.sleep(0)
            handle.ends = False
            assert await asked(client, server, times=2) == 2
            await client.close()

    run(main())


def test_an_answer_of_known_length_needs_no_rest(run: Run[Any]) -> None:
    async def main() -> None:
        client = HttpClient()
        async with serving(Ending(ends=True, answer=OK)) as server:
            assert await asked(client, server, times=20) == 1
            await client.close()

    run(main())
