"""Every quota store, under one name each: what the contract's tests are run against."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from penstock.adapters.embedded import open_store
from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.ledger import LedgerReads
from penstock.ports import QuotaStore
from penstock.quota import Event


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


Open = Callable[[Path, StoppedClock], AbstractAsyncContextManager[Backend]]
BACKENDS: dict[str, Open] = {"embedded": embedded}
