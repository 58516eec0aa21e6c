"""The ledger's partitions, made ahead: a month's rows must find theirs, since the default partition is for the rest.

Made by a function of the database that its owner lends to the keeper, which may not change the schema otherwise.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, text

MONTHS_AHEAD = 3


def months_from(now_ms: int, count: int) -> list[int]:
    """Months as the ledger writes them, beginning with the present one, UTC.

    Example:
        >>> months_from(1_700_000_000_000, 3)
        [202311, 202312, 202401]
    """
    date = datetime.fromtimestamp(now_ms / 1000, tz=UTC)
    first = date.year * 12 + date.month - 1
    return [month // 12 * 100 + month % 12 + 1 for month in range(first, first + count)]


def make_partitions(connection: Connection, *, now_ms: int) -> list[int]:
    """Make those of this month and the next ones that are not there; which ones that were."""
    statement = text("SELECT penstock_partition(:month)")
    wanted = months_from(now_ms, MONTHS_AHEAD + 1)
    return [month for month in wanted if connection.execute(statement, {"month": month}).scalar()]
