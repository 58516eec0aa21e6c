"""A group is written whole, however many statements that takes; what cannot be written is told, and ends no writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from penstock.adapters.embedded.crash_points import unnoticed
from penstock.adapters.embedded.writing import ROWS_MAX, ROWS_STEP, Group, GroupWriter
from penstock.adapters.sql.database import migrate, open_engine
from penstock.quota import Charge, Event, EventKind, Price, Usage
from penstock.quota.identity import reservation_id

NOW_MS = 1_700_000_000_000


def _event(reservation: str) -> Event:
    return Event(
        kind=EventKind.POSTED,
        reservation=reservation,
        organisation="acme",
        team=None,
        key="k1",
        model="chat-small",
        lane="realtime",
        occurred_at_ms=NOW_MS,
        usage=Usage(1, 1),
        charge=Charge(2, 1, 3),
        amounts=(),
        price=Price(),
        tokens_held=2,
        job_deadline_ms=NOW_MS,
    )


@asynccontextmanager
async def _writer(engine: Engine) -> AsyncIterator[GroupWriter]:
    migrate(engine)
    writer = GroupWriter(engine, reached=unnoticed)
    try:
        yield writer
    finally:
        await asyncio.to_thread(writer.close)
        engine.dispose()


@pytest.mark.parametrize("count", [1, ROWS_STEP - 1, ROWS_STEP, ROWS_STEP + 1, ROWS_MAX, ROWS_MAX + ROWS_STEP + 1])
def test_a_group_of_any_size_is_in_the_ledger_in_its_order(tmp_path: Path, count: int) -> None:
    wanted = [reservation_id(NOW_MS, number) for number in range(count)]

    async def test() -> None:
        engine = open_engine(tmp_path / "penstock.db")
        async with _writer(engine) as writer:
            assert await writer.write(Group(events=[_event(each) for each in wanted])) is None
            with engine.connect() as connection:
                found = connection.execute(text("SELECT reservation FROM ledger ORDER BY rowid")).scalars().all()
        assert found == wanted

    asyncio.run(test())


def test_an_event_that_makes_no_row_is_told_and_the_next_group_is_written(tmp_path: Path) -> None:
    async def test() -> None:
        engine = open_engine(tmp_path / "penstock.db")
        async with _writer(engine) as writer:
            assert "ValueError" in (await writer.write(Group(events=[_event("no time in it")])) or "")
            assert await writer.write(Group(events=[_event(reservation_id(NOW_MS, 1))])) is None

    asyncio.run(test())
