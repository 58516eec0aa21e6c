"""What the outbox carries and the ledger keeps: one event for each transition that leaves a trace.

The ledger is a projection of these events, unique on (month, reservation, kind). They carry what a rebuild of
the counters needs, so that the ledger alone can restore them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from penstock.quota.definitions import Price
from penstock.quota.records import record


class EventKind(StrEnum):
    """Which transition."""

    RESERVED = "reserved"  # a queued job was accepted
    ACQUIRED = "acquired"  # a queued job began to run
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"
    LATE = "late"


FINAL: Final = (EventKind.POSTED, EventKind.VOIDED, EventKind.LATE)
"""What they end stays as it is; one that expired may still be settled late."""
CHARGING: Final = (EventKind.POSTED, EventKind.EXPIRED, EventKind.LATE)
"""They may carry a charge."""
ENDING: Final = (*CHARGING, EventKind.VOIDED)


class UsageSource(StrEnum):
    """Who counted."""

    UPSTREAM = "upstream"  # the model server reported it
    LOCAL = "local"  # counted here, since the report was missing or absurd
    NONE = "none"  # nothing was counted: voids, expiries without a touch


@record(frozen=True, slots=True)
class Usage:
    """Tokens really used. ``cached`` is a part of ``prompt``."""

    prompt: int
    completion: int
    cached: int = 0
    source: UsageSource = UsageSource.UPSTREAM


@record(frozen=True, slots=True)
class Charge:
    """Per metric, what one event posted: tokens, requests, nano-dollars."""

    tokens: int = 0
    requests: int = 0
    cost_nanos: int = 0


@record(frozen=True, slots=True)
class Amount:
    """What one event posted to one window of one limit, in the limit's unit."""

    limit: str
    window: int
    amount: int


@record(frozen=True, slots=True, kw_only=True)
class Event:
    """One row of the ledger.

    Args:
        occurred_at_ms: The store's clock at the transition; decides the window.
        usage: Of this event alone: a LATE event carries what it adds to the EXPIRED one before it.
        charge: What was posted by it, the same way.
        amounts: One for each window limit that it was posted to.
        tokens_held: The hold that it ended; 0 for LATE.
        job_deadline_ms: The request's own deadline, for a rebuild.
        reason: Why it was voided or expired, for people.
    """

    kind: EventKind
    reservation: str
    organisation: str
    team: str | None
    key: str
    model: str
    lane: str
    occurred_at_ms: int
    usage: Usage
    charge: Charge
    amounts: tuple[Amount, ...]
    price: Price
    tokens_held: int
    job_deadline_ms: int
    reason: str = ""
