"""The report of a rehearsal: tables of at most 100 columns, and the sums that must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from penstock.console.amounts import dollars, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One organisation's or one model's line, or their sum.

    Args:
        held_per_used_milli: Tokens held for each 1000 used.
    """

    name: str
    sent: int
    admitted: int
    refused: int
    failed: int
    prompt: int
    completion: int
    held_per_used_milli: int
    cost_nanos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """One side's count of everything; None where that side does not know."""

    name: str
    requests: int | None
    prompt: int
    cached: int
    completion: int
    cost_nanos: int | None


def ratio(milli: int) -> str:
    """Thousandths as people read them.

    Example:
        >>> ratio(1650), ratio(0)
        ('1.650', '-')
    """
    return f"{milli // 1000}.{milli % 1000:03d}" if milli else "-"


def shares_table(heading: str, rows: Sequence[Share]) -> Table:
    """A line for each, the last one being the sum."""
    table = _table(heading, "sent", "admitted", "refused", "failed", "prompt", "completion", "held/used", "cost")
    for position, row in enumerate(rows):
        numbers = (row.sent, row.admitted, row.refused, row.failed, row.prompt, row.completion)
        shown = (*map(whole, numbers), ratio(row.held_per_used_milli), dollars(row.cost_nanos))
        table.add_row(row.name, *shown, style="bold" if position == len(rows) - 1 else None)
    return table


def refusals_table(rows: Sequence[tuple[str, int]]) -> Table:
    """Which limit refused how many requests, the busiest first."""
    table = _table("refused by", "requests")
    for limit, requests in sorted(rows, key=lambda row: (-row[1], row[0])):
        table.add_row(limit, whole(requests))
    return table


def sums_table(rows: Sequence[Sum]) -> Table:
    """What each side counted, one below the other."""
    table = _table("counted by", "requests", "prompt", "of it cached", "completion", "cost")
    for row in rows:
        requests = "-" if row.requests is None else whole(row.requests)
        cost = "-" if row.cost_nanos is None else dollars(row.cost_nanos)
        table.add_row(row.name, requests, whole(row.prompt), whole(row.cached), whole(row.completion), cost)
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
