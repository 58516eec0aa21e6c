"""Events into the ledger, each once, however often it comes: COPY into a temporary table, then one INSERT.

COPY cannot skip what is there already, and an INSERT of a row at a time is slow; together they are both fast and safe.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from penstock.adapters.sql.rows import to_row
from penstock.adapters.sql.tables import ledger
from penstock.quota.events import Event

_COLUMNS = ", ".join(f'"{column.name}"' for column in ledger.columns)
_TEMPORARY = (
    f"CREATE TEMPORARY TABLE IF NOT EXISTS incoming ON COMMIT DELETE ROWS AS SELECT {_COLUMNS} FROM ledger LIMIT 0"
)
_COPY = f"COPY incoming ({_COLUMNS}) FROM STDIN"
_INSERT = f"INSERT INTO ledger ({_COLUMNS}) SELECT {_COLUMNS} FROM incoming ON CONFLICT DO NOTHING"


def insert_events(connection: Connection, events: Iterable[Event]) -> int:
    """Write events in the caller's transaction; returns how many the ledger did not have yet."""
    driver = connection.connection.driver_connection
    assert driver is not None
    with driver.cursor() as cursor:
        cursor.execute(_TEMPORARY)
        with cursor.copy(_COPY) as copy:
            for event in events:
                copy.write_row(to_row(event))
        cursor.execute(_INSERT)
        return int(cursor.rowcount)
