"""Administration as the service offers it: the records in the database, and the quota told of each change at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine

from penstock.adapters.sql.administering import SqlRecords
from penstock.adapters.sql.database import translated, writing
from penstock.adapters.sql.keys import raise_version
from penstock.errors import StoreUnavailable
from penstock.lanes.administering import By, Erased, Records
from penstock.ports import QuotaStore
from penstock.wiring.erasing import erase
from penstock.wiring.governing import Governing, log

T = TypeVar("T")


class SqlAdministration:
    """``penstock.lanes.administering.Administration`` of one process.

    Args:
        shards: How many work queues each model has; a new organisation gets one of them.
    """

    def __init__(self, engine: Engine, governing: Governing, quota: QuotaStore, *, shards: int) -> None:
        self._engine = engine
        self._governing = governing
        self._quota = quota
        self._shards = shards

    async def read(self, ask: Callable[[Records], T]) -> T:
        """See ``Administration``, as the next two."""

        def run() -> T:
            with translated(), self._engine.connect() as connection:
                return ask(SqlRecords(connection, shards=self._shards))

        return await asyncio.to_thread(run)

    async def change(self, do: Callable[[Records], T]) -> T:
        """Change the records, then tell the quota; it learns of it a little later if it is away now."""

        def run() -> T:
            with translated(), writing(self._engine) as connection:
                raise_version(connection)  # first: whoever else changes anything waits here
                return do(SqlRecords(connection, shards=self._shards))

        done = await asyncio.to_thread(run)
        await self._tell()
        return done

    async def erase(self, organisation: str, job: str | None, by: By) -> Erased:
        """Remove what is stored."""
        done = await erase(self._engine, self._quota, organisation, job, by)
        await self._tell()
        return done

    async def _tell(self) -> None:
        try:
            await self._governing.refresh(self._quota)
        except StoreUnavailable as error:  # the change is made, and `Governing.watch` goes on trying
            log.warning("a change waits for the quota store", extra={"why": error.message})
