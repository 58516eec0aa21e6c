"""What the ledger's rows posted to each window, for a rebuild: a million rows in a few seconds.

The rows of a few seconds leave the database as one JSON text, and are added here: taking each row's list apart in SQL
takes twice as much of a processor, and so does a row at a time. What is decoded is kept from the garbage collector,
which would otherwise walk through all of it again and again, for three quarters of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Final

import msgspec
from sqlalchemy import Connection

_TEXTS: Final = """
SELECT count(*), '[' || string_agg(amounts::text, ',') || ']' FROM ledger
WHERE organisation = %s AND occurred_at_ms >= %s GROUP BY occurred_at_ms / 5000
"""
_TEXTS_AT_ONCE: Final = 32  # few: the session ends if it is left alone in its transaction for longer than a lease


class _Amount(msgspec.Struct, array_like=True, gc=False):
    limit: str
    window: int
    amount: int


_decode = msgspec.json.Decoder(list[list[_Amount]]).decode


def window_sums(
    connection: Connection, organisation: str, *, since_ms: int, read: Callable[[int], None] = lambda _: None
) -> dict[tuple[str, int], int]:
    """What rows at or after ``since_ms`` posted to each (limit id, window id); see ``LedgerReads.window_sums``.

    Args:
        read: Told how many more rows are added, every now and then.
    """
    driver = connection.connection.driver_connection
    assert driver is not None
    sums: dict[tuple[str, int], int] = {}
    with driver.cursor(name="window_sums") as cursor:
        cursor.execute(_TEXTS, (organisation, since_ms))
        while rows := cursor.fetchmany(_TEXTS_AT_ONCE):
            for _, text in rows:
                for each in chain.from_iterable(_decode(text)):
                    place = (each.limit, each.window)
                    sums[place] = sums.get(place, 0) + each.amount
            read(sum(count for count, _ in rows))
    return sums
