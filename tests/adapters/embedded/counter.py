"""An organisation under eight limits, in an embedded store on a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text

from penstock.adapters.embedded import EmbeddedStore, open_store
from penstock.adapters.embedded.committing import CommitCounts
from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.ledger import LedgerReads
from penstock.lanes.audit import Difference, audit
from penstock.quota import (
    Definitions,
    Event,
    Inspect,
    Inspected,
    Key,
    Kind,
    Lane,
    Limit,
    Metric,
    Model,
    Price,
    Reserve,
    Settle,
    Sweep,
    Swept,
    Touch,
    Usage,
    Void,
    reservation_id,
)

START_MS = 1_741_000_000_000
MINUTE_MS = 60_000
DAY_MS = 86_400_000


def _limit(owner: str, metric: Metric, kind: Kind, cap: int, period_ms: int = 0) -> Limit:
    return Limit(owner=owner, metric=metric, kind=kind, cap=cap, period_ms=period_ms)


ACME = Definitions(
    limits=(
        _limit("acme", Metric.TOKENS, Kind.RATE, 1_000_000, MINUTE_MS),
        _limit("acme", Metric.REQUESTS, Kind.STRICT_RATE, 10_000, MINUTE_MS),
        _limit("acme", Metric.TOKENS, Kind.WINDOW, 100_000_000),
        _limit("acme", Metric.COST, Kind.WINDOW, 2**52),
        _limit("acme", Metric.CONCURRENCY, Kind.CONCURRENCY, 5_000),
        _limit("acme:team:search", Metric.TOKENS, Kind.WINDOW, 50_000_000, DAY_MS),
        _limit("acme:key:k1", Metric.REQUESTS, Kind.WINDOW, 1_000_000, DAY_MS),
        _limit("acme:key:k1", Metric.TOKENS, Kind.RATE, 1_000_000, MINUTE_MS),
    ),
    keys={"k1": Key(id="k1", team="search", macs=(("aa", 0),))},
    models={"m": Model(name="m", context=8192, price=Price(prompt_picos=150_000, completion_picos=600_000))},
)


class Counter:
    """Calls with everything but the point filled in; a number names a reservation."""

    def __init__(self, path: Path, clock: Callable[[], int] | None = None) -> None:
        self.path = path
        self._clock = clock
        self._stands_at_ms = START_MS
        self.commits = CommitCounts()
        self.store: EmbeddedStore

    @property
    def now_ms(self) -> int:
        """The clock, Unix milliseconds: the one given, or one that stands until it is set."""
        return self._stands_at_ms if self._clock is None else self._clock()

    @now_ms.setter
    def now_ms(self, now_ms: int) -> None:
        self._stands_at_ms = now_ms

    @asynccontextmanager
    async def opened(self, definitions: Definitions = ACME, **options: Any) -> AsyncIterator[EmbeddedStore]:
        """The store on the database, open for the block; its first commit is done."""
        self.commits = CommitCounts()
        async with open_store(
            self.path,
            {"acme": definitions},
            version=1,
            now_ms=lambda: self.now_ms,
            observer=self.commits,
            **options,
        ) as self.store:
            await self.sweep()
            self.commits.groups = 0
            yield self.store

    async def reserve(self, number: int | str, **fields: Any) -> Any:
        """Hold 300 prompt bytes and 200 outputs for the reservation of this number."""
        call: dict[str, Any] = {
            "organisation": "acme",
            "caller_now_ms": self.now_ms,
            "reservation": name(number),
            "nonce": "n",
            "fingerprint": "f",
            "key": "k1",
            "key_mac": "aa",
            "route": "chat.completions",
            "model": "m",
            "body_bytes": 300,
            "outputs_bound": 200,
            "lane": Lane.REALTIME,
            "job_deadline_ms": self.now_ms + 600_000,
        }
        return await self.store.apply(Reserve(**{**call, **fields}))

    async def settle(self, number: int | str, usage: Usage | None = None) -> Any:
        """Settle with 100 + 50 tokens, or with ``usage``."""
        call = Settle(
            organisation="acme",
            caller_now_ms=self.now_ms,
            reservation=name(number),
            usage=usage or Usage(100, 50),
        )
        return await self.store.apply(call)

    async def void(self, number: int | str) -> Any:
        """Void it."""
        call = Void(organisation="acme", caller_now_ms=self.now_ms, reservation=name(number), reason="test")
        return await self.store.apply(call)

    async def touch(self, number: int | str, prompt: int, completion: int) -> Any:
        """Record progress."""
        call = Touch(
            organisation="acme",
            caller_now_ms=self.now_ms,
            reservation=name(number),
            prompt=prompt,
            completion=completion,
        )
        return await self.store.apply(call)

    async def sweep(self) -> Swept:
        """Expire what is due."""
        answer = await self.store.apply(Sweep(organisation="acme", caller_now_ms=self.now_ms, count_max=10_000))
        assert isinstance(answer, Swept)
        return answer

    async def inspect(self) -> Inspected:
        """Every limit and hold."""
        answer = await self.store.apply(Inspect(organisation="acme", caller_now_ms=self.now_ms))
        assert isinstance(answer, Inspected)
        return answer

    async def differences(self) -> list[Difference]:
        """Counters and holds against the ledger, with what is on its way to it."""
        async with self.store.unwritten() as unwritten:
            return audit(await self.inspect(), window_sums=self._sums(), unwritten=unwritten, rows=self.ledger())

    def _sums(self) -> dict[tuple[str, int], int]:
        engine = open_engine(self.path)
        with engine.connect() as connection:
            sums = LedgerReads(connection).window_sums("acme")
        engine.dispose()
        return sums

    def ledger(self) -> list[Event]:
        """What another process reads of the ledger now."""
        engine = open_engine(self.path)
        with engine.connect() as connection:
            events = list(LedgerReads(connection).events())
        engine.dispose()
        return events

    def rows(self, table: str) -> int:
        """How many rows another process sees in a table."""
        engine = open_engine(self.path)
        with engine.connect() as connection:
            count: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
        engine.dispose()
        return count


def name(number: int | str) -> str:
    """The reservation of this number; a whole id stays what it is."""
    return number if isinstance(number, str) else reservation_id(START_MS, number)


def used(inspected: Inspected, limit: str) -> int:
    """What one limit has used."""
    return next(each.used for each in inspected.limits if each.limit == limit)


def held(inspected: Inspected) -> dict[str, int]:
    """What limits hold, those that hold nothing left out."""
    return {each.limit: each.held for each in inspected.limits if each.held}


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run an asynchronous test to its end."""

    async def main() -> None:
        await test()

    asyncio.run(main())
