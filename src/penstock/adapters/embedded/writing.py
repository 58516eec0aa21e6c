"""One group's way to the disk: what it carries, and the thread that writes it in one transaction.

A thread of its own, because a commit waits for the disk (5 ms of fsync are usual) and the event loop must not; one
hop for a whole group, where an asynchronous driver would make one for each statement. It keeps its connection, and
gives rows to the driver itself, many in one statement: for SQLAlchemy to do both costs a small group more than its
statements, and each step of a statement makes two threads contend for the interpreter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from queue import SimpleQueue
from threading import Thread

from sqlalchemy import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError

from penstock.adapters.embedded import crash_points
from penstock.adapters.embedded.crash_points import Reached
from penstock.adapters.sql.database import WRITE
from penstock.adapters.sql.jobs import project
from penstock.adapters.sql.rows import (
    DELETE_RECORD,
    INSERT_EVENT,
    UPSERT_BUCKET,
    UPSERT_EPOCH,
    UPSERT_RECORD,
    of_rows,
    to_row,
)
from penstock.quota.events import Event

ROWS_MAX = 16  # in one statement; each number is a statement that the driver keeps prepared


@dataclass(slots=True)
class Group:
    """What one transaction writes: the same instant of every organisation that changed.

    Args:
        events: In the order in which they happened, per organisation.
        kept: (reservation, organisation, record as JSON) of those that need a row now.
        dropped: (reservation,) of those that need theirs no longer.
        buckets: (organisation, limit, level, at_ms).
        epochs: (organisation, epoch).
    """

    events: list[Event] = field(default_factory=list)
    kept: list[tuple[str, str, str]] = field(default_factory=list)
    dropped: list[tuple[str]] = field(default_factory=list)
    buckets: list[tuple[str, str, int, int]] = field(default_factory=list)
    epochs: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Job:
    group: Group
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[str | None]


class GroupWriter:
    """The one thread that writes."""

    def __init__(self, engine: Engine, *, reached: Reached) -> None:
        self._engine = engine
        self._reached = reached
        self._connection: Connection | None = None
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="penstock-group-writer", daemon=True)
        self._thread.start()

    async def write(self, group: Group) -> str | None:
        """Write a group and commit it. Returns what went wrong, since every failure has the same answer: again."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str | None] = loop.create_future()
        self._jobs.put(_Job(group, loop, done))
        return await asyncio.shield(done)

    def close(self) -> None:
        """Let the thread end after what it was given."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            failure: str | None = None
            try:
                self._write(job.group)
            except Exception as error:  # noqa: BLE001 - returned to the committer, which counts and logs it
                failure = str(error.orig if isinstance(error, DBAPIError) else error) or repr(error)
                self._disconnect()
            job.loop.call_soon_threadsafe(_resolve, job.done, failure)
        self._disconnect()

    def _disconnect(self) -> None:
        """Undo what was begun; the next group gets a new connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _write(self, group: Group) -> None:
        reached = self._reached
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(**WRITE)
        with self._connection.begin(), closing(self._connection.connection.cursor()) as cursor:
            reached(crash_points.TRANSACTION_BEGUN)
            _execute(cursor, INSERT_EVENT, [to_row(event) for event in group.events])
            project(self._connection, group.events)
            reached(crash_points.LEDGER_WRITTEN)
            _execute(cursor, DELETE_RECORD, group.dropped)
            _execute(cursor, UPSERT_RECORD, group.kept)
            reached(crash_points.RESERVATIONS_WRITTEN)
            _execute(cursor, UPSERT_BUCKET, group.buckets)
            _execute(cursor, UPSERT_EPOCH, group.epochs)
            reached(crash_points.BUCKETS_WRITTEN)
        reached(crash_points.COMMITTED)


def _execute(cursor: DBAPICursor, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    for first in range(0, len(rows), ROWS_MAX):
        part = rows[first : first + ROWS_MAX]
        cursor.execute(of_rows(statement, len(part)), list(chain.from_iterable(part)))


def _resolve(done: asyncio.Future[str | None], failure: str | None) -> None:
    if not done.done():
        done.set_result(failure)
