"""What becomes of an organisation whose quota state is not there: a new one begins, a lost one is rebuilt.

::

    not there --never had an epoch--> defined, ready
              --had one--> defined, windows and ended ids from the ledger, buckets empty, marked
                           --one lease, for holds to be reasserted--> ready under the next epoch
    lost again on the way --the mark or ready names what was restored, and is refused--> rebuilt from the start

Jobs that were accepted and have not ended come back with their holds, as queued: whoever ran one claims it again. Those
whose result is stored and whose settle was lost on its way to the ledger are settled again.

Until then nothing is admitted: a store that forgot must never count from zero.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from penstock.errors import StoreUnavailable
from penstock.ports import Clock, QuotaStore
from penstock.quota.definitions import Definitions
from penstock.quota.events import Event, EventKind
from penstock.quota.operations import Define, Inspect, Inspected, Ready, Refused
from penstock.quota.restore import current_since_ms
from penstock.quota.state import LEASE_MS, REMEMBER_MS

NOTHING: Final = ""
"""What was restored of an organisation that begins."""
BEGINNINGS_MAX: Final = 3
"""In a row: Redis is flushed again and again, or refuses for a reason that a rebuild does not mend."""

_log = logging.getLogger(__name__)


class Restorer(Protocol):
    """Puts back what the ledger knows into a quota store that lost an organisation."""

    async def restore(
        self,
        organisation: str,
        *,
        clock_ms: int,
        window_sums: dict[tuple[str, int], int],
        tombstones: Sequence[Event],
        jobs: Sequence[Event],
    ) -> str | Refused:
        """Windows as their sums, buckets empty, ended ids and queued jobs known, the clock at least ``clock_ms``.

        Returns:
            What ``Ready`` must name. Refused: the state is there, or was lost on the way.
        """
        ...

    async def restored(self, organisation: str) -> str | None:
        """What ``Ready`` must name of a state that somebody marked; None if that was a keeper of an earlier version."""
        ...

    async def forget(self, organisation: str) -> None:
        """Remove all state but the outbox."""
        ...


class Books(Protocol):
    """What a rebuild reads of the ledger, and the epochs that it keeps there."""

    async def epoch(self, organisation: str) -> int:
        """The last epoch; 0 of an organisation that never had any."""
        ...

    async def keep_epoch(self, organisation: str, epoch: int) -> None:
        """Remember an epoch before it begins."""
        ...

    async def newest_ms(self, organisation: str) -> int:
        """When the newest row occurred; 0 if there is none."""
        ...

    async def reopen_results(self, organisation: str, *, since_ms: int) -> int:
        """Let results since then be settled again whose end the ledger does not have; how many."""
        ...

    async def window_sums(self, organisation: str, *, since_ms: int) -> dict[tuple[str, int], int]:
        """What rows posted to each (limit id, window id)."""
        ...

    async def to_be_remembered(self, organisation: str, *, now_ms: int, remember_ms: int) -> list[Event]:
        """Rows of reservations that are remembered still, by time."""
        ...


def open_jobs(rows: Sequence[Event]) -> list[Event]:
    """Of rows to be remembered, what tells that a job was accepted or begun, and nothing that it ended."""
    ended = {row.reservation for row in rows if row.kind not in (EventKind.RESERVED, EventKind.ACQUIRED)}
    found = {row.reservation: row for row in rows if row.reservation not in ended}
    return list(found.values())


class Rebuilder:
    """Decides for each organisation, once a second, while this keeper is active.

    Args:
        lease_ms: How long holds may be reasserted before admissions begin.
        tell: Told what is being done, for people who wait.
    """

    def __init__(
        self,
        books: Books,
        quota: QuotaStore,
        restorer: Restorer,
        clock: Clock,
        *,
        lease_ms: int = LEASE_MS,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._books = books
        self._quota = quota
        self._restorer = restorer
        self._clock = clock
        self._lease_ms = lease_ms
        self._tell = tell
        self._looked: set[str] = set()
        self._ready_at_s: dict[str, float] = {}
        self._restored: dict[str, str | None] = {}

    @property
    def under_way(self) -> tuple[str, ...]:
        """Organisations whose lease for claims has not ended yet."""
        return tuple(sorted(self._ready_at_s))

    def begin(self) -> None:
        """This keeper has just become active: it knows nothing of what the one before began."""
        self._looked.clear()
        self._ready_at_s.clear()

    async def tend(
        self,
        organisation: str,
        version: int,
        definitions: Definitions,
        *,
        is_lost: bool,
        drain: Callable[[], Awaitable[None]],
    ) -> None:
        """Do what is to be done now.

        Args:
            is_lost: The store just answered that it is not ready.
            drain: Brings everything on its way into the ledger.
        """
        if is_lost:
            self._looked.discard(organisation)  # until all is done: a marker whose answer is lost is looked for again
            self._ready_at_s.pop(organisation, None)
            await self._begin(organisation, version, definitions, drain)
        elif organisation not in self._looked:
            now_ms = self._clock.now_ms()
            found = await self._quota.apply(Inspect(organisation=organisation, caller_now_ms=now_ms, holds_max=0))
            if isinstance(found, Inspected) and found.epoch == 0:
                self._wait(organisation, await self._restorer.restored(organisation))
            elif isinstance(found, Inspected) and found.epoch > await self._books.epoch(organisation):
                await self._books.keep_epoch(organisation, found.epoch)
            self._looked.add(organisation)
        elif self._clock.monotonic_s() >= self._ready_at_s.get(organisation, float("inf")):
            await drain()
            await self._reopen_results(organisation)
            epoch = await self._books.epoch(organisation) + 1
            refused = await self._ready(organisation, epoch, self._restored[organisation])
            if refused is not None:
                await self._begin_again(organisation, version, definitions, drain, refused)
            else:
                del self._ready_at_s[organisation]

    async def _begin_again(
        self,
        organisation: str,
        version: int,
        definitions: Definitions,
        drain: Callable[[], Awaitable[None]],
        refused: Refused,
    ) -> None:
        """What waited for its ready is not what was restored: it was lost, and is nobody's, or another keeper's."""
        self._looked.discard(organisation)
        _log.error("a rebuild begins again", extra={"organisation": organisation, "why": refused.why})
        inspect = Inspect(organisation=organisation, caller_now_ms=self._clock.now_ms(), holds_max=0)
        found = await self._quota.apply(inspect)
        if isinstance(found, Inspected) and found.epoch == 0:
            await self._restorer.forget(organisation)  # by a keeper that was deposed, from a ledger of before
        if not isinstance(found, Inspected) or found.epoch == 0:
            await self._begin(organisation, version, definitions, drain)
        else:
            del self._ready_at_s[organisation]

    async def _begin(
        self, organisation: str, version: int, definitions: Definitions, drain: Callable[[], Awaitable[None]]
    ) -> None:
        why = ""
        for _ in range(BEGINNINGS_MAX):
            refused = await self._begin_once(organisation, version, definitions, drain)
            if refused is None:
                self._looked.add(organisation)
                return
            why = refused.why
            _log.error("a rebuild begins again", extra={"organisation": organisation, "why": why})
        raise StoreUnavailable(f"{organisation}: cannot be rebuilt: {why}; see who empties Redis")

    async def _begin_once(
        self, organisation: str, version: int, definitions: Definitions, drain: Callable[[], Awaitable[None]]
    ) -> Refused | None:
        await drain()
        now_ms = self._clock.now_ms()
        define = Define(organisation=organisation, caller_now_ms=now_ms, version=version, definitions=definitions)
        await self._quota.apply(define)
        newest_ms = await self._books.newest_ms(organisation)
        epoch = await self._books.epoch(organisation)
        if epoch == 0 and newest_ms == 0:
            return await self._ready(organisation, 1, NOTHING)
        _log.error("quota state was lost, it is rebuilt from the ledger", extra={"organisation": organisation})
        clock_ms = max(now_ms, newest_ms)
        self._tell(f"{organisation}: adding up the ledger")
        sums = await self._books.window_sums(organisation, since_ms=current_since_ms(definitions, clock_ms))
        rows = await self._books.to_be_remembered(organisation, now_ms=clock_ms, remember_ms=REMEMBER_MS)
        jobs = open_jobs(rows)
        self._tell(f"{organisation}: restoring {len(sums)} windows, {len(rows)} late events and {len(jobs)} open jobs")
        restored = await self._restorer.restore(
            organisation, clock_ms=clock_ms, window_sums=sums, tombstones=rows, jobs=jobs
        )
        if isinstance(restored, Refused):
            return restored
        await self._books.keep_epoch(organisation, epoch)  # a keeper that was deposed meanwhile ends here
        mark = Ready(organisation=organisation, caller_now_ms=now_ms, epoch=0, restored=restored)
        answer = await self._quota.apply(mark)
        if isinstance(answer, Refused):
            return answer
        self._wait(organisation, restored)
        return None

    async def _reopen_results(self, organisation: str) -> None:
        """At the end of the lease, when whoever settled one before the loss has noted that it is settled."""
        since_ms = self._clock.now_ms() - REMEMBER_MS
        reopened = await self._books.reopen_results(organisation, since_ms=since_ms)
        if reopened:
            self._tell(f"{organisation}: {reopened} results are settled again, whose charge was lost")

    def _wait(self, organisation: str, restored: str | None) -> None:
        self._restored[organisation] = restored
        self._ready_at_s[organisation] = self._clock.monotonic_s() + self._lease_ms / 1000

    async def _ready(self, organisation: str, epoch: int, restored: str | None) -> Refused | None:
        await self._books.keep_epoch(organisation, epoch)
        now_ms = self._clock.now_ms()
        ready = Ready(organisation=organisation, caller_now_ms=now_ms, epoch=epoch, restored=restored)
        answer = await self._quota.apply(ready)
        if isinstance(answer, Refused):
            return answer
        _log.info("admissions begin", extra={"organisation": organisation, "epoch": epoch})
        return None
