"""What the active keeper writes, each thing in one fenced transaction; calls run in threads, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from penstock.adapters.postgresql import crash_points
from penstock.adapters.postgresql.crash_points import Reached, unnoticed
from penstock.adapters.postgresql.inserting import insert_events
from penstock.adapters.postgresql.leading import Leadership, fenced
from penstock.adapters.postgresql.noticing import CHANNEL
from penstock.adapters.postgresql.partitioning import make_partitions
from penstock.adapters.postgresql.summing import window_sums
from penstock.adapters.sql.forgetting import forget_jobs
from penstock.adapters.sql.job_tables import results
from penstock.adapters.sql.jobs import mark_settled, project
from penstock.adapters.sql.keeping_tables import outbox_positions
from penstock.adapters.sql.ledger import IDS_PER_STATEMENT, LedgerReads
from penstock.adapters.sql.tables import epochs, ledger
from penstock.ports import Kept
from penstock.quota.events import FINAL, Event, EventKind, Usage, UsageSource

T = TypeVar("T")
_result = results.c
_row = ledger.c


class OutboxEntry(Protocol):
    """One event of a partition's outbox, as the quota store keeps it."""

    @property
    def id(self) -> str:
        """Grows within the partition."""
        ...

    @property
    def event(self) -> Event:
        """What happened."""
        ...


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A stored result whose usage the quota store has not acknowledged. ``usage`` None: its hold is to be voided."""

    job: str
    organisation: str
    usage: Usage | None
    arguments: dict[str, Any]


class KeeperStore:
    """The ledger and what goes with it, for the one active keeper.

    Args:
        engine: Of an account that may add to the ledger; its sessions have ``leading.session_options``.
        leadership: Decides who is active; its fence is checked in each transaction.
        now_ms: The clock, Unix milliseconds.
        reached: Called with the name of each point in ``crash_points``.

    Each call raises ``Deposed`` if another keeper took over, and ``StoreUnavailable`` without a database.
    """

    def __init__(
        self,
        engine: Engine,
        leadership: Leadership,
        *,
        now_ms: Callable[[], int],
        reached: Reached = unnoticed,
    ) -> None:
        self._engine = engine
        self._leadership = leadership
        self._now_ms = now_ms
        self._reached = reached

    @property
    def fence(self) -> int:
        """The number under which this keeper writes; 0 while it stands by."""
        return self._leadership.fence

    async def take(self) -> bool:
        """Become the active keeper, if there is none."""
        return await asyncio.to_thread(self._leadership.take)

    async def renew(self) -> None:
        """Remain the active keeper."""
        await asyncio.to_thread(self._leadership.renew)

    async def leave(self) -> None:
        """Stand by."""
        await asyncio.to_thread(self._leadership.leave)

    async def drain(self, batches: Mapping[int, Sequence[OutboxEntry]], *, without: Collection[Event] = ()) -> int:
        """See ``penstock.lanes.draining.Books``."""

        def write(connection: Connection) -> int:
            self._reached(crash_points.DRAIN_BEGUN)
            events = [entry.event for entries in batches.values() for entry in entries]
            if without:
                events = [event for event in events if event not in without]
            added = insert_events(connection, events)
            self._reached(crash_points.EVENTS_INSERTED)
            changed = project(connection, events)
            if changed:
                told = text("SELECT pg_notify(:channel, job) FROM unnest(CAST(:jobs AS text[])) AS job")
                connection.execute(told, {"channel": CHANNEL, "jobs": changed})
            _reopen_expired(connection, events)
            self._reached(crash_points.JOBS_PROJECTED)
            self._keep_positions(connection, {partition: entries[-1].id for partition, entries in batches.items()})
            self._reached(crash_points.POSITIONS_KEPT)
            return added

        added = await self._write(write)
        self._reached(crash_points.DRAIN_COMMITTED)
        return added

    async def make_partitions(self) -> list[int]:
        """Make the ledger's next partitions; which months were new."""
        return await self._write(lambda connection: make_partitions(connection, now_ms=self._now_ms()))

    async def forget_jobs(self, *, now_ms: int, kept: Kept) -> int:
        """Delete jobs and results that nobody may ask for any more; how many jobs."""
        return await self._write(lambda connection: forget_jobs(connection, now_ms=now_ms, kept=kept))

    async def epoch(self, organisation: str) -> int:
        """The organisation's last epoch; 0 of one that never had any."""
        statement = select(epochs.c.epoch).where(epochs.c.organisation == organisation)
        return await self._read(lambda connection: connection.execute(statement).scalar() or 0)

    async def keep_epoch(self, organisation: str, epoch: int) -> None:
        """Remember an epoch before it begins, so that it is never used again."""
        row = insert(epochs).values(organisation=organisation, epoch=epoch)
        higher = func.greatest(epochs.c.epoch, row.excluded.epoch)
        statement = row.on_conflict_do_update(index_elements=["organisation"], set_={"epoch": higher})
        await self._write(lambda connection: connection.execute(statement))

    async def newest_ms(self, organisation: str) -> int:
        """When the organisation's newest row occurred; 0 if it has none."""
        return await self._read(lambda connection: LedgerReads(connection).newest_ms(organisation))

    async def window_sums(self, organisation: str, *, since_ms: int) -> dict[tuple[str, int], int]:
        """See ``summing.window_sums``."""
        return await self._read(lambda connection: window_sums(connection, organisation, since_ms=since_ms))

    async def to_be_remembered(self, organisation: str, *, now_ms: int, remember_ms: int) -> list[Event]:
        """See ``LedgerReads.to_be_remembered``."""
        return await self._read(
            lambda connection: LedgerReads(connection).to_be_remembered(
                organisation, now_ms=now_ms, remember_ms=remember_ms
            )
        )

    async def of_reservation(self, organisation: str, reservation: str) -> list[Event]:
        """The ledger's rows of one reservation, in order of time."""
        return await self._read(lambda connection: LedgerReads(connection).of_reservations(organisation, [reservation]))

    async def of_the_same(self, events: Sequence[Event]) -> list[Event]:
        """The ledger's rows of every reservation that some events are of."""
        return await self._read(lambda connection: LedgerReads(connection).of_the_same(events))

    async def unsettled(self, *, finished_before_ms: int, count_max: int) -> list[Unsettled]:
        """Results that the quota store has not acknowledged, oldest first."""
        statement = (
            select(results)
            .where(_result.settled.is_(False), _result.finished_at_ms < finished_before_ms)
            .order_by(_result.finished_at_ms)
            .limit(count_max)
        )

        def read(connection: Connection) -> list[Unsettled]:
            return [
                Unsettled(
                    row.job,
                    row.organisation,
                    None
                    if row.usage_source is None
                    else Usage(
                        row.prompt_tokens, row.completion_tokens, row.cached_tokens, UsageSource(row.usage_source)
                    ),
                    row.arguments,
                )
                for row in connection.execute(statement)
            ]

        return await self._read(read)

    async def mark_settled(self, job: str) -> None:
        """The quota store, or the ledger, has what the result charges."""
        await self._write(lambda connection: mark_settled(connection, job))

    async def reopen_results(self, organisation: str, *, since_ms: int) -> int:
        """See ``penstock.lanes.rebuilding.Books``."""
        has_ended = exists().where(
            _row.organisation == organisation,
            _row.reservation == _result.job,
            _row.kind.in_([kind.value for kind in FINAL]),
        )
        statement = (
            update(results)
            .where(
                _result.organisation == organisation, _result.settled, _result.finished_at_ms >= since_ms, ~has_ended
            )
            .values(settled=False)
        )
        return await self._write(lambda connection: connection.execute(statement).rowcount)

    def _keep_positions(self, connection: Connection, entries: Mapping[int, str]) -> None:
        now_ms = self._now_ms()
        rows = [{"partition": each, "entry": entry, "drained_at_ms": now_ms} for each, entry in entries.items()]
        row = insert(outbox_positions)
        changes = {name: row.excluded[name] for name in ("entry", "drained_at_ms")}
        connection.execute(row.on_conflict_do_update(index_elements=["partition"], set_=changes), rows)

    async def _write(self, change: Callable[[Connection], T]) -> T:
        fence = self._leadership.fence

        def run() -> T:
            with fenced(self._engine, fence) as connection:
                return change(connection)

        return await asyncio.to_thread(run)

    async def _read(self, ask: Callable[[Connection], T]) -> T:
        def run() -> T:
            with self._engine.connect() as connection:
                return ask(connection)

        return await asyncio.to_thread(run)


def _reopen_expired(connection: Connection, events: Iterable[Event]) -> None:
    """Let results be settled again whose reservation expired all the same: the store lost what it acknowledged."""
    expired = [event.reservation for event in events if event.kind is EventKind.EXPIRED]
    for start in range(0, len(expired), IDS_PER_STATEMENT):
        some = _result.job.in_(expired[start : start + IDS_PER_STATEMENT])
        statement = update(results).where(some, _result.settled, _result.usage_source.is_not(None))
        connection.execute(statement.values(settled=False))
