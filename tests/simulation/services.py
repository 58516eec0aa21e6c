"""The broker and the database of a simulated system, and the ways to them: messages are lost, late and doubled.

They do what the real ones promise and no more: a queue keeps what it confirmed until it is acknowledged, and brings it
again otherwise; a transaction is carried out whole or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from penstock.errors import Deposed, StoreUnavailable
from penstock.lanes.jobs import JobResult
from penstock.ports import Kept
from penstock.quota import Event, EventKind, Usage
from penstock.quota.events import FINAL
from tests.quota import invariants
from tests.simulation.scheduling import Clock, Faults, Life
from tests.simulation.store import Entry

T = TypeVar("T")
CONFIRM_S = 2.0


@dataclass(slots=True)
class Delivery:
    """A message with a consumer."""

    body: Any
    of: Life
    queue: WorkQueue

    def acknowledge(self) -> None:
        """Done with it; the broker may not hear that."""
        faults = self.of.faults
        self.of.check()
        if self in self.queue.unacknowledged:
            self.queue.unacknowledged.remove(self)
            if faults.happens(faults.loss_share):
                self.queue.put(self.body)


class WorkQueue:
    """A quorum queue: what it confirmed it has, and it brings what was not acknowledged again."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.ready: list[Any] = []
        self.unacknowledged: list[Delivery] = []
        self._waiting: list[asyncio.Future[None]] = []

    def put(self, body: Any) -> None:
        """It is in the queue."""
        self.ready.append(body)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    async def publish(self, life: Life, body: Any) -> bool:
        """Whether the broker confirmed. If not, it may have the message all the same."""
        faults = self.faults
        await life.wait(faults.delay_s())
        if faults.happens(faults.loss_share):
            await life.wait(CONFIRM_S)
            return False
        self.put(body)
        if faults.happens(faults.loss_share / 2):
            self.put(body)
        if faults.happens(faults.loss_share):
            await life.wait(CONFIRM_S)
            return False
        await life.wait(faults.delay_s())
        return True

    async def get(self, life: Life) -> Delivery:
        """The next message, in any order; back in the queue if the process dies."""
        while not self.ready:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
            life.check()
        at = self.faults.random.randrange(len(self.ready)) if self.faults.is_on else 0
        delivery = Delivery(self.ready.pop(at), life, self)
        self.unacknowledged.append(delivery)
        life.at_end.append(lambda: self._return(delivery))
        return delivery

    def _return(self, delivery: Delivery) -> None:
        if delivery in self.unacknowledged:
            self.unacknowledged.remove(delivery)
            self.put(delivery.body)


@dataclass(slots=True)
class Row:
    """One stored result: the first of its job."""

    result: JobResult
    stored_at_ms: int
    is_settled: bool = False

    @property
    def job(self) -> str:
        return self.result.job

    @property
    def organisation(self) -> str:
        return self.result.organisation

    @property
    def usage(self) -> Usage | None:
        return self.result.usage

    @property
    def arguments(self) -> dict[str, Any]:
        arguments = self.result.arguments
        return {name: getattr(arguments, name) for name in arguments.__dataclass_fields__}


@dataclass(slots=True)
class Database:
    """Results and the ledger."""

    clock: Clock
    faults: Faults
    results: dict[str, Row] = field(default_factory=dict)
    ledger: dict[tuple[str, EventKind], Event] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    leader: Life | None = None
    renewed_ms: int = 0

    async def events(self, life: Life, organisation: str, reservation: str) -> list[Event]:
        """The ledger's rows of a reservation."""

        def read() -> list[Event]:
            return [row for (name, _), row in self.ledger.items() if name == reservation]

        return await self.transact(life, read)

    async def transact(self, life: Life, work: Callable[[], T]) -> T:
        """Carry out a transaction.

        Raises:
            StoreUnavailable: It was not carried out, or was, and nobody heard.
        """
        faults = self.faults
        await life.wait(faults.delay_s())
        if faults.happens(faults.loss_share):
            raise StoreUnavailable("the connection was lost before the commit")
        found = work()
        if faults.happens(faults.loss_share):
            raise StoreUnavailable("the connection was lost after the commit")
        await life.wait(faults.delay_s())
        return found


