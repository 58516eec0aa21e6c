"""A migrated database of each kind, and events to fill it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine

from penstock.adapters.postgresql.inserting import insert_events
from penstock.adapters.sql.database import migrate, open_engine, writing
from penstock.adapters.sql.rows import INSERT_EVENT, to_row
from penstock.quota.definitions import Price
from penstock.quota.events import Amount, Charge, Event, EventKind, Usage
from penstock.quota.identity import reservation_id
from tests.adapters.databases import MARCH_MS, Databases
from tests.system.services import PostgreSQL

EventMaker = Callable[..., Event]
EventWriter = Callable[[Sequence[Event]], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database lies."""
    return tmp_path / "penstock.db"


@pytest.fixture
def sqlite(path: Path) -> Iterator[Engine]:
    """An engine on a migrated SQLite database."""
    engine = open_engine(path)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """A server with a migrated template, started for the first test that wants it."""
    server = PostgreSQL(tmp_path_factory.mktemp("postgresql"), "fsync=off")  # to drop a database is to sync it
    server.start()
    databases = Databases(server)
    yield databases
    databases.close()
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on a migrated database, of one kind after the other."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    databases: Databases = request.getfixturevalue("postgresql")
    with databases.fresh() as engine:
        yield engine


@pytest.fixture
def make_event() -> EventMaker:
    """A posted event of 100 + 20 tokens; any field may be given."""

    def make(number: int = 1, at_ms: int = MARCH_MS, **fields: object) -> Event:
        event: dict[str, object] = {
            "kind": EventKind.POSTED,
            "reservation": reservation_id(at_ms, number),
            "organisation": "acme",
            "team": "search",
            "key": "k1",
            "model": "chat-small",
            "lane": "realtime",
            "occurred_at_ms": at_ms,
            "usage": Usage(prompt=100, completion=20, cached=7),
            "charge": Charge(tokens=120, requests=1, cost_nanos=2**52),
            "amounts": (Amount("acme/tokens/month", 662, 120), Amount("acme/usd/month", 662, 2**52)),
            "price": Price(prompt_picos=1, cached_picos=2, completion_picos=3, request_picos=4),
            "tokens_held": 200,
            "job_deadline_ms": at_ms + 600_000,
            "reason": "",
        }
        return Event(**{**event, **fields})  # type: ignore[arg-type]

    return make


def write_ledger(connection: Connection, events: Sequence[Event]) -> None:
    """Put events into the ledger of either kind of database."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(INSERT_EVENT, [to_row(event) for event in events])
    else:
        insert_events(connection, events)


@pytest.fixture
def write(engine: Engine) -> EventWriter:
    """Put events into the ledger."""

    def put(events: Sequence[Event]) -> None:
        with writing(engine) as connection:
            write_ledger(connection, events)

    return put
