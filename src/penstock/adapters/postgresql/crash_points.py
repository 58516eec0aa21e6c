"""The named points between two of the keeper's writes, at which tests kill it.

``Reached`` is called at each with its name; in production it does nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.lanes.keeping import EVENTS_READ, OUTBOX_TRIMMED

Reached = Callable[[str], None]

DRAIN_BEGUN = "drain-begun"  # within the transaction, as are the next three
EVENTS_INSERTED = "events-inserted"  # into the ledger, and rolled up
JOBS_PROJECTED = "jobs-projected"
POSITIONS_KEPT = "positions-kept"
DRAIN_COMMITTED = "drain-committed"  # the ledger has them, and so does Redis

CRASH_POINTS = (
    EVENTS_READ,
    DRAIN_BEGUN,
    EVENTS_INSERTED,
    JOBS_PROJECTED,
    POSITIONS_KEPT,
    DRAIN_COMMITTED,
    OUTBOX_TRIMMED,
)


def unnoticed(_point: str) -> None:
    """Do nothing."""
