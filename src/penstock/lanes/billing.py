"""What an organisation owes for a month: lines that add up to the nano-dollar, rounded to cents once, at the very end.

A charge belongs to the month in which it was made, as it belongs to the window in which it was made. So an invoice of a
month that is over never changes, however often it is made, and a settle that comes late is on the next one: marked as
an adjustment where the request's expiry was charged in a month before.

::

    open --the month ends--> closing --an hour for what is still on its way to the ledger--> final
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum
from typing import Final

from penstock.errors import InvalidRequest
from penstock.quota.definitions import Price
from penstock.quota.pricing import cost_nanos

CLOSING_MS: Final = 3_600_000
_CENT: Final = Decimal("0.01")


class Status(StrEnum):
    """How much an invoice may still change."""

    OPEN = "open"
    CLOSING = "closing"
    FINAL = "final"


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """One calendar month, UTC. ``end_ms`` is excluded.

    Example:
        >>> Month.read("2026-12")
        Month(name='2026-12', start_ms=1796083200000, end_ms=1798761600000)
    """

    name: str
    start_ms: int
    end_ms: int

    @classmethod
    def read(cls, text: str) -> Month:
        """Of its name.

        Raises:
            InvalidRequest: It is not a month as 2026-11.
        """
        if re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", text) is None or text < "1970":
            raise InvalidRequest(f"month: {text[:20]!r} is no month; write it as 2026-11", param="month")
        year, month = int(text[:4]), int(text[5:])
        start, end = datetime(year, month, 1, tzinfo=UTC), datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        return cls(name=text, start_ms=int(start.timestamp()) * 1000, end_ms=int(end.timestamp()) * 1000)

    def status(self, *, now_ms: int) -> Status:
        """Of an invoice of this month that is made now."""
        if now_ms < self.end_ms:
            return Status.OPEN
        return Status.CLOSING if now_ms < self.end_ms + CLOSING_MS else Status.FINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceLine:
    """What one model cost one payer at one price.

    Args:
        payer: The team or the key; None for no team.
        is_adjustment: Of requests that a month before was charged for in part.
        cost_nanos: The sum of what each request was charged, each rounded up to a nano-dollar.
    """

    model: str
    payer: str | None
    price: Price
    is_adjustment: bool
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What was billed wrongly, put right in the month in which it is written. No counter of the quota follows it.

    Args:
        reference: The author's own, such as a ticket; the organisation has one correction for each.
        author: Who wrote it, as in the audit log.
        corrects: A reservation's id, or the line of an invoice: "2026-10 chat-small search".
        key: Empty for a line.
        cost_nanos: Negative for a credit; token counts alike.
    """

    organisation: str
    reference: str
    occurred_at_ms: int
    author: str
    reason: str
    corrects: str
    team: str | None
    key: str
    model: str
    lane: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nanos: int

    def is_same(self, other: Correction) -> bool:
        """Whether both put the same thing right by the same amount, whoever wrote them and when."""
        return replace(self, occurred_at_ms=0, author="") == replace(other, occurred_at_ms=0, author="")


def priced_nanos(price: Price, *, prompt: int, cached: int, completion: int) -> int:
    """What tokens cost that a correction adds or takes away, rounded down: so a request's own tokens, taken away, are
    its own cost, and what is charged later is never rounded up.

    Example:
        >>> price = Price(prompt_picos=1_001)
        >>> [priced_nanos(price, prompt=prompt, cached=0, completion=0) for prompt in (-1, 1)]
        [-2, 1]
    """
    return -cost_nanos(replace(price, request_picos=0), -prompt, -cached, -completion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """One organisation's month.

    Args:
        payers: What the lines are split by: "team" or "key".
        lines: Sorted by model, payer, price; adjustments last.
        rows: How many rows of the ledger they add up.
        corrections: Written in the month, each a line of its own.
    """

    organisation: str
    month: Month
    status: Status
    payers: str
    lines: Sequence[InvoiceLine]
    rows: int
    corrections: Sequence[Correction] = ()

    @property
    def total_nanos(self) -> int:
        """Nano-dollars, exactly."""
        lines, corrections = self.lines, self.corrections
        return sum(line.cost_nanos for line in lines) + sum(each.cost_nanos for each in corrections)

    @property
    def total_usd(self) -> Decimal:
        """Dollars and cents: the one rounding there is, half a cent upwards."""
        return cents(self.total_nanos)


def cents(nanos: int) -> Decimal:
    """Nano-dollars as dollars with two decimals; half a cent is rounded up.

    Example:
        >>> cents(1_004_999_999), cents(1_005_000_000), cents(0)
        (Decimal('1.00'), Decimal('1.01'), Decimal('0.00'))
    """
    return (Decimal(nanos) / 1_000_000_000).quantize(_CENT, ROUND_HALF_UP)
