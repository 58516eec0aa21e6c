"""Events into the ledger, each once, however often it comes: COPY into a temporary table, then one INSERT.

COPY cannot skip what is there already, and an INSERT of a row at a time is slow; together they are both fast and safe.
Usage by hour and by day is rolled up in the same statement, from the rows that the ledger really took.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, Table

from penstock.adapters.sql.keeping_tables import usage_daily, usage_hourly
from penstock.adapters.sql.rows import placed_in, to_row
from penstock.adapters.sql.tables import ledger
from penstock.quota.events import Event

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_MOST = 2**63 - 1  # a sum stops here (nine billion dollars) instead of stopping the drain
_COLUMNS = ", ".join(f'"{column.name}"' for column in ledger.columns)
_SUMMED = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "tokens", "cost_nanos")
_TEMPORARY = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS incoming ON COMMIT DELETE ROWS "
    f"AS SELECT 0::bigint AS place, {_COLUMNS} FROM ledger LIMIT 0"
)
_COPY = f"COPY incoming (place, {_COLUMNS}) FROM STDIN"


def _roll_up(table: Table, start: str, period_ms: int) -> str:
    key = ", ".join(f'"{column.name}"' for column in table.primary_key)
    sums = ", ".join(f"least(sum({name}), {_MOST})" for name in _SUMMED)
    raised = ", ".join(f"{name} = least({table.name}.{name}::numeric + excluded.{name}, {_MOST})" for name in _SUMMED)
    group = f"organisation, occurred_at_ms / {period_ms} * {period_ms}, team, key, model, lane"
    return (
        f"INSERT INTO {table.name} (organisation, {start}, team, key, model, lane, {', '.join(_SUMMED)}) "
        f"SELECT {group}, {sums} FROM added WHERE requests + tokens + cost_nanos > 0 "
        f"GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6 ON CONFLICT ({key}) DO UPDATE SET {raised}"
    )


_INSERT = f"""
WITH added AS (
    INSERT INTO ledger ({_COLUMNS}) SELECT {_COLUMNS} FROM incoming ORDER BY place ON CONFLICT DO NOTHING
    RETURNING organisation, coalesce(team, '') AS team, key, model, lane, occurred_at_ms, {", ".join(_SUMMED)}
), by_hour AS ({_roll_up(usage_hourly, "hour_ms", _HOUR_MS)}), by_day AS ({_roll_up(usage_daily, "day_ms", _DAY_MS)})
SELECT count(*) FROM added
"""


def insert_events(connection: Connection, events: Iterable[Event]) -> int:
    """Write events in the caller's transaction; returns how many the ledger did not have yet."""
    driver = connection.connection.driver_connection
    assert driver is not None
    with driver.cursor() as cursor:
        cursor.execute(_TEMPORARY)
        with cursor.copy(_COPY) as copy:
            for place, event in enumerate(events):
                copy.write_row((place, *to_row(event, month=placed_in(event.reservation))))
        (added,) = cursor.execute(_INSERT).fetchone()
        return int(added)
