"""Reading the ledger: usage for people, sums for the audit, events for a rebuild. Nothing here writes.

``LedgerReads`` is for a thread and a connection; ``SqlLedger`` is what callers on the event loop use. Statements
are constants, values are bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, Text, and_, cast, func, select, tuple_

from penstock.adapters.sql.rows import month_of, placed_in, to_event
from penstock.adapters.sql.tables import ledger
from penstock.errors import InvalidRequest
from penstock.ports import UsageQuery, UsageRow
from penstock.quota.events import Event
from penstock.quota.identity import created_at_ms

_DAY_MS = 86_400_000
IDS_PER_STATEMENT = 500
_ROWS_PER_STATEMENT = 2_000

_decode_amounts = msgspec.json.Decoder(list[tuple[str, int, int]]).decode
_row = ledger.c
_GROUPS: dict[str, ColumnElement[int] | ColumnElement[str]] = {
    "day": _row.occurred_at_ms // _DAY_MS,
    "model": _row.model,
    "key": _row.key,
    "team": _row.team,
}
_SUMS = tuple(
    cast(func.coalesce(func.sum(column), 0), BigInteger)  # PostgreSQL sums to decimals
    for column in (_row.requests, _row.prompt_tokens, _row.cached_tokens, _row.completion_tokens, _row.cost_nanos)
)


class LedgerReads:
    """What one connection sees of the ledger; one snapshot, if the caller began a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Add up charges, sorted by group; without groups one row, of zeros if there is nothing.

        Raises:
            InvalidRequest: ``group_by`` names something else than day, model, key and team.
        """
        unknown = [name for name in query.group_by if name not in _GROUPS]
        if unknown:
            raise InvalidRequest(
                f"group_by: {', '.join(unknown)} is not a group; use {', '.join(_GROUPS)}", param="group_by"
            )
        groups = [_GROUPS[name] for name in query.group_by]
        statement = (
            select(*groups, *_SUMS)
            .where(
                _row.organisation == query.organisation,
                _row.occurred_at_ms >= query.start_ms,
                _row.occurred_at_ms < query.end_ms,
            )
            .group_by(*groups)
        )
        rows = []
        for found in self._connection.execute(statement):
            group = tuple(_shown(name, value) for name, value in zip(query.group_by, found, strict=False))
            sums: Sequence[Any] = found[len(groups) :]
            rows.append(UsageRow(group, *sums))
        return sorted(rows, key=lambda row: tuple(value or "" for value in row.group))

    def organisations(self) -> tuple[str, ...]:
        """Every organisation that has a row, sorted."""
        statement = select(_row.organisation).distinct().order_by(_row.organisation)
        return tuple(self._connection.execute(statement).scalars())

    def window_sums(self, organisation: str, *, since_ms: int = 0) -> dict[tuple[str, int], int]:
        """What rows at or after ``since_ms`` posted to each (limit id, window id).

        Added here and not in SQL: the same on every database, and half the time of SQLite's JSON functions.
        """
        statement = (
            select(cast(_row.amounts, Text))
            .where(_row.organisation == organisation, _row.occurred_at_ms >= since_ms)
            .execution_options(yield_per=_ROWS_PER_STATEMENT)
        )
        sums: dict[tuple[str, int], int] = {}
        for amounts in self._connection.execute(statement).scalars():
            for limit, window, amount in _decode_amounts(amounts):
                sums[limit, window] = sums.get((limit, window), 0) + amount
        return sums

    def events(
        self, *, organisation: str | None = None, start_ms: int = 0, end_ms: int | None = None
    ) -> Iterator[Event]:
        """Every event in order of time (then reservation and kind), read in portions; ``end_ms`` is excluded."""
        order = (_row.occurred_at_ms, _row.reservation, _row.kind)
        wanted = [_row.occurred_at_ms >= start_ms]
        if organisation is not None:
            wanted.append(_row.organisation == organisation)
        if end_ms is not None:
            wanted.append(_row.occurred_at_ms < end_ms)
        statement = select(ledger).order_by(*order).limit(_ROWS_PER_STATEMENT)
        after: tuple[int, str, str] | None = None
        while True:
            here = wanted if after is None else [*wanted, tuple_(*order) > after]
            rows = self._connection.execute(statement.where(and_(*here))).all()
            yield from map(to_event, rows)
            if len(rows) < _ROWS_PER_STATEMENT:
                return
            after = (rows[-1].occurred_at_ms, rows[-1].reservation, rows[-1].kind)

    def served(self, *, model: str, lane: str, start_ms: int, end_ms: int) -> list[tuple[int, int, int]]:
        """Each charged request of one model and lane, by arrival: when (Unix ms), prompt and completion tokens.

        When a request arrived is in its id; of a job that was named by its client it is in its first event.

        Args:
            start_ms: Of the events that are looked at; included.
            end_ms: Excluded.
        """
        first_ms = func.min(_row.occurred_at_ms)
        prompt, completion = (
            cast(func.sum(column), BigInteger) for column in (_row.prompt_tokens, _row.completion_tokens)
        )
        statement = (
            select(_row.reservation, first_ms, prompt, completion)
            .where(
                _row.model == model,
                _row.lane == lane,
                _row.occurred_at_ms >= start_ms,
                _row.occurred_at_ms < end_ms,
            )
            .group_by(_row.month, _row.reservation)
            .having(func.sum(_row.requests) > 0)
            .execution_options(yield_per=_ROWS_PER_STATEMENT)
        )
        return sorted(
            (created_at_ms(reservation) or since_ms, tokens_in, tokens_out)
            for reservation, since_ms, tokens_in, tokens_out in self._connection.execute(statement)
        )

    def of_reservations(self, organisation: str, reservations: Sequence[str]) -> list[Event]:
        """The events of these reservations, those of the organisation only, in order of time."""
        found: list[Event] = []
        for start in range(0, len(reservations), IDS_PER_STATEMENT):
            ids = reservations[start : start + IDS_PER_STATEMENT]
            statement = select(ledger).where(
                _row.month.in_({month_of(reservation) for reservation in ids}),
                _row.reservation.in_(ids),
                _row.organisation == organisation,
            )
            found.extend(map(to_event, self._connection.execute(statement)))
        return sorted(found, key=lambda event: (event.occurred_at_ms, event.reservation, event.kind))

    def of_the_same(self, events: Sequence[Event]) -> list[Event]:
        """The rows of every reservation that some events are of, whatever organisation's; in no order."""
        found: list[Event] = []
        wanted = sorted({(event.organisation, event.reservation) for event in events})
        for start in range(0, len(wanted), IDS_PER_STATEMENT):
            some = set(wanted[start : start + IDS_PER_STATEMENT])
            statement = select(ledger).where(
                _row.month.in_({placed_in(reservation) for _, reservation in some}),
                _row.reservation.in_([reservation for _, reservation in some]),
            )
            rows = map(to_event, self._connection.execute(statement))
            found.extend(row for row in rows if (row.organisation, row.reservation) in some)
        return found

    def to_be_remembered(self, organisation: str, *, now_ms: int, remember_ms: int) -> list[Event]:
        """Events of the last ``remember_ms``, and those of requests whose own deadline is still to come, by time."""
        recent = (_row.occurred_at_ms > now_ms - remember_ms, _row.job_deadline_ms > now_ms)
        found = {
            (event.occurred_at_ms, event.reservation, event.kind): event
            for each in recent  # two statements, since each has an index of its own
            for event in map(
                to_event, self._connection.execute(select(ledger).where(_row.organisation == organisation, each))
            )
        }
        return [found[key] for key in sorted(found)]

    def newest_ms(self, organisation: str | None = None) -> int:
        """When the newest event occurred; 0 of an empty ledger."""
        statement = select(func.coalesce(func.max(_row.occurred_at_ms), 0))
        if organisation is not None:
            statement = statement.where(_row.organisation == organisation)
        newest: int = self._connection.execute(statement).scalar_one()
        return newest


class SqlLedger:
    """``penstock.ports.Ledger`` on SQL: each call reads in a thread, so that the event loop never waits."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """See ``LedgerReads.usage``."""

        def read() -> list[UsageRow]:
            with self._engine.connect() as connection:
                return LedgerReads(connection).usage(query)

        return await asyncio.to_thread(read)


def _shown(name: str, value: str | int | None) -> str | None:
    if name == "day" and isinstance(value, int):
        return datetime.fromtimestamp(value * _DAY_MS / 1000, tz=UTC).date().isoformat()
    return None if value is None else str(value)
