"""A migrated database in a temporary directory, and events to fill it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine

from penstock.adapters.sql.database import migrate, open_engine, writing
from penstock.adapters.sql.rows import INSERT_EVENT, to_row
from penstock.quota.definitions import Price
from penstock.quota.events import Amount, Charge, Event, EventKind, Usage
from penstock.quota.identity import reservation_id

MARCH_MS = 1_741_000_000_000  # 2025-03-03

EventMaker = Callable[..., Event]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database lies."""
    return tmp_path / "penstock.db"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    """An engine on the migrated database."""
    engine = open_engine(path)
    migrate(engine)
    yield engine
    engine.dispose()


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


@pytest.fixture
def write(engine: Engine) -> Callable[[Sequence[Event]], None]:
    """Put events into the ledger."""

    def put(events: Sequence[Event]) -> None:
        with writing(engine) as connection:
            connection.exec_driver_sql(INSERT_EVENT, [to_row(event) for event in events])

    return put
