"""What leaving OPEN does to counters and outbox: free the holds, post what was used, write one event.

Apart, since settle, void, expire and post must all do it the same way.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.quota.counters import RATE, Amounts, Counter, pour, roll
from penstock.quota.events import Amount, Charge, Event, EventKind, Usage, UsageSource
from penstock.quota.state import Account, Reservation

NOTHING: Amounts = (0, 0, 0)
NO_USAGE = Usage(0, 0, 0, UsageSource.NONE)
NO_CHARGE = Charge()


def held_amounts(reservation: Reservation) -> Amounts:
    """What an open reservation holds of each limit it names."""
    return reservation.tokens_held, 1, reservation.cost_held


def free_concurrency(account: Account, reservation: Reservation) -> None:
    """The request leaves its places: in flight, or in the queue."""
    held = held_amounts(reservation)
    for limit in reservation.concurrency:
        counter = account.counters[limit]
        counter.held -= held[counter.unit]
    reservation.concurrency = ()


def post_windows(counters: Iterable[Counter], actual: Amounts, now_ms: int) -> tuple[Amount, ...]:
    """Add what was used to the windows of now; answers what the event must list."""
    posted = []
    for counter in counters:
        amount = actual[counter.unit]
        if amount:
            roll(counter, now_ms)
            counter.used += amount
            posted.append(Amount(counter.limit, counter.window, amount))
    return tuple(posted)


def close(account: Account, reservation: Reservation, actual: Amounts, now_ms: int) -> tuple[Amount, ...]:
    """Free every hold of an open reservation and post what was used.

    Windows are posted to the window of now. A rate gets back what was not used, a strict rate nothing; both are
    charged what was used beyond the hold.
    """
    held = reservation.tokens_held, 1, reservation.cost_held
    counters = account.counters
    posted = []
    for limit in reservation.windows:
        counter = counters[limit]
        if now_ms >= counter.ends_at_ms:
            roll(counter, now_ms)
        unit = counter.unit
        counter.held -= held[unit]
        amount = actual[unit]
        if amount:
            counter.used += amount
            posted.append(Amount(limit, counter.window, amount))
    for limit in reservation.rates:
        counter = counters[limit]
        back = held[counter.unit] - actual[counter.unit]
        if back < 0 or (back and counter.kind is RATE):
            roll(counter, now_ms)
            pour(counter, back)
    if reservation.concurrency:
        free_concurrency(account, reservation)
    return tuple(posted)


def cancel_out(account: Account, reservation: Reservation, now_ms: int) -> None:
    """Free every hold of an open reservation as if it had never been: rates are returned in full, strict ones too."""
    held = held_amounts(reservation)
    for limit in reservation.windows:
        counter = account.counters[limit]
        counter.held -= held[counter.unit]
    for limit in reservation.rates:
        counter = account.counters[limit]
        roll(counter, now_ms)
        pour(counter, held[counter.unit])
    free_concurrency(account, reservation)


def charge_late(account: Account, reservation: Reservation, actual: Amounts, now_ms: int) -> tuple[Amount, ...]:
    """Add to an expired reservation's limits what its expiry did not charge. Nothing is ever given back.

    ``actual`` is the whole request's. A strict rate returned nothing at the expiry, so only what is above both the
    debit and the earlier charge is taken.
    """
    charged = charged_amounts(reservation)
    held = held_amounts(reservation)
    more = less(actual, charged)
    counters = account.counters
    for limit in reservation.rates:
        counter = counters[limit]
        unit = counter.unit
        paid = charged[unit] if counter.kind is RATE else max(held[unit], charged[unit])
        if actual[unit] > paid:
            roll(counter, now_ms)
            pour(counter, paid - actual[unit])
    return post_windows((counters[limit] for limit in reservation.windows), more, now_ms)


def charged_amounts(reservation: Reservation) -> Amounts:
    """What the reservation's expiry charged."""
    return reservation.charged_tokens, reservation.charged_requests, reservation.charged_cost_nanos


def less(actual: Amounts, charged: Amounts) -> Amounts:
    """What is still to be charged, per metric: never below 0."""
    return max(0, actual[0] - charged[0]), max(0, actual[1] - charged[1]), max(0, actual[2] - charged[2])


def record(
    account: Account,
    reservation: Reservation,
    kind: EventKind,
    now_ms: int,
    *,
    usage: Usage = NO_USAGE,
    charge: Amounts = NOTHING,
    amounts: tuple[Amount, ...] = (),
    reason: str = "",
) -> None:
    """Append one event to the outbox."""
    account.outbox.append(
        Event(
            kind=kind,
            reservation=reservation.id,
            organisation=account.name,
            team=reservation.team,
            key=reservation.key,
            model=reservation.model,
            lane=str(reservation.lane),
            occurred_at_ms=now_ms,
            usage=usage,
            charge=Charge(*charge) if charge is not NOTHING else NO_CHARGE,
            amounts=amounts,
            price=reservation.price,
            tokens_held=0 if kind is EventKind.LATE else reservation.tokens_held,
            job_deadline_ms=reservation.job_deadline_ms,
            reason=reason,
        )
    )
