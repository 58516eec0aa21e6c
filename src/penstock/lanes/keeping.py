"""The keeper's work: events into the ledger, definitions and sweeps into the quota store, loose ends of jobs tied up.

One is active, any number stand by. What it does is done in loops that know nothing of each other; the first one that
learns that another keeper took over ends them all, and this one stands by again.

::

    stand by -> take -> drain | renew | govern | tidy -> deposed, or the database is away -> stand by
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from penstock.errors import Deposed, StoreUnavailable
from penstock.lanes import draining
from penstock.lanes.draining import Draining, Entry
from penstock.lanes.posting import Posting
from penstock.lanes.rebuilding import Rebuilder
from penstock.ports import Clock, Kept, QuotaStore
from penstock.quota.definitions import Definitions
from penstock.quota.events import Event, Usage
from penstock.quota.operations import (
    Define,
    Done,
    Duplicate,
    Invalid,
    NotReady,
    Refused,
    Reserve,
    Settle,
    Settled,
    Sweep,
    Unknown,
    Void,
)

TAKE_EVERY_S: Final = 1.0
DRAIN_EVERY_S: Final = 0.2
"""Events gather for so long: a transaction costs the same for one event as for a hundred."""
GOVERN_EVERY_S: Final = 1.0
TIDY_EVERY_S: Final = 5.0
UNSETTLED_AFTER_MS: Final = 10_000
UNSETTLED_MAX: Final = 100
SWEEP_COUNT_MAX: Final = 256
READ_MAX: Final = 1_000
"""Of each partition at a time."""

EVENTS_READ: Final = "events-read"  # a point at which tests kill it: the store still has them, nobody else
OUTBOX_TRIMMED: Final = "outbox-trimmed"

log = logging.getLogger("penstock.lanes.keeping")


class BatchTracer(Protocol):
    """Is told what was written, for the traces of its requests."""

    def drained(self, traced: Iterable[tuple[str, Event]], *, began_ms: int, ended_ms: int) -> None:
        """A batch is in the ledger.

        Args:
            traced: ``traceparent`` and event of those whose request is recorded; may be none.
        """
        ...


class Outbox(Protocol):
    """Events on their way to the ledger, by partition, oldest first."""

    async def read(self, *, count_max: int) -> Mapping[int, Sequence[Entry]]:
        """The first entries of each partition that has any."""
        ...

    async def trim(self, through: Mapping[int, str]) -> int:
        """Remove each partition's entries up to and including an id."""
        ...

    async def may_have(self, organisation: str, reservation: str) -> bool:
        """Whether an event of a reservation waits, as far as can be told."""
        ...


class UnsettledResult(Protocol):
    """A stored result whose usage the quota store has not acknowledged."""

    @property
    def job(self) -> str:
        """Its id."""
        ...

    @property
    def organisation(self) -> str:
        """Whose it is."""
        ...

    @property
    def usage(self) -> Usage | None:
        """To be settled; None: to be voided."""
        ...

    @property
    def arguments(self) -> dict[str, Any]:
        """Of its reserve."""
        ...


class Books(draining.Books, Protocol):
    """What the active keeper writes, each thing in one fenced transaction.

    Every method raises ``Deposed`` if another keeper took over, ``StoreUnavailable`` without a database.
    """

    async def take(self) -> bool:
        """Become the active keeper, if there is none."""
        ...

    async def renew(self) -> None:
        """Remain the active keeper."""
        ...

    async def leave(self) -> None:
        """Stand by."""
        ...

    async def of_reservation(self, organisation: str, reservation: str) -> list[Event]:
        """The ledger's rows of one reservation."""
        ...

    async def unsettled(self, *, finished_before_ms: int, count_max: int) -> Sequence[UnsettledResult]:
        """Results that were not acknowledged, oldest first."""
        ...

    async def mark_settled(self, job: str) -> None:
        """A result's usage is acknowledged."""
        ...

    async def make_partitions(self) -> list[int]:
        """Make the ledger's next partitions; which months were new."""
        ...

    async def forget_jobs(self, *, now_ms: int, kept: Kept) -> int:
        """Delete jobs that nobody may ask for any more."""
        ...


