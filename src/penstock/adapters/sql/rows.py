"""Events to ledger rows and back, and the statements that write them, compiled once.

Apart from the reads because the writer's path counts: one event becomes one tuple in the order of the table's
columns, and a group goes to the driver as one ``executemany``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Row
from sqlalchemy.dialects.sqlite import dialect, insert
from sqlalchemy.sql.dml import Insert

from penstock.adapters.sql.tables import bucket_states, epochs, ledger, reservations
from penstock.quota.definitions import Price
from penstock.quota.events import Amount, Charge, Event, EventKind, Usage, UsageSource
from penstock.quota.identity import created_at_ms
from penstock.quota.limits import DAY_MS, MONTH_MS, window_id

UNDATED = 197001  # the month of ids that carry no time: they begin with twelve zeros

_DAYS_KEPT_MAX = 4096
_months: dict[int, int] = {}  # by days since 1970

_encode = msgspec.json.Encoder().encode


def _compiled(statement: Insert) -> str:
    return str(statement.compile(dialect=dialect()))


# A group that failed in doubt is written again: its rows may be there, and are the same.
INSERT_EVENT = _compiled(insert(ledger).on_conflict_do_nothing())
_record = insert(reservations)
UPSERT_RECORD = _compiled(
    _record.on_conflict_do_update(index_elements=["reservation"], set_={"record": _record.excluded.record})
)
DELETE_RECORD = f"DELETE FROM {reservations.name} WHERE {reservations.c.reservation.name} IN (VALUES (?))"
_bucket = insert(bucket_states)
UPSERT_BUCKET = _compiled(
    _bucket.on_conflict_do_update(
        index_elements=["organisation", "limit_id"],
        set_={"level": _bucket.excluded.level, "at_ms": _bucket.excluded.at_ms},
    )
)
_epoch = insert(epochs)
UPSERT_EPOCH = _compiled(
    _epoch.on_conflict_do_update(index_elements=["organisation"], set_={"epoch": _epoch.excluded.epoch})
)


@lru_cache(maxsize=128)
def of_rows(statement: str, rows: int) -> str:
    """One of the statements above for several rows: where each row is one step, the driver lets go of the interpreter
    and takes it again for each, and an event loop beside it pays as much as the driver does.

    Example:
        >>> of_rows(DELETE_RECORD, 2)
        'DELETE FROM reservations WHERE reservation IN (VALUES (?), (?))'
    """
    row = "(" + ", ".join("?" * statement.count("?")) + ")"
    return statement.replace(row, ", ".join([row] * rows))


def month_of(reservation: str) -> int:
    """The ledger's partition of a reservation, yyyymm in UTC, read from its id.

    Raises:
        ValueError: The id does not begin with its time.

    Example:
        >>> month_of('018bcfe56800000000000000000000ff')
        202311
    """
    day = created_at_ms(reservation) // DAY_MS
    known = _months.get(day)
    if known is not None:
        return known
    if len(_months) >= _DAYS_KEPT_MAX:
        _months.clear()
    year, month = divmod(window_id(MONTH_MS, 0, day * DAY_MS), 12)
    _months[day] = year * 100 + month + 1
    return _months[day]


def placed_in(reservation: str) -> int:
    """The month of its rows, also of an id that carries no time: such a one must not hold up all behind it."""
    try:
        return month_of(reservation)
    except ValueError:
        return UNDATED


def to_row(event: Event, *, month: int | None = None) -> tuple[Any, ...]:
    """One event as the ledger's columns, in their order; of the month that its id tells, unless one is given."""
    usage, charge, price = event.usage, event.charge, event.price
    return (
        month_of(event.reservation) if month is None else month,
        event.reservation,
        str(event.kind),
        event.organisation,
        event.team,
        event.key,
        event.model,
        event.lane,
        event.occurred_at_ms,
        usage.prompt,
        usage.cached,
        usage.completion,
        str(usage.source),
        charge.tokens,
        charge.requests,
        charge.cost_nanos,
        _encode([(amount.limit, amount.window, amount.amount) for amount in event.amounts]).decode(),
        event.tokens_held,
        price.prompt_picos,
        price.cached_picos,
        price.completion_picos,
        price.request_picos,
        event.job_deadline_ms,
        event.reason,
    )


def to_event(row: Row[Any]) -> Event:
    """One row of ``select(ledger)`` as the event that it was; by position, since a restart reads many."""
    (
        _month, reservation, kind, organisation, team, key, model, lane, occurred_at_ms,
        prompt, cached, completion, source, tokens, requests, cost_nanos, amounts, tokens_held,
        prompt_picos, cached_picos, completion_picos, request_picos, job_deadline_ms, reason,
    ) = tuple(row)  # fmt: skip
    return Event(
        kind=EventKind(kind),
        reservation=reservation,
        organisation=organisation,
        team=team,
        key=key,
        model=model,
        lane=lane,
        occurred_at_ms=occurred_at_ms,
        usage=Usage(prompt, completion, cached, UsageSource(source)),
        charge=Charge(tokens, requests, cost_nanos),
        amounts=tuple([Amount(*amount) for amount in amounts]),
        price=Price(
            prompt_picos=prompt_picos,
            cached_picos=cached_picos,
            completion_picos=completion_picos,
            request_picos=request_picos,
        ),
        tokens_held=tokens_held,
        job_deadline_ms=job_deadline_ms,
        reason=reason,
    )
