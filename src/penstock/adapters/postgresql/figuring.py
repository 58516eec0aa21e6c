"""What the keeper reads for its figures, and where the active one leaves them for those that stand by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, delete, select
from sqlalchemy.dialects.postgresql import insert

from penstock.adapters.postgresql.leading import fenced
from penstock.adapters.sql.keeping_tables import scaling_figures
from penstock.adapters.sql.queue_figures import PassedRow, open_jobs, passed_since
from penstock.lanes.waiting import OpenJobs

T = TypeVar("T")


class FigureStore:
    """Reads for any keeper, writes for the active one.

    Args:
        engine: As the keeper.
        fence: The number under which this keeper writes, now.

    Each call raises ``StoreUnavailable`` without a database; ``keep`` also ``Deposed``, if another keeper took over.
    """

    def __init__(self, engine: Engine, fence: Callable[[], int]) -> None:
        self._engine = engine
        self._fence = fence

    async def open_jobs(self, *, now_ms: int, oldest_ms: int, width_ms: int) -> list[OpenJobs]:
        """See ``penstock.adapters.sql.queue_figures.open_jobs``."""
        return await self._read(
            lambda connection: open_jobs(connection, now_ms=now_ms, oldest_ms=oldest_ms, width_ms=width_ms)
        )

    async def passed_since(self, *, since_ms: int, width_ms: int) -> list[PassedRow]:
        """See ``penstock.adapters.sql.queue_figures.passed_since``."""
        return await self._read(lambda connection: passed_since(connection, since_ms=since_ms, width_ms=width_ms))

    async def kept(self) -> dict[str, Any]:
        """The figures of each model that were kept last."""
        statement = select(scaling_figures.c.model, scaling_figures.c.figures)
        return await self._read(lambda connection: {row.model: row.figures for row in connection.execute(statement)})

    async def keep(self, figures: Mapping[str, Any]) -> None:
        """Leave the figures of every model; those of models that are gone go too."""
        fence = self._fence()
        rows = [{"model": model, "figures": each} for model, each in figures.items()]
        row = insert(scaling_figures)
        kept = row.on_conflict_do_update(index_elements=["model"], set_={"figures": row.excluded.figures})

        def write() -> None:
            with fenced(self._engine, fence) as connection:
                connection.execute(delete(scaling_figures).where(scaling_figures.c.model.not_in(list(figures))))
                if rows:
                    connection.execute(kept, rows)

        await asyncio.to_thread(write)

    async def _read(self, ask: Callable[[Connection], T]) -> T:
        def run() -> T:
            with self._engine.connect() as connection:
                return ask(connection)

        return await asyncio.to_thread(run)
