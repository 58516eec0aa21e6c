"""Every quota store, under one name each: what the contract's tests are run against."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from penstock.adapters.embedded import open_store
from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.library import load_library
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.redis.store import RedisStore
from penstock.adapters.redis.store import open_store as open_redis_store
from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.ledger import LedgerReads
from penstock.ports import QuotaStore
from penstock.quota import Call, Event
from tests.adapters.redis.clocked import CLOCKED, set_time
from tests.system.services import Redis

A = TypeVar("A")


@dataclass(slots=True)
class StoppedClock:
    """Stands until it is set, Unix milliseconds."""

    now_ms: int = 0


@dataclass(frozen=True, slots=True)
class Backend:
    """A store without organisations, and what its ledger has when everything has drained into it."""

    store: QuotaStore
    drained: Callable[[], AbstractAsyncContextManager[list[Event]]]


@asynccontextmanager
async def embedded(place: Path, clock: StoppedClock) -> AsyncIterator[Backend]:
    """The model in process, on SQLite."""
    path = place / "penstock.db"

    async with open_store(path, {}, version=1, now_ms=lambda: clock.now_ms) as store:

        @asynccontextmanager
        async def drained() -> AsyncIterator[list[Event]]:
            async with store.unwritten() as unwritten:
                engine = open_engine(path)
                with engine.connect() as connection:
                    written = list(LedgerReads(connection).events())
                engine.dispose()
                yield written + unwritten

        yield Backend(store, drained)


@dataclass(slots=True)
class _Clocked:
    """A store in Redis whose library is told the time before each call."""

    store: RedisStore
    client: RedisClient
    clock: StoppedClock

    async def apply(self, call: Call[A]) -> A:
        await self.client.ask(set_time(self.clock.now_ms))
        return await self.store.apply(call)


@asynccontextmanager
async def redis(place: Path, clock: StoppedClock) -> AsyncIterator[Backend]:
    """The function library in a Redis of its own."""
    service = Redis(place)
    client, outbox = RedisClient(read_address(service.url)), Outbox(read_address(service.url))
    try:
        service.start()
        await load_library(client, source=CLOCKED)
        async with open_redis_store(service.url, tells_again=False) as store:  # histories forget on purpose

            @asynccontextmanager
            async def drained() -> AsyncIterator[list[Event]]:
                found = await outbox.read(count_max=100_000)
                yield [entry.event for entries in found.values() for entry in entries]

            yield Backend(_Clocked(store, client, clock), drained)
    finally:
        await outbox.close()
        await client.close()
        service.stop()


Open = Callable[[Path, StoppedClock], AbstractAsyncContextManager[Backend]]
BACKENDS: dict[str, Open] = {"embedded": embedded, "redis": redis}
