"""The quota store of a simulated system, the ways to it, and what it can lose.

It is the quota model itself. It loses everything when it is flushed, and the end of its history when it is started anew
from a log of which the last part was not on its disk. Ways to it lose, delay and double calls; those of Penstock's own
processes tell again what was acknowledged, as the client of Redis does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeVar

from penstock.adapters.redis.positions import Position
from penstock.adapters.redis.retelling import Retelling
from penstock.errors import StoreUnavailable
from penstock.quota import (
    Call,
    Done,
    Event,
    NotReady,
    Organisation,
    Ready,
    Refused,
    Reserve,
    Reserved,
    Settle,
    State,
    restore,
)
from tests.simulation.scheduling import Clock, Faults, Life

A = TypeVar("A")
BOUND_S = 0.15


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the outbox."""

    id: str
    event: Event
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss of state.

    Args:
        kind: "flushed" or "cut".
        since_ms: Nothing older is gone of what the ledger had; ``at_ms``: when it was lost.
        gone: Reservations that the ledger could not know then.
        tokens: What they held or were charged: so much may be admitted a second time.
        of_a_rebuild: It had been put back after a loss, and admissions had not begun.
        learned_by: Processes that an answer told of it before it was put back.
        answered: Processes that were answered anything since, having told what they were acknowledged.
    """

    kind: str
    since_ms: int
    at_ms: int
    gone: frozenset[str]
    tokens: int
    of_a_rebuild: bool
    learned_by: set[Life] = field(default_factory=set)
    answered: set[Life] = field(default_factory=set)


class Quota:
    """The quota store, and its outbox."""

    def __init__(self, clock: Clock, faults: Faults, name: str, *, settles_once: bool = True) -> None:
        self.organisation = Organisation(name)
        self.clock = clock
        self.faults = faults
        self.outbox: list[Entry] = []
        self.run = 1
        self.away_until_s = 0.0
        self.losses: list[Loss] = []
        self.begun_at_s: list[float] = []
        self.restores = 0
        self._settles_once = settles_once
        self._count = 0
        self._kept: tuple[Organisation, list[Entry], int] | None = None
        self._admitted: list[tuple[int, str, int]] = []

    @property
    def is_away(self) -> bool:
        """It is being started."""
        return self.clock.monotonic_s() < self.away_until_s

    def carry_out(self, call: Call[A]) -> A:
        """One call, atomically."""
        if not self._settles_once and isinstance(call, Settle):
            self._forget_its_end(call)
        answer = self.organisation.apply(call, time_ms=self.clock.now_ms())
        if isinstance(answer, Reserved) and isinstance(call, Reserve):
            self._admitted.append((self.clock.now_ms(), call.reservation, answer.tokens_held))
        if isinstance(call, Ready) and call.epoch and isinstance(answer, Done):
            self.begun_at_s.append(self.clock.monotonic_s())
        for event in self.organisation.outbox:
            self._count += 1
            self.outbox.append(Entry(f"{self._count:09}", event))
        self.organisation.outbox.clear()
        return answer

    def position(self) -> Position:
        """How far the outbox is drained."""
        oldest = (int(self.outbox[0].id),) if self.outbox else None
        return Position(self.organisation.epoch, (self._count,), oldest)

    def flush(self) -> None:
        """Everything is gone; nobody is disconnected."""
        undrained = {each.event.reservation for each in self.outbox}
        known = self.organisation.reservations.values()
        gone = frozenset(undrained.union(each.id for each in known if each.state is State.OPEN))
        self._lost("flushed", gone, self.clock.now_ms())
        self.organisation = Organisation(self.organisation.name)
        self.outbox = []

    def sync(self) -> None:
        """What is known now is on the disk, and nothing that follows is."""
        self._kept = deepcopy(self.organisation), list(self.outbox), self.clock.now_ms()

    def restart(self, away_s: float, *, loses: bool = True) -> None:
        """Started anew from what was last on the disk, or having lost nothing."""
        if not loses:
            self._kept = None
        if self._kept is not None:
            kept, outbox, since_ms = self._kept
            if kept.epoch != self.organisation.epoch:
                kept, outbox = self.organisation, self.outbox  # a rebuild is saved at once
            before = {each.id: each for each in kept.reservations.values()}
            now = self.organisation.reservations.values()
            gone = frozenset(each.id for each in now if each.id not in before or each != before[each.id])
            self._lost("cut", gone, since_ms)
            self.organisation, self.outbox, self._kept = kept, outbox, None
        self.run += 1
        self.away_until_s = self.clock.monotonic_s() + away_s

    def _lost(self, kind: str, gone: frozenset[str], since_ms: int) -> None:
        tokens = sum(tokens for _, each, tokens in self._admitted if each in gone)
        of_a_rebuild = self.organisation.marked and self.organisation.epoch == 0
        self.losses.append(Loss(kind, since_ms, self.clock.now_ms(), gone, tokens, of_a_rebuild))

    def _forget_its_end(self, call: Settle) -> None:
        found = self.organisation.reservations.get(call.reservation)
        if found is not None and found.state is State.POSTED:
            found.state = State.OPEN


class QuotaPort:
    """``penstock.ports.QuotaStore`` for one process: two attempts at each call, as the client of Redis makes.

    Args:
        tells: It tells again what it was acknowledged; the Bento streams do not.
        stepped: Told of each call that was sent, and of each that was answered.
    """

    def __init__(
        self, quota: Quota, life: Life, *, tells: bool = False, stepped: Callable[[str], None] = lambda _: None
    ) -> None:
        self._quota = quota
        self._life = life
        self._stepped = stepped
        self._retelling = Retelling(self.apply, quota.clock.now_ms, self._look) if tells else None
        self._run = quota.run
        self._connections = 1
        self._greeting: asyncio.Task[None] | None = None

    @property
    def failure(self) -> str | None:
        """Of each call, it says itself."""
        return None

    async def apply(self, call: Call[A]) -> A:
        for _ in range(2):
            try:
                answer = await self._attempt(call)
            except StoreUnavailable:
                await self._life.wait(BOUND_S)
                continue
            if self._retelling is not None:
                self._retelling.note(call, answer)
            self._stepped(f"{type(call).__name__} answered")
            return answer
        raise StoreUnavailable("no answer, twice")

    async def _attempt(self, call: Call[A]) -> A:
        quota, faults = self._quota, self._quota.faults
        await self._life.wait(faults.delay_s())
        if quota.is_away:
            raise StoreUnavailable("it is being started")
        if self._run != quota.run:
            await self._connect()
        losses, connection = tuple(quota.losses), self._connections
        answer = await self._sent(call)
        if connection != self._connections:
            raise StoreUnavailable("its connection ended before the one that follows began")
        for loss in losses:
            loss.answered.add(self._life)
        return answer

    async def _sent(self, call: Call[A]) -> A:
        quota, faults = self._quota, self._quota.faults
        if faults.happens(faults.loss_share):
            if faults.happens(0.5):  # not lost but late: it arrives after the caller gave it up
                late_s = faults.random.uniform(0.2, 90.0)
                asyncio.get_running_loop().call_later(late_s, self._arrive, call, quota.run)
            raise StoreUnavailable("the call is lost")
        self._stepped(f"{type(call).__name__} sent")
        answer = quota.carry_out(call)
        if faults.happens(faults.loss_share):
            raise StoreUnavailable("the answer is lost")
        await self._life.wait(faults.delay_s())
        if isinstance(answer, NotReady) and quota.losses:
            quota.losses[-1].learned_by.add(self._life)
        return answer

    def _arrive(self, call: Call[Any], run: int) -> None:
        """If its connection is still there; also a rebuild's marker, after a second loss."""
        if run == self._quota.run:
            self._quota.carry_out(call)

    async def _look(self, organisations: Collection[str]) -> dict[str, Position]:
        quota, faults = self._quota, self._quota.faults
        await self._life.wait(faults.delay_s())
        if quota.is_away or faults.happens(faults.loss_share):
            raise StoreUnavailable("no answer")
        if self._run != quota.run:
            await self._connect()
        found, connection = quota.position(), self._connections
        await self._life.wait(faults.delay_s())
        if connection != self._connections:
            raise StoreUnavailable("its connection ended before the one that follows began")
        return dict.fromkeys(organisations, found)

    async def _connect(self) -> None:
        """One connects, the others wait: nothing is asked before all is told."""
        if self._greeting is None or self._greeting.done():
            self._greeting = asyncio.create_task(self._greet(self._quota.run))
        await asyncio.shield(self._greeting)

    async def _greet(self, run: int) -> None:
        self._connections += 1
        if self._retelling is not None:
            await self._retelling.tell(self._told, lambda _: True)
        self._run = run

    async def _told(self, call: Call[Any]) -> str:
        return type(await self._sent(call)).__name__


