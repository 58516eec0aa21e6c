"""What the measuring rests on: the client's connections, the check of answers, CPU time, and the table."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from benchmarks.admission import used_tokens
from benchmarks.cpu import table
from benchmarks.load import Answer, Target, checked, send
from benchmarks.processes import cpu_s, descendants

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n%s\r\nok"


def connections_used(requests: int, *, connections: int, head: bytes = b"") -> int:
    """How many connections the client opened to a server that answers every request with ``ok``."""
    accepted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        try:
            while await reader.readuntil(b"{}"):
                writer.write(ANSWER % head)
                if head:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            target = Target(server.sockets[0].getsockname()[1], "/", {}, {})
            answers = await send(target, requests, connections=connections)
            assert [bytes(answer.body) for answer in checked(answers, events=0)] == [b"ok"] * requests

    asyncio.run(run())
    return accepted


def test_the_client_uses_a_connection_again_as_long_as_the_server_keeps_it() -> None:
    assert connections_used(20, connections=2) == 2


def test_the_client_opens_a_new_connection_where_the_server_closes() -> None:
    assert connections_used(5, connections=1, head=b"connection: close\r\n") == 6


def answer(status: int = 200, body: bytes = b"") -> Answer:
    return Answer(status=status, body=bytearray(body), complete=True)


def test_another_status_than_200_stops_the_run_and_is_shown() -> None:
    with pytest.raises(SystemExit, match=r"429: 1.*too many"):
        checked([answer(), answer(429, b"too many")], events=0)


@pytest.mark.parametrize("body", [b'data: {"a":1}\n\ndata: [DONE]\n\n', b'data: {"a":1}\n\ndata: {"a":2}\n\n'])
def test_a_stream_that_is_short_or_has_no_end_stops_the_run(body: bytes) -> None:
    with pytest.raises(SystemExit, match="2 wanted"):
        checked([answer(body=body)], events=2)


def test_only_admitted_requests_use_tokens() -> None:
    assert used_tokens([answer(body=b'{"usage":{"total_tokens":22}}'), answer(429, b"{}")]) == 22


def test_cpu_time_counts_children_that_run_and_children_that_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.1: pass\n"
    before_s = cpu_s(os.getpid())
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert round(cpu_s(os.getpid()) - before_s, 2) >= 0.09  # /proc counts in hundredths
    with subprocess.Popen([sys.executable, "-c", burn + "print(flush=True)\ninput()"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        assert child.pid in descendants(os.getpid())
        assert cpu_s(child.pid) >= 0.09
        child.stdin.close()


def test_the_table_gives_medians_by_cost_and_their_ratio_to_the_floor() -> None:
    figures = {"penstock": [400.0, 300.0, 350.0], "nginx": [100.0, 90.0, 110.0]}
    rows = table("t", figures, floor="nginx", store="in its process", each=10)[4:]
    assert rows == [
        "| nginx | 10.0 | 9.0 to 11.0 | 1.0 | none |",
        "| penstock | 35.0 | 30.0 to 40.0 | 3.5 | in its process |",
        "",
    ]
