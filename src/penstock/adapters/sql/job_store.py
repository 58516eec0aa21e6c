"""``penstock.ports.Jobs`` and ``WorkQueue`` on SQLite: each call runs in a thread, so that the event loop never waits.

Who waits for a job is told within this process: by ``tell``, after each commit that may have changed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine, delete, insert, select

from penstock.adapters.sql.database import translated, writing
from penstock.adapters.sql.forgetting import forget_jobs
from penstock.adapters.sql.job_tables import queued_jobs
from penstock.adapters.sql.jobs import (
    get_job,
    get_result,
    last_attempt,
    list_jobs,
    mark_settled,
    store_result,
    unsettled_answers,
)
from penstock.adapters.sql.ledger import LedgerReads
from penstock.ports import Attempt, JobQuery, Kept, QueuedJob, StoredJob, StoredResult
from penstock.quota.events import Event

T = TypeVar("T")
_queued = queued_jobs.c


class Watches:
    """Who waits for which job, in this process."""

    def __init__(self) -> None:
        self._watching: dict[str, set[Watch]] = {}

    def tell(self, job: str) -> None:
        """The job may have changed. On the event loop."""
        for watch in self._watching.get(job, ()):
            watch.happened.set()

    @contextmanager
    def watch(self, job: str) -> Iterator[Watch]:
        """See ``penstock.ports.Jobs.watch``."""
        watch = Watch()
        self._watching.setdefault(job, set()).add(watch)
        try:
            yield watch
        finally:
            self._watching[job].discard(watch)
            if not self._watching[job]:
                del self._watching[job]


class Watch:
    """See ``penstock.ports.JobWatch``."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()

    async def changed(self, wait_s: float) -> None:
        """Return once told, or after ``wait_s``."""
        try:
            async with asyncio.timeout(wait_s):
                await self.happened.wait()
        except TimeoutError:
            return
        self.happened.clear()


class SqlJobs(Watches):
    """Jobs, results and the queue in one database file."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    async def get(self, organisation: str, job: str) -> StoredJob | None:
        """See ``penstock.ports.Jobs``, as the next two."""
        return await self._read(lambda connection: get_job(connection, organisation, job))

    async def list(self, query: JobQuery) -> Sequence[StoredJob]:
        """A page."""
        return await self._read(lambda connection: list_jobs(connection, query))

    async def last_attempt(self, organisation: str, prefix: str) -> Attempt | None:
        """Of an idempotency key."""
        return await self._read(lambda connection: last_attempt(connection, organisation, prefix))

    async def put(self, job: str, organisation: str, model: str, message: bytes) -> QueuedJob:
        """See ``penstock.ports.WorkQueue``, as all that follow."""
        row = {"job": job, "organisation": organisation, "model": model, "message": message.decode()}

        def add(connection: Connection) -> QueuedJob:
            place = connection.execute(insert(queued_jobs).values(row).returning(_queued.place)).scalar_one()
            return QueuedJob(place, job, organisation, model)

        return await self._write(add)

    async def waiting(self) -> Sequence[QueuedJob]:
        """All jobs in the queue."""
        columns = (_queued.place, _queued.job, _queued.organisation, _queued.model)
        statement = select(*columns).order_by(_queued.place)
        return await self._read(lambda connection: [QueuedJob(*row) for row in connection.execute(statement)])

    async def message(self, job: str) -> bytes | None:
        """What was put."""
        statement = select(_queued.message).where(_queued.job == job)
        found: str | None = await self._read(lambda connection: connection.execute(statement).scalar())
        return None if found is None else found.encode()

    async def result(self, job: str) -> StoredResult | None:
        """The result that won."""
        return await self._read(lambda connection: get_result(connection, job))

    async def store(self, result: StoredResult) -> StoredResult:
        """Keep a result unless there is one."""

        def keep(connection: Connection) -> StoredResult:
            store_result(connection, result)
            kept = get_result(connection, result.job)
            assert kept is not None
            return kept

        kept = await self._write(keep)
        self.tell(result.job)
        return kept

    async def mark_settled(self, job: str) -> None:
        """See ``penstock.ports.Answers``, as the next two."""
        await self._write(lambda connection: mark_settled(connection, job))

    async def events(self, organisation: str, reservation: str) -> Sequence[Event]:
        """What the ledger has of a reservation."""
        return await self._read(lambda connection: LedgerReads(connection).of_reservations(organisation, [reservation]))

    async def unsettled(self) -> Sequence[StoredResult]:
        """Answers of an earlier process."""
        return await self._read(unsettled_answers)

    async def remove(self, job: str) -> None:
        """Take a job out of the queue; its result is settled."""

        def end(connection: Connection) -> None:
            mark_settled(connection, job)
            connection.execute(delete(queued_jobs).where(_queued.job == job))

        await self._write(end)
        self.tell(job)

    async def forget(self, *, now_ms: int, kept: Kept) -> int:
        """Delete what is due."""
        return await self._write(lambda connection: forget_jobs(connection, now_ms=now_ms, kept=kept))

    async def _read(self, ask: Callable[[Connection], T]) -> T:
        def run() -> T:
            with translated(), self._engine.connect() as connection:
                return ask(connection)

        return await asyncio.to_thread(run)

    async def _write(self, change: Callable[[Connection], T]) -> T:
        def run() -> T:
            with translated(), writing(self._engine) as connection:
                return change(connection)

        return await asyncio.to_thread(run)
