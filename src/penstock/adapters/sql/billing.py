"""Reads of the ledger that bills are made of: an invoice's lines, added up by the database, and rows to be exported.

The ledger is never in memory as a whole: lines are as many as models, payers and prices, rows are read in portions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, and_, case, cast, func, null, select, tuple_

from penstock.adapters.sql.tables import corrections, ledger
from penstock.lanes.billing import Correction, Invoice, InvoiceLine, Month, Status
from penstock.quota.definitions import Price
from penstock.quota.events import CHARGING, EventKind

PAYERS = ("team", "key")
ROWS_PER_STATEMENT = 5_000
EXPORTED = (*(each.name for each in ledger.columns if each.name not in ("month", "amounts")), "author", "corrects")
"""Columns of an exported row, in order; ``amounts``, which only a rebuild of counters needs, stays behind. The last two
are of corrections."""
CORRECTION = "correction"

_row = ledger.c
_CHARGING = [kind.value for kind in CHARGING]
_PRICES = (_row.prompt_picos, _row.cached_picos, _row.completion_picos, _row.request_picos)
_SUMMED = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanos")


def invoice(connection: Connection, organisation: str, month: Month, *, payers: str, status: Status) -> Invoice:
    """Make the invoice of a month.

    Args:
        payers: One of ``PAYERS``.
    """
    expired = ledger.alias()
    before = (
        select(expired.c.reservation)
        .where(
            expired.c.month == _row.month,
            expired.c.reservation == _row.reservation,
            expired.c.kind == EventKind.EXPIRED.value,
            expired.c.organisation == _row.organisation,
            expired.c.occurred_at_ms < month.start_ms,
        )
        .exists()
    )
    adjusts = case((and_(_row.kind == EventKind.LATE.value, before), 1), else_=0).label("adjusts")
    rows = (
        select(ledger, adjusts)
        .where(
            _row.organisation == organisation,
            _row.occurred_at_ms >= month.start_ms,
            _row.occurred_at_ms < month.end_ms,
            _row.kind.in_(_CHARGING),
        )
        .subquery()
    )
    groups = [rows.c[name] for name in ("adjusts", "model", payers, *(price.name for price in _PRICES))]
    sums = [cast(func.sum(rows.c[name]), BigInteger) for name in _SUMMED]
    lines, count = [], 0
    for found in connection.execute(select(*groups, *sums, func.count()).group_by(*groups)):
        is_adjustment, model, payer, prompt, cached, completion, request, *rest = found
        *amounts, in_line = rest
        count += in_line
        price = Price(prompt_picos=prompt, cached_picos=cached, completion_picos=completion, request_picos=request)
        line = dict(zip(_SUMMED, amounts, strict=True))
        lines.append(InvoiceLine(model=model, payer=payer, price=price, is_adjustment=bool(is_adjustment), **line))
    lines.sort(key=_order)
    return Invoice(
        organisation=organisation,
        month=month,
        status=status,
        payers=payers,
        lines=lines,
        rows=count,
        corrections=read_corrections(connection, organisation, start_ms=month.start_ms, end_ms=month.end_ms),
    )


def read_corrections(connection: Connection, organisation: str, *, start_ms: int, end_ms: int) -> list[Correction]:
    """Those of a range, in order of time and reference; ``end_ms`` is excluded."""
    row = corrections.c
    statement = (
        select(corrections)
        .where(row.organisation == organisation, row.occurred_at_ms >= start_ms, row.occurred_at_ms < end_ms)
        .order_by(row.occurred_at_ms, row.reference)
    )
    return [Correction(**found) for found in connection.execute(statement).mappings()]


def _order(line: InvoiceLine) -> tuple[Any, ...]:
    price = line.price
    prices = (price.prompt_picos, price.cached_picos, price.completion_picos, price.request_picos)
    return line.is_adjustment, line.model, line.payer or "", prices


def exported_rows(
    connection: Connection,
    organisations: Sequence[str],
    *,
    start_ms: int,
    end_ms: int,
    rows_at_once: int = ROWS_PER_STATEMENT,
) -> Iterator[Sequence[dict[str, Any]]]:
    """The rows of some organisations in portions: by organisation, time, reservation and kind; ``end_ms`` excluded.

    An organisation's corrections come after its rows, in order of time.
    """
    columns = [_row[name] if name in _row else null().label(name) for name in EXPORTED]
    order = (_row.occurred_at_ms, _row.reservation, _row.kind)
    for organisation in organisations:
        after: tuple[int, str, str] | None = None
        while True:
            wanted = [_row.organisation == organisation, _row.occurred_at_ms >= start_ms, _row.occurred_at_ms < end_ms]
            if after is not None:
                wanted += [_row.occurred_at_ms >= after[0], tuple_(*order) > after]
            statement = select(*columns).where(*wanted).order_by(*order).limit(rows_at_once)
            rows = [dict(row) for row in connection.execute(statement).mappings()]
            if rows:
                yield rows
            if len(rows) < rows_at_once:
                break
            after = (rows[-1]["occurred_at_ms"], rows[-1]["reservation"], rows[-1]["kind"])
        written = read_corrections(connection, organisation, start_ms=start_ms, end_ms=end_ms)
        if written:
            yield [_exported(each) for each in written]


def _exported(correction: Correction) -> dict[str, Any]:
    """A correction in the columns of a row: what it does not have is 0."""
    known: dict[str, Any] = {
        "reservation": f"{CORRECTION}-{correction.reference}",
        "kind": CORRECTION,
        "usage_source": CORRECTION,
        "tokens": correction.prompt_tokens + correction.completion_tokens,
    }
    return {name: known[name] if name in known else getattr(correction, name, 0) for name in EXPORTED}
