"""A simulated model on a thread of its own, so that tests can use any client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from penstock.adapters.simulated_model import Server, Settings

START_S = 20


class Simulated:
    """A running simulated model and what it wrote."""

    def __init__(self, server: Server, log: Path) -> None:
        self.url = server.url
        self.journal = server.journal
        self.log = log

    def lines(self) -> list[dict[str, Any]]:
        """The log's lines; asking for the totals has written all that ended before."""
        self.get("/log")
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def get(self, path: str) -> str:
        with urlopen(self.url + path) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Post JSON; (status, decoded answer)."""
        request = Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
        )
        try:
            with urlopen(request) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def connect(self, path: str, body: Any) -> socket.socket:
        """Send a request and hand over the socket: to read the wire as it is, or to leave."""
        raw = json.dumps(body).encode()
        host, _, port = self.url.removeprefix("http://").partition(":")
        connection = socket.create_connection((host, int(port)), timeout=START_S)
        connection.sendall(
            b"POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            % (path.encode(), len(raw))
            + raw
        )
        return connection


@contextmanager
def running(settings: Settings, log: Path) -> Iterator[Simulated]:
    """Serve on a thread until the end of the block."""
    server = Server(settings, log=log)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(START_S)
        yield Simulated(server, log)
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(START_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_S)
        loop.close()


@pytest.fixture
def simulate(tmp_path: Path) -> Iterator[Callable[..., Simulated]]:
    """Start simulated models with chosen settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            running(Settings(**{"models": ("chat",), **settings}), tmp_path / "produced.jsonl")
        )


@pytest.fixture
def simulated(simulate: Callable[..., Simulated]) -> Simulated:
    """One as fast as possible."""
    return simulate()