@dataclass(slots=True)
class Tally:
    """What a keeper did, for its metrics.

    Args:
        is_active: It is the one that writes.
        drained: Events that were new to the ledger.
        repeated: Events that the ledger had already.
        lag_ms: Age of the oldest event of the last batch when it was written.
        expired: Reservations that its sweeps ended.
        rebuilding: Organisations whose state was lost, and that admit nothing yet.
    """

    is_active: bool = False
    terms: int = 0
    drained: int = 0
    repeated: int = 0
    lag_ms: int = 0
    expired: int = 0
    failures: int = 0
    rebuilding: int = 0


class Keeper:
    """One keeper.

    Args:
        definitions: What governs each organisation with its keys, and the version; asked once a second.
        kept: How long jobs, their results and idempotent answers are kept.
        lease_s: A keeper that is silent for so long is deposed.
        wrote: Told of what the ledger has now, and may not have had before.
        tracer: None where nothing is traced.
        reached: Told of each named point between two writes; for tests.
    """

    def __init__(
        self,
        books: Books,
        outbox: Outbox,
        quota: QuotaStore,
        clock: Clock,
        definitions: Callable[[], Awaitable[tuple[int, Mapping[str, Definitions]]]],
        rebuilder: Rebuilder,
        *,
        kept: Kept,
        lease_s: float,
        wrote: Callable[[Sequence[Event]], None] = lambda _: None,
        tracer: BatchTracer | None = None,
        reached: Callable[[str], None] = lambda _: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._books = books
        self._outbox = outbox
        self._quota = quota
        self._clock = clock
        self._definitions = definitions
        self._rebuilder = rebuilder
        self._posting = Posting(quota, clock, books.of_reservation, outbox.may_have)
        self._kept = kept
        self._lease_s = lease_s
        self._wrote = wrote
        self._tracer = tracer
        self._reached = reached
        self._pause = pause
        self._defined: dict[str, Definitions] = {}
        self._drains = Draining(books, quota, clock)
        self._one_drains = asyncio.Lock()
        self.tally = Tally()

    async def run(self) -> None:
        """Stand by, work, stand by again, until cancelled."""
        try:
            while True:
                try:
                    if await self._books.take():
                        await self._work()
                except (Deposed, StoreUnavailable) as error:
                    self.tally.failures += 1
                    log.warning("the keeper stands by", extra={"why": error.message})
                self.tally.is_active = False
                await self._pause(TAKE_EVERY_S)
        finally:
            self.tally.is_active = False
            await asyncio.shield(self._books.leave())

    async def _work(self) -> None:
        """Every loop, until one of them says that this is over."""
        self.tally.is_active = True
        self.tally.terms += 1
        self._defined.clear()
        self._rebuilder.begin()
        log.info("the keeper is active", extra={"term": self.tally.terms})
        loops = [asyncio.create_task(loop()) for loop in (self._renew, self._drain, self._govern, self._tidy)]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in loops:
                each.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        for each in done:
            each.result()

    async def _renew(self) -> None:
        while True:
            await self._pause(self._lease_s / 4)
            await self._books.renew()

    async def _drain(self) -> None:
        """Read, write, remove: killed between any two of these, the next one reads again and writes nothing twice."""
        while True:
            try:
                async with self._one_drains:
                    batches = await self._outbox.read(count_max=READ_MAX)
                    if batches:
                        await self._drain_once(batches)
                    else:
                        self.tally.lag_ms = 0
                if all(len(entries) < READ_MAX for entries in batches.values()):
                    await self._pause(DRAIN_EVERY_S)
            except StoreUnavailable as error:
                await self._wait_for_store("events stay in the outbox", error)

    async def _drain_once(self, batches: Mapping[int, Sequence[Entry]]) -> None:
        self._reached(EVENTS_READ)
        oldest_ms = min(entries[0].event.occurred_at_ms for entries in batches.values())
        began_ms = self._clock.now_ms()
        added, written = await self._drains.drain(batches)
        self._wrote([entry.event for entry in written])
        if self._tracer is not None:
            traced = [(entry.traceparent, entry.event) for entry in written if entry.traceparent is not None]
            self._tracer.drained(traced, began_ms=began_ms, ended_ms=self._clock.now_ms())
        self.tally.drained += added
        self.tally.repeated += sum(map(len, batches.values())) - added
        self.tally.lag_ms = max(0, self._clock.now_ms() - oldest_ms)
        await self._outbox.trim({partition: entries[-1].id for partition, entries in batches.items()})
        self._reached(OUTBOX_TRIMMED)

    async def _govern(self) -> None:
        """Every organisation defined at its newest version and ready, and what is due in it expired."""
        while True:
            try:
                version, organisations = await self._definitions()
                for name, definitions in organisations.items():
                    if self._defined.get(name) is not definitions:
                        await self._define(name, version, definitions)
                    await self._sweep(name, version, definitions)
            except StoreUnavailable as error:
                self._defined.clear()  # the store may come back without them
                await self._wait_for_store("nothing is swept", error)
            await self._pause(GOVERN_EVERY_S)

    async def _define(self, name: str, version: int, definitions: Definitions) -> None:
        answer = await self._quota.apply(
            Define(organisation=name, caller_now_ms=self._clock.now_ms(), version=version, definitions=definitions)
        )
        if isinstance(answer, Refused):
            log.error("definitions refused", extra={"organisation": name, "why": answer.why})
        self._defined[name] = definitions

    async def _sweep(self, name: str, version: int, definitions: Definitions) -> None:
        answer = await self._quota.apply(
            Sweep(organisation=name, caller_now_ms=self._clock.now_ms(), count_max=SWEEP_COUNT_MAX)
        )
        is_lost = isinstance(answer, NotReady)
        if not isinstance(answer, NotReady):
            self.tally.expired += answer.count
        await self._rebuilder.tend(name, version, definitions, is_lost=is_lost, drain=self._drain_all)
        self.tally.rebuilding = len(self._rebuilder.under_way)

    async def _drain_all(self) -> None:
        async with self._one_drains:  # what was read before a loss is written before a rebuild adds the ledger up
            while batches := await self._outbox.read(count_max=READ_MAX):
                await self._drain_once(batches)

    async def _tidy(self) -> None:
        """What may take a while: results that nobody settled, partitions to come, jobs to forget."""
        while True:
            try:
                now_ms = self._clock.now_ms()
                while await self._settle_some(finished_before_ms=now_ms - UNSETTLED_AFTER_MS) == UNSETTLED_MAX:
                    pass
                await self._books.make_partitions()
                await self._books.forget_jobs(now_ms=now_ms, kept=self._kept)
            except StoreUnavailable as error:
                await self._wait_for_store("results wait to be settled", error)
            await self._pause(TIDY_EVERY_S)

    async def _settle_some(self, *, finished_before_ms: int) -> int:
        """Settle the oldest results that nobody settled; how many are done with."""
        done = 0
        _, organisations = await self._definitions()
        for result in await self._books.unsettled(finished_before_ms=finished_before_ms, count_max=UNSETTLED_MAX):
            try:
                answer = await self._settle(result)
            except ValueError as error:  # its arguments are no reserve
                answer = Invalid(str(error))
            if isinstance(answer, NotReady) and result.organisation not in organisations:
                answer = Invalid("there is no such organisation")
            if isinstance(answer, Invalid):  # it would stand in front of the others for ever
                self.tally.failures += 1
                log.error("a result is given up", extra={"reservation": result.job, "why": answer.why})
            if isinstance(answer, Settled | Done | Duplicate | Unknown | Invalid):
                await self._books.mark_settled(result.job)
                done += 1
        return done

    async def _settle(self, result: UnsettledResult) -> Any:
        """As the collector does, or by force if the store does not know the job and the ledger has not charged it."""
        now_ms = self._clock.now_ms()
        if result.usage is None:
            return await self._quota.apply(
                Void(organisation=result.organisation, caller_now_ms=now_ms, reservation=result.job)
            )
        answer: Any = await self._quota.apply(
            Settle(organisation=result.organisation, caller_now_ms=now_ms, reservation=result.job, usage=result.usage)
        )
        if not isinstance(answer, Unknown):
            return answer
        return await self._posting.post(msgspec.convert(result.arguments, Reserve), result.usage)

    async def _wait_for_store(self, what: str, error: StoreUnavailable) -> None:
        self.tally.failures += 1
        log.warning(what, extra={"why": error.message})
        await self._pause(1.0)
