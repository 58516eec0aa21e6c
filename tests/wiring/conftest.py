"""A data directory on which a store has served two requests of one organisation: one charged, one open."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from sqlalchemy import text

from penstock.adapters.embedded.restarting import open_store
from penstock.adapters.embedded.store import EmbeddedStore
from penstock.adapters.sql.database import open_engine, writing
from penstock.quota.definitions import Definitions, Key, Kind, Limit, Metric, Model
from penstock.quota.events import Usage
from penstock.quota.identity import reservation_id
from penstock.quota.operations import Lane, Reserve, Reserved, Settle, Settled
from penstock.wiring.places import Places
from penstock.wiring.running import Running, announce

MONTH = "acme/tokens/month"
DEFINITIONS = Definitions(
    limits=(
        Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, cap=1_000_000),
        Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=100_000),
        Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=32),
    ),
    keys={"k1": Key(id="k1", macs=(("ab", 0),))},
    models={"chat-small": Model(name="chat-small", context=8192)},
)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Served:
    """A store in service, and the two requests."""

    places: Places
    store: EmbeddedStore
    charged: str
    still_open: str


async def serve(store: EmbeddedStore, places: Places, *, first: int = 1) -> Served:
    """Charge one request with 30 tokens, and leave one open; ``first`` keeps their ids apart from others'."""
    ids = [reservation_id(now_ms(), number) for number in (first, first + 1)]
    for each in ids:
        reserve = Reserve(
            organisation="acme",
            caller_now_ms=now_ms(),
            reservation=each,
            nonce="n",
            fingerprint="f",
            key="k1",
            key_mac="ab",
            route="chat.completions",
            model="chat-small",
            body_bytes=40,
            outputs_bound=60,
            lane=Lane.REALTIME,
            job_deadline_ms=now_ms() + 600_000,
        )
        reserved = await store.apply(reserve)
        assert isinstance(reserved, Reserved)
    usage = Usage(prompt=20, completion=10)
    settle = Settle(organisation="acme", caller_now_ms=now_ms(), reservation=ids[0], usage=usage)
    settled = await store.apply(settle)
    assert isinstance(settled, Settled)
    return Served(places, store, *ids)


While = Callable[[Callable[[Served], Awaitable[None]]], None]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """An empty data directory."""
    return Places(tmp_path)


@pytest.fixture
def while_serving(places: Places) -> While:
    """Runs a check while the store serves."""

    def run(check: Callable[[Served], Awaitable[None]]) -> None:
        async def within() -> None:
            async with open_store(places.database, {"acme": DEFINITIONS}, version=1, now_ms=now_ms) as store:
                await check(await serve(store, places))

        asyncio.run(within())

    return run


def tamper(places: Places, *statements: str) -> None:
    """Do to the ledger what its triggers refuse."""
    engine = open_engine(places.database)
    with writing(engine) as connection:
        connection.execute(text("DROP TRIGGER ledger_no_update"))
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


class Operations(HTTPServer):
    """An operations port that answers one body to one path, and 503 to all else or while it has none."""

    path = "/audit"
    body: bytes | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answering(BaseHTTPRequestHandler):
    server: Operations

    def do_GET(self) -> None:
        body = self.server.body if self.path == self.server.path else None
        self.send_response(503 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that it overrides
        """Silent."""


@contextmanager
def announced(places: Places) -> Iterator[Operations]:
    """An operations port on a free port, announced in the data directory as a service announces its own."""
    places.create()
    with Operations(("127.0.0.1", 0), _Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        announce(places, Running(pid=os.getpid(), url=server.url, operations_url=server.url))
        yield server
        server.shutdown()
        thread.join()
