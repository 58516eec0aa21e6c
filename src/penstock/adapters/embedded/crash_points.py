"""The named points between two writes, at which the torture test kills the process.

Told apart by what is on disk and what has been promised: nothing but memory, part of a transaction, a commit that
nobody knows of, a promise. ``Reached`` is called at each with its name; in production it does nothing.
"""

from __future__ import annotations

from collections.abc import Callable

Reached = Callable[[str], None]

APPLIED = "applied"  # the model has changed, no group knows of it
QUEUED = "queued"  # the next group will carry it
GROUP_TAKEN = "group-taken"  # the group is closed, the writer has not begun
TRANSACTION_BEGUN = "transaction-begun"
LEDGER_WRITTEN = "ledger-written"  # within the transaction, as are the next two
RESERVATIONS_WRITTEN = "reservations-written"
BUCKETS_WRITTEN = "buckets-written"
COMMITTED = "committed"  # durable, and nobody has been told
ACKNOWLEDGED = "acknowledged"  # everyone who waited has been told

CRASH_POINTS = (
    APPLIED,
    QUEUED,
    GROUP_TAKEN,
    TRANSACTION_BEGUN,
    LEDGER_WRITTEN,
    RESERVATIONS_WRITTEN,
    BUCKETS_WRITTEN,
    COMMITTED,
    ACKNOWLEDGED,
)


def unnoticed(_point: str) -> None:
    """Do nothing."""