class Books:
    """What one keeper reads and writes: ``penstock.lanes.keeping.Books``."""

    LEASE_MS = 15_000

    def __init__(self, database: Database, life: Life, *, knows_ends: bool = True, reopens: bool = True) -> None:
        self._database = database
        self._life = life
        self._knows_ends = knows_ends
        self._reopens = reopens

    async def _fenced(self, work: Callable[[], T]) -> T:
        def checked() -> T:
            if self._database.leader is not self._life:
                raise Deposed("another keeper took over")
            return work()

        return await self._database.transact(self._life, checked)

    async def take(self) -> bool:
        def take() -> bool:
            database = self._database
            if database.leader and database.clock.now_ms() - database.renewed_ms < self.LEASE_MS:
                return database.leader is self._life
            database.leader, database.renewed_ms = self._life, database.clock.now_ms()
            return True

        return await self._database.transact(self._life, take)

    async def renew(self) -> None:
        def renew() -> None:
            self._database.renewed_ms = self._database.clock.now_ms()

        await self._fenced(renew)

    async def leave(self) -> None:
        return

    async def drain(self, batches: Mapping[int, Sequence[Entry]], *, without: Collection[Event] = ()) -> int:
        def insert() -> int:
            before = len(self._database.ledger)
            for entries in batches.values():
                for each in entries:
                    if each.event not in without:
                        self._write(each.event)
            return len(self._database.ledger) - before

        return await self._fenced(insert)

    def _write(self, event: Event) -> None:
        database = self._database
        database.ledger.setdefault((event.reservation, event.kind), event)
        result = database.results.get(event.reservation)
        if event.kind is EventKind.EXPIRED and result is not None and result.usage is not None:
            result.is_settled &= not self._reopens

    async def of_reservation(self, organisation: str, reservation: str) -> list[Event]:
        return [row for (name, _), row in self._database.ledger.items() if name == reservation]

    async def of_the_same(self, events: Sequence[Event]) -> list[Event]:
        names = {event.reservation for event in events}

        def read() -> list[Event]:
            return [row for row in self._database.ledger.values() if self._knows_ends and row.reservation in names]

        return await self._database.transact(self._life, read)

    async def unsettled(self, *, finished_before_ms: int, count_max: int) -> Sequence[Row]:
        rows = [row for row in self._database.results.values() if not row.is_settled]
        return [row for row in rows if row.stored_at_ms < finished_before_ms][:count_max]

    async def mark_settled(self, job: str) -> None:
        def mark() -> None:
            self._database.results[job].is_settled = True

        await self._fenced(mark)

    async def epoch(self, organisation: str) -> int:
        return self._database.epochs.get(organisation, 0)

    async def keep_epoch(self, organisation: str, epoch: int) -> None:
        def keep() -> None:
            self._database.epochs[organisation] = epoch

        await self._fenced(keep)

    async def newest_ms(self, organisation: str) -> int:
        return max((row.occurred_at_ms for row in self._database.ledger.values()), default=0)

    async def reopen_results(self, organisation: str, *, since_ms: int) -> int:
        def reopen() -> int:
            ledger = self._database.ledger
            found = [
                row
                for row in self._database.results.values()
                if row.is_settled and row.stored_at_ms >= since_ms
                and not any((row.job, kind) in ledger for kind in FINAL)
            ]  # fmt: skip
            for row in found:
                row.is_settled = False
            return len(found)

        return await self._fenced(reopen)

    async def window_sums(self, organisation: str, *, since_ms: int) -> dict[tuple[str, int], int]:
        rows = self._database.ledger.values()
        return invariants.window_sums(row for row in rows if row.occurred_at_ms >= since_ms)

    async def to_be_remembered(self, organisation: str, *, now_ms: int, remember_ms: int) -> list[Event]:
        rows = self._database.ledger.values()
        found = [each for each in rows if each.occurred_at_ms > now_ms - remember_ms or each.job_deadline_ms > now_ms]
        return sorted(found, key=lambda row: (row.occurred_at_ms, row.reservation, row.kind))

    async def make_partitions(self) -> list[int]:
        return []

    async def forget_jobs(self, *, now_ms: int, kept: Kept) -> int:
        return 0