class OutboxPort:
    """``penstock.lanes.keeping.Outbox``."""

    def __init__(self, quota: Quota, life: Life) -> None:
        self._quota = quota
        self._life = life

    async def read(self, *, count_max: int) -> Mapping[int, Sequence[Entry]]:
        await self._reached()
        entries = self._quota.outbox[:count_max]
        return {0: entries} if entries else {}

    async def may_have(self, organisation: str, reservation: str) -> bool:
        await self._reached()
        return any(each.event.reservation == reservation for each in self._quota.outbox)

    async def trim(self, through: Mapping[int, str]) -> int:
        await self._reached()
        before = len(self._quota.outbox)
        self._quota.outbox = [each for each in self._quota.outbox if each.id > through[0]]
        return before - len(self._quota.outbox)

    async def _reached(self) -> None:
        await self._life.wait(self._quota.faults.delay_s())
        if self._quota.is_away:
            raise StoreUnavailable("it is being started")


class RestorerPort:
    """``penstock.lanes.rebuilding.Restorer``."""

    def __init__(self, quota: Quota, life: Life, *, forgets: str = "") -> None:
        self._quota = quota
        self._life = life
        self._forgets = forgets

    async def restore(
        self,
        organisation: str,
        *,
        clock_ms: int,
        window_sums: dict[tuple[str, int], int],
        tombstones: Sequence[Event],
        jobs: Sequence[Event],
    ) -> str | Refused:
        """In two pages, so that a loss may come between them."""
        self._quota.restores += 1
        name = f"of {self._quota.restores}"
        sums = {} if self._forgets == "sums" else window_sums
        for restored in (f"1 {name}", f"2 {name}"):
            quota, faults = self._quota, self._quota.faults
            await self._life.wait(faults.delay_s())
            found = quota.organisation
            if quota.is_away or faults.happens(faults.loss_share):
                raise StoreUnavailable("it cannot be restored")
            is_first = restored.startswith("1")
            if found.marked or not found.version or not (is_first or found.restored == f"1 {name}"):
                return Refused("the state is not lost, or what was restored of it is")
            quota.organisation = restore(
                organisation,
                version=found.version,
                definitions=found.definitions,
                epoch=0,
                time_ms=clock_ms,
                window_sums=sums,
                tombstones=() if is_first or self._forgets == "ended" else tombstones,
                jobs=() if is_first else jobs,
                restored=restored,
            )
            if faults.happens(faults.loss_share):
                raise StoreUnavailable("the answer is lost")
            await self._life.wait(faults.delay_s())
        return restored

    async def restored(self, organisation: str) -> str | None:
        await self._reached()
        return self._quota.organisation.restored or None

    async def forget(self, organisation: str) -> None:
        await self._reached()
        self._quota.organisation = Organisation(organisation)

    async def _reached(self) -> None:
        await self._life.wait(self._quota.faults.delay_s())
        if self._quota.is_away:
            raise StoreUnavailable("it is being started")
