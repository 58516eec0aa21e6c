"""Charges what the quota store has forgotten: by force, once, and only what the ledger has not charged already.

A store that lost its state, or forgot an ended reservation after a quarter of an hour, answers a settle ``Unknown``.
Had it been charged before, the event of that is in the outbox or in the ledger, and goes from the one to the other: so
the outbox is looked through first, and then the ledger::

    Unknown -> in the outbox: later
            -> posted, late or voided in the ledger: done
            -> else post, less what an expired row charged
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from penstock.ports import Clock, QuotaStore
from penstock.quota.events import FINAL, Event, EventKind, Usage
from penstock.quota.operations import Done, Post, PostAnswer, Reserve


async def _nothing(_organisation: str, _reservation: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Posting:
    """Posts for one process; of several that post the same at once, the store takes one.

    Args:
        events: The ledger's rows of a reservation.
        may_be_on_its_way: Whether the outbox may have an event of it; of a store without an outbox nothing is.
    """

    quota: QuotaStore
    clock: Clock
    events: Callable[[str, str], Awaitable[Sequence[Event]]]
    may_be_on_its_way: Callable[[str, str], Awaitable[bool]] = _nothing

    async def post(self, reserve: Reserve, usage: Usage) -> PostAnswer | Done | None:
        """Charge a reservation that the store does not know.

        Returns:
            What the store says; ``Done`` if the ledger has charged it; None if that cannot be told yet.

        Raises:
            StoreUnavailable: The quota store or the ledger does not answer.
        """
        if await self.may_be_on_its_way(reserve.organisation, reserve.reservation):
            return None
        rows = await self.events(reserve.organisation, reserve.reservation)
        if any(row.kind in FINAL for row in rows):
            return Done()
        return await self.quota.apply(
            Post(
                organisation=reserve.organisation,
                caller_now_ms=self.clock.now_ms(),
                arguments=reserve,
                usage=usage,
                already_charged=next((row for row in rows if row.kind is EventKind.EXPIRED), None),
            )
        )
