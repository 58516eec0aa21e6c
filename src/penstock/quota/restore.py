"""Building an organisation again from what survived: the ledger's sums and rows, and the records saved beside it.

A window's use is what the ledger's rows sum to, never what a counter said, so that counters and ledger agree by
construction. Whatever survived as open stays open, and expires in the ordinary sweep when its lease ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from heapq import heapify

from penstock.quota.admitting import plan_for
from penstock.quota.charging import held_amounts
from penstock.quota.counters import CONCURRENCY, ENQUEUED, WINDOW, Counter, new_counter
from penstock.quota.definitions import Definitions, Kind
from penstock.quota.events import Event, EventKind
from penstock.quota.limits import DAY_MS, limit_id, parse_limit_id, window_ends_ms, window_id
from penstock.quota.model import Organisation
from penstock.quota.operations import Lane, State
from penstock.quota.pricing import cost_nanos_max
from penstock.quota.state import REMEMBER_MS, Reservation

LONGEST_WINDOW_MS = 31 * DAY_MS  # of limits that are no longer defined

_STATES = {
    EventKind.POSTED: State.POSTED,
    EventKind.VOIDED: State.VOIDED,
    EventKind.EXPIRED: State.EXPIRED,
    EventKind.LATE: State.LATE,
}


def current_since_ms(definitions: Definitions, now_ms: int) -> int:
    """When the oldest window that is current began: the ledger's rows before it are in no counter."""
    since_ms = now_ms - LONGEST_WINDOW_MS
    for limit in definitions.limits:
        if limit.kind is Kind.WINDOW:
            window = window_id(limit.period_ms, limit.anchor_ms, now_ms)
            since_ms = min(since_ms, window_ends_ms(limit.period_ms, limit.anchor_ms, window - 1))
    return since_ms


def restore(
    name: str,
    *,
    version: int,
    definitions: Definitions,
    epoch: int,
    time_ms: int,
    ledger_time_ms: int = 0,
    window_sums: Mapping[tuple[str, int], int] | None = None,
    reservations: Iterable[Reservation] = (),
    tombstones: Iterable[Event] = (),
    jobs: Iterable[Event] = (),
    buckets: Mapping[str, tuple[int, int]] | None = None,
    restored: str = "",
) -> Organisation:
    """An organisation as it stood, as far as it is known.

    Args:
        version: Of ``definitions``, which are taken as they are: they were checked when they were defined.
        epoch: The one before, if nothing was lost; 0 if the marker and a new epoch are still to be written.
        ledger_time_ms: When its newest row occurred: the clock does not start before it.
        window_sums: What the ledger's rows add up to by (limit id, window id). The newest window of each counts.
        reservations: Saved records, of any state. One that a tombstone contradicts has since ended.
        tombstones: Ledger rows of reservations that must still be remembered, in the order of the ledger.
        jobs: One row of each job that is open and was not saved: it is queued again, and holds what it held.
        buckets: (level, rolled_at_ms) by limit id. A bucket that was not saved starts empty.
        restored: What its ready must name.

    Returns:
        The organisation. A limit that is named here but no longer defined returns with cap 0.
    """
    organisation = Organisation(
        name,
        marked=epoch > 0,
        epoch=epoch,
        restored=restored,
        clock_ms=max(time_ms, ledger_time_ms),
        version=version,
        definitions=definitions,
        defined={limit_id(limit): limit for limit in definitions.limits},
    )
    _count(organisation, window_sums or {}, buckets or {})
    records = organisation.reservations
    for reservation in reservations:
        records[reservation.id] = replace(reservation)
    for row in tombstones:
        if row.kind in _STATES:
            records[row.reservation] = _tombstone(organisation, row, records.get(row.reservation))
    for row in jobs:
        if row.job_deadline_ms > organisation.clock_ms and row.reservation not in records:
            records[row.reservation] = _queued(organisation, row)
    for reservation in records.values():
        _take(organisation, reservation)
    heapify(organisation.deadlines)
    heapify(organisation.forgets)
    return organisation


def _count(
    organisation: Organisation, window_sums: Mapping[tuple[str, int], int], buckets: Mapping[str, tuple[int, int]]
) -> None:
    for each in organisation.defined:
        _counter(organisation, each)
    for (each, window), used in sorted(window_sums.items()):
        counter = _counter(organisation, each)
        counter.window, counter.used = window, used
    for each, (level, rolled_at_ms) in buckets.items():
        counter = _counter(organisation, each)
        counter.level = min(level, counter.cap * counter.period_ms)
        counter.rolled_at_ms = min(rolled_at_ms, organisation.clock_ms)


def _counter(organisation: Organisation, limit: str) -> Counter:
    counter = organisation.counters.get(limit)
    if counter is None:
        definition = organisation.defined.get(limit) or parse_limit_id(limit)
        counter = organisation.counters[limit] = new_counter(limit, definition, organisation.clock_ms)
        counter.level = 0
    return counter


def _tombstone(organisation: Organisation, row: Event, record: Reservation | None) -> Reservation:
    """What must be remembered of a reservation that left OPEN; its record, if one was saved, knows the limits."""
    known = record if record is not None else _unrecorded(organisation, row)
    remembered = replace(
        known,
        state=_STATES[row.kind],
        concurrency=(),
        due_at_ms=max(row.occurred_at_ms + REMEMBER_MS, row.job_deadline_ms),
    )
    if row.kind is EventKind.EXPIRED:
        remembered.charged_prompt, remembered.charged_completion = row.usage.prompt, row.usage.completion
        remembered.charged_tokens, remembered.charged_requests = row.charge.tokens, row.charge.requests
        remembered.charged_cost_nanos = row.charge.cost_nanos
    return remembered


def _unrecorded(organisation: Organisation, row: Event) -> Reservation:
    return Reservation(
        id=row.reservation,
        state=State.EXPIRED,
        team=row.team,
        key=row.key,
        model=row.model,
        lane=Lane(row.lane),
        price=row.price,
        tokens_held=row.tokens_held,
        windows=plan_for(organisation, row.team, row.key, row.model).windows,
        job_deadline_ms=row.job_deadline_ms,
    )


def _queued(organisation: Organisation, row: Event) -> Reservation:
    """Which of its tokens were prompt is not known: its cost is held at the higher price."""
    job = _unrecorded(organisation, row)
    plan = plan_for(organisation, row.team, row.key, row.model)
    return replace(
        job,
        state=State.OPEN,
        cost_held=max(cost_nanos_max(row.price, row.tokens_held, 0), cost_nanos_max(row.price, 0, row.tokens_held)),
        concurrency=plan.enqueued,
        due_at_ms=row.job_deadline_ms,
    )


def _take(organisation: Organisation, reservation: Reservation) -> None:
    """Let a record hold what it names, and queue it for the sweep."""
    counters = [_counter(organisation, each) for each in (*reservation.windows, *reservation.rates)]
    if reservation.state is not State.OPEN:
        organisation.forgets.append((reservation.due_at_ms, reservation.id))
        return
    organisation.deadlines.append((reservation.due_at_ms, reservation.id))
    amounts = held_amounts(reservation)
    for counter in counters:
        if counter.kind is WINDOW:
            counter.held += amounts[counter.unit]
    for each in reservation.concurrency:
        counter = _counter(organisation, each)
        assert counter.kind is CONCURRENCY or counter.kind is ENQUEUED
        counter.held += amounts[counter.unit]
