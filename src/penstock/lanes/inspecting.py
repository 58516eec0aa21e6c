"""An organisation's standing when it has more holds than a store should read at once: page by page.

A page of 200 holds takes Redis some milliseconds, in which nobody else is served; all of 50,000 would take it most of a
second. What a page leaves out may change before the next one is read, so that several pages are of no one instant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from penstock.ports import QuotaStore
from penstock.quota.operations import Hold, Inspect, Inspected, NotReady

PAGE: Final = 200
OVERDUE_MS: Final = 15_000
"""A keeper sweeps every second; a hold that is so long past its lease says that none does."""


@dataclass(frozen=True, slots=True)
class Read:
    """What was read.

    Args:
        inspected: Holds by reservation, each once; limits as they were at the end.
        is_of_one_instant: Nothing can have changed on the way.
        is_still: The limits were the same at the beginning; so what changed on the way, if anything, cancels out.
    """

    inspected: Inspected
    is_of_one_instant: bool
    is_still: bool


async def inspect(quota: QuotaStore, organisation: str, *, now_ms: int, page: int = PAGE) -> Read | NotReady:
    """Limits and open holds of one organisation.

    Raises:
        StoreUnavailable: As the store's.
    """
    holds: dict[str, Hold] = {}
    first: Inspected | None = None
    place: tuple[int | None, str | None] = (None, None)
    while True:
        call = Inspect(
            organisation=organisation, caller_now_ms=now_ms, holds_max=page, after_ms=place[0], after=place[1]
        )
        answer = await quota.apply(call)
        if isinstance(answer, NotReady):
            return answer
        is_first, first = first is None, first or answer
        holds.update((each.reservation, each) for each in answer.holds)
        if len(answer.holds) < page:
            whole = replace(answer, holds=tuple(hold for _, hold in sorted(holds.items())))
            return Read(whole, is_first, (first.epoch, _amounts(first)) == (answer.epoch, _amounts(answer)))
        place = answer.holds[-1].deadline_ms, answer.holds[-1].reservation


def overdue(inspected: Inspected) -> int:
    """How many open holds nobody swept in time."""
    return sum(hold.deadline_ms + OVERDUE_MS < inspected.now_ms for hold in inspected.holds)


def _amounts(inspected: Inspected) -> list[tuple[str, int, int, int]]:
    return [(each.limit, each.used, each.held, each.window) for each in inspected.limits]
