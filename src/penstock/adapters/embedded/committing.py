"""Group commit: while one group of changes goes to the disk, the next one collects.

::

    collecting --taken--> committing --committed--> acknowledged
        ^                     |
        +------ failed -------+      admission stops until a commit works again

What nobody waits for (opens, touches, buckets) joins the next group, which begins at the latest after
``IDLE_COMMIT_S``; whoever waits starts it at once, but no sooner than ``COMMIT_EVERY_S`` after the one before. So a
service at rest waits for the disk alone, and a busy one shares each fsync, and each hand-over to the writing thread,
among what came in that time. A realtime request that opened is written ``OPEN_COMMIT_S`` later and not with the first
group, in the hope that it has ended by then: its row would be written for nothing, and deleted by the next group. One
that a crash forgets would have expired at what its first touch recorded, which comes seconds later: at next to nothing.

A group that fails loses nothing. Its events go back to the head of their organisation's outbox, its records count as
changed, those who waited are told ``StoreUnavailable``, and it is tried again, after 50 ms, then twice as long each
time up to a second. Rows of a commit that failed in doubt may be there already: writing them again changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import msgspec

from penstock.adapters.embedded import crash_points
from penstock.adapters.embedded.crash_points import Reached
from penstock.adapters.embedded.writing import Group, GroupWriter
from penstock.errors import StoreUnavailable
from penstock.quota.definitions import BUCKETS
from penstock.quota.events import Event
from penstock.quota.operations import Lane, State
from penstock.quota.state import Account, Reservation

IDLE_COMMIT_S = 0.05
OPEN_COMMIT_S = 0.5
COMMIT_EVERY_S = 0.025
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Taken:
    """What a group took from one account, to be given back if it fails."""

    account: Account
    events: list[Event]
    changed: set[str]
    is_redefined: bool


@dataclass(slots=True)
class Persisted:
    """What the database has, so that nothing is written or deleted for nothing.

    Args:
        reservations: Ids of those with a row.
        epochs: By organisation.
    """

    reservations: set[str]
    epochs: dict[str, int]


class CommitObserver(Protocol):
    """Metrics of commits."""

    def committed(self, events: Sequence[Event], duration_s: float) -> None:
        """A group is on the disk."""
        ...

    def commit_failed(self) -> None:
        """A group could not be committed; it will be tried again."""
        ...


@dataclass(slots=True)
class CommitCounts:
    """The plainest observer: counts since the start."""

    groups: int = 0
    events: int = 0
    failures: int = 0

    def committed(self, events: Sequence[Event], duration_s: float) -> None:
        """Count a group."""
        self.groups += 1
        self.events += len(events)

    def commit_failed(self) -> None:
        """Count a failure."""
        self.failures += 1


class GroupCommitter:
    """Makes the changes of accounts durable."""

    def __init__(
        self, writer: GroupWriter, *, persisted: Persisted, observer: CommitObserver, reached: Reached
    ) -> None:
        self._observer = observer
        self._writer = writer
        self._persisted = persisted
        self._reached = reached
        self._changed: dict[str, Account] = {}
        self._redefined: set[str] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._idle: asyncio.TimerHandle | None = None
        self._young: dict[str, tuple[float, Account]] = {}  # open without a row: when to write it, soonest first
        self._taken_s = monotonic()
        self._committing = asyncio.Lock()
        self._failure: str | None = None
        self._closing = False
        self._loop = asyncio.get_running_loop()  # asking for it is a system call, and many wait
        self._task = self._loop.create_task(self._run(), name="penstock-group-commit")

    @property
    def failure(self) -> str | None:
        """Why the last commit failed; None while commits work."""
        return self._failure

    def join(self, account: Account, *, is_redefined: bool = False) -> None:
        """Let the next group carry what changed; nobody waits for it.

        Args:
            is_redefined: Every bucket is carried: with its cap, its refill changed at this instant.
        """
        self._changed[account.name] = account
        if is_redefined:
            self._redefined.add(account.name)
        if self._idle is None:
            self._idle = self._wake_in(IDLE_COMMIT_S)

    async def durable(self) -> None:
        """Return once everything that joined so far is on the disk.

        Raises:
            StoreUnavailable: The commit failed. It will be tried again; whether it ever succeeds is not known here.
        """
        if not self._changed and not self._committing.locked():
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        self._wake.set()
        await waiter

    @asynccontextmanager
    async def still(self) -> AsyncIterator[list[Event]]:
        """Keep the ledger as it is for the length of the block; yields the events that it does not have yet.

        For the audit: what the model holds is the ledger and these, as long as the caller does not wait in between.
        """
        async with self._committing:
            yield [event for account in self._changed.values() for event in account.outbox]

    async def close(self) -> None:
        """Commit what is left and stop.

        Raises:
            StoreUnavailable: The last commit failed; says how many events are lost with this process.
        """
        self._closing = True
        self._wake.set()
        await self._task
        await asyncio.to_thread(self._writer.close)
        if self._idle is not None:
            self._idle.cancel()
        if self._failure is not None:
            lost = sum(len(account.outbox) for account in self._changed.values())
            raise StoreUnavailable(f"the last commit failed and {lost} events are not in the ledger: {self._failure}")

    def _wake_in(self, delay_s: float) -> asyncio.TimerHandle:
        return self._loop.call_later(max(0.0, delay_s), self._wake.set)

    async def _run(self) -> None:
        retry_s = RETRY_FIRST_S
        begun_s = -COMMIT_EVERY_S
        while True:
            await self._wake.wait()
            early_s = begun_s + COMMIT_EVERY_S - monotonic()
            if early_s > 0 and not self._closing:
                await asyncio.sleep(early_s)
            self._wake.clear()
            begun_s = monotonic()
            await self._commit()
            if self._failure is None:
                retry_s = RETRY_FIRST_S
            elif not self._closing:
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
                self._wake.set()
            if self._closing and (self._failure is not None or not (self._changed or self._young)):
                return

    async def _commit(self) -> None:
        async with self._committing:
            waiters, self._waiters = self._waiters, []
            if self._changed or self._young:
                group, taken = self._take()
                self._reached(crash_points.GROUP_TAKEN)
                begun_s = monotonic()
                self._failure = await self._writer.write(group)
                if self._failure is None:
                    self._observer.committed(group.events, monotonic() - begun_s)
                else:
                    self._give_back(group, taken)
        self._acknowledge(waiters)

    def _take(self) -> tuple[Group, list[_Taken]]:
        """Close the group: everything in it is of this one instant, since nothing here waits."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        due = self._no_longer_young()
        accounts, self._changed = self._changed, {}
        redefined, self._redefined = self._redefined, set()
        group = Group()
        taken = []
        for account in accounts.values():
            events, changed = account.outbox, account.changed
            account.outbox, account.changed = [], set()
            group.events += events
            buckets = self._take_records(group, account, changed, due)
            if account.name in redefined:
                buckets.update(each for each, counter in account.counters.items() if counter.kind in BUCKETS)
            for limit in buckets:
                counter = account.counters[limit]
                group.buckets.append((account.name, limit, counter.level, counter.rolled_at_ms))
            if account.epoch != self._persisted.epochs.get(account.name):
                group.epochs.append((account.name, account.epoch))
                self._persisted.epochs[account.name] = account.epoch
            taken.append(_Taken(account, events, changed, account.name in redefined))
        self._taken_s = monotonic()
        if self._young:
            self._idle = self._wake_in(next(iter(self._young.values()))[0] - self._taken_s)
        return group, taken

    def _no_longer_young(self) -> set[str]:
        """Let the group carry those that are open for long enough; all at the end."""
        due: set[str] = set()
        now_s = monotonic()
        for reservation_id, (due_s, account) in self._young.items():
            if due_s > now_s and not self._closing:
                break
            due.add(reservation_id)
            account.changed.add(reservation_id)
            self._changed[account.name] = account
        for reservation_id in due:
            del self._young[reservation_id]
        return due

    def _take_records(self, group: Group, account: Account, changed: set[str], due: set[str]) -> set[str]:
        """Put into the group what became of the changed reservations; the buckets that they touched."""
        buckets: set[str] = set()
        young, rows = self._young, self._persisted.reservations
        young_until_s = self._taken_s + OPEN_COMMIT_S  # it may have opened right after the group before
        has_young = young_until_s > monotonic() and not self._closing
        for reservation_id in changed:
            reservation = account.reservations.get(reservation_id)
            if reservation is not None:
                buckets.update(reservation.rates)
            if reservation is not None and _needs_row(reservation):
                is_young = reservation_id in young or (has_young and reservation_id not in due)
                if is_young and reservation_id not in rows and _may_wait(reservation):
                    young.setdefault(reservation_id, (young_until_s, account))
                    continue
                group.kept.append((reservation_id, account.name, _encode(reservation).decode()))
                rows.add(reservation_id)
            elif reservation_id in rows:
                group.dropped.append((reservation_id,))
                rows.discard(reservation_id)
            young.pop(reservation_id, None)
        return buckets

    def _give_back(self, group: Group, taken: list[_Taken]) -> None:
        self._observer.commit_failed()
        for each in taken:
            each.account.outbox[:0] = each.events
            each.account.changed |= each.changed
            self.join(each.account, is_redefined=each.is_redefined)
        # Whether its rows are there is not known; deleting one that is not there does no harm.
        self._persisted.reservations.update(row[0] for row in group.dropped)
        for name, _ in group.epochs:
            del self._persisted.epochs[name]
        _log.error(
            "commit failed, admission is stopped until one succeeds",
            extra={"events": len(group.events), "error": self._failure},
        )

    def _acknowledge(self, waiters: list[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if waiter.done():  # its caller was cancelled
                continue
            if self._failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(
                    StoreUnavailable(
                        f"the ledger cannot be written: {self._failure}; "
                        "free the disk or the database, it is tried again until it works"
                    )
                )
        self._reached(crash_points.ACKNOWLEDGED)


def _needs_row(reservation: Reservation) -> bool:
    """Whether the ledger alone could not restore it: other terminal states are read back from their events."""
    state = reservation.state
    if state is State.OPEN or state is State.EXPIRED:
        return True
    return state is State.VOIDED and reservation.fingerprint is None


def _may_wait(reservation: Reservation) -> bool:
    """Whether nobody was told that it is on the disk: a realtime request that runs."""
    return reservation.state is State.OPEN and reservation.lane is Lane.REALTIME and not reservation.cancelled
