"""Writes what an outbox has into the ledger, in which a reservation ends once, even if it ended twice in the store.

A Redis that lost the end of its log has holds again whose end the ledger may have. Processes tell it again what they
were acknowledged; one that was killed meanwhile does not, and its hold expires at its lower bound. The first end in the
ledger stands, so that bound is not billed beside it, and the store is told the charge that it lost::

    posted (48) is drained -> the end of the log is lost, the hold is open again -> it expires
    expired (2) is read: the ledger has posted -> not written; settled with what the ledger has, the store adds 46
    late (46) is read: the ledger has posted -> not written

Only what expired or came late is asked about, which is little of what is drained; a whole batch in one question.

A charge that was lost before the ledger had it is found again where a result tells it, as each job's does: what expires
while its result is stored is settled once more, late. Had that been done, it is answered that it was.

The store is told after the ledger has the batch, and before the batch leaves the store. Killed between any two of
these, the next keeper reads the same, decides the same, and finds the reservation settled or settles it. A keeper that
was deposed cannot write, so it tells nothing; deposed after it wrote, it tells what any other would.

What the store cannot take back stays in its counters until the window ends, or a rebuild: the lower bound of what the
ledger has as voided, and the difference to a charge of which the store has forgotten the hold as well (``Unknown``: a
quarter of an hour after it expired, if no keeper drained for so long). A store that is not ready is rebuilt from the
ledger, which has it right.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from penstock.ports import Clock, QuotaStore
from penstock.quota.events import FINAL, Event, EventKind, Usage
from penstock.quota.operations import Settle

_MAY_BE_SECOND: Final = (EventKind.EXPIRED, EventKind.LATE)

log = logging.getLogger(__name__)


class Entry(Protocol):
    """One event of a partition's outbox."""

    @property
    def id(self) -> str:
        """Grows within the partition."""
        ...

    @property
    def event(self) -> Event:
        """What happened."""
        ...

    @property
    def traceparent(self) -> str | None:
        """Of the request that it is about, if that is recorded."""
        ...


class Books(Protocol):
    """The ledger. Raises ``Deposed`` if another keeper took over, ``StoreUnavailable`` without a database."""

    async def drain(self, batches: Mapping[int, Sequence[Any]], *, without: Collection[Event] = ()) -> int:
        """Write the events of entries but those ``without``, and the position of the last; how many were new.

        A stored result whose reservation expired is to be settled again: its settle may have been lost with its hold.
        """
        ...

    async def of_the_same(self, events: Sequence[Event]) -> list[Event]:
        """The rows of every reservation that some events are of."""
        ...


@dataclass(frozen=True, slots=True)
class Draining:
    """Of one process that may write the ledger."""

    books: Books
    quota: QuotaStore
    clock: Clock

    async def drain(self, batches: Mapping[int, Sequence[Entry]]) -> tuple[int, list[Entry]]:
        """Write a batch; the caller removes it from the outbox afterwards.

        Returns:
            How many events were new to the ledger; and the entries that it has now.

        Raises:
            Deposed: Another keeper took over.
            StoreUnavailable: The ledger or the quota store does not answer: the batch is to be read and written again.
        """
        entries = [entry for each in batches.values() for entry in each]
        ended = await self._second_ends([entry.event for entry in entries])
        added = await self.books.drain(batches, without=ended.keys())
        if ended:
            await self._tell(ended)
        return added, [entry for entry in entries if entry.event not in ended] if ended else entries

    async def _second_ends(self, events: Iterable[Event]) -> dict[Event, list[Event]]:
        """Which events tell a second end, with the ledger's rows of their reservations."""
        asked = [event for event in events if event.kind in _MAY_BE_SECOND]
        if not asked:
            return {}
        rows: dict[tuple[str, str], list[Event]] = defaultdict(list)
        for row in await self.books.of_the_same(asked):
            rows[row.organisation, row.reservation].append(row)
        found = {event: rows[event.organisation, event.reservation] for event in asked}
        return {event: of_it for event, of_it in found.items() if any(row.kind in FINAL for row in of_it)}

    async def _tell(self, ended: Mapping[Event, Sequence[Event]]) -> None:
        """Settle what expired a second time with the usage that the ledger has, unless that is none: it was voided."""
        answers: Counter[str] = Counter()
        for event, rows in ended.items():
            if event.kind is not EventKind.EXPIRED or any(row.kind is EventKind.VOIDED for row in rows):
                continue
            settle = Settle(
                organisation=event.organisation,
                caller_now_ms=self.clock.now_ms(),
                reservation=event.reservation,
                usage=_used(rows),
            )
            answers[type(await self.quota.apply(settle)).__name__] += 1
        log.warning("reservations ended twice, their first end stands", extra={"events": len(ended), **answers})


def _used(rows: Sequence[Event]) -> Usage:
    """A late row carries what it adds to the expired one."""
    return Usage(
        sum(row.usage.prompt for row in rows),
        sum(row.usage.completion for row in rows),
        sum(row.usage.cached for row in rows),
        next(row.usage.source for row in rows if row.kind in FINAL),
    )
