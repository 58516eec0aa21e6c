"""What organisations used, as a table. What is held now stands apart: nobody has been charged for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from penstock.console.amounts import dollars, whole
from penstock.ports import UsageRow


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationUsage:
    """One organisation's rows of the ledger, grouped alike for all.

    Args:
        held_requests: Open reservations at this moment; None where no service runs, and so nothing is held.
        held_tokens: The tokens that they hold.
    """

    organisation: str
    rows: tuple[UsageRow, ...]
    held_requests: int | None = None
    held_tokens: int | None = None


def usage_table(found: Sequence[OrganisationUsage], *, group_by: Sequence[str], start: str, end: str) -> Group:
    """The table, and a line on what is held.

    Args:
        group_by: Headings of the rows' groups.
        start: Of the range, as text, included; ``end`` excluded.
    """
    title = Text.assemble(("Usage", "bold"), (f"  from {start} to {end} (UTC, the end excluded)", "dim"))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in ("organisation", *group_by):
        table.add_column(heading, overflow="fold")
    for heading in ("requests", "prompt", "of it cached", "completion", "tokens", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for usage in found:
        for row in usage.rows:
            table.add_row(usage.organisation, *(value or "-" for value in row.group), *_amounts(row))
    if sum(len(usage.rows) for usage in found) > 1:
        everything = UsageRow.total([row for usage in found for row in usage.rows])
        table.add_row("total", *("" for _ in group_by), *_amounts(everything), style="bold")
    return Group(table, Text(), _held(found))


def _amounts(row: UsageRow) -> tuple[str, ...]:
    tokens = row.prompt_tokens + row.completion_tokens
    counts = (row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens, tokens)
    return (*map(whole, counts), dollars(row.cost_nanos))


def _held(found: Sequence[OrganisationUsage]) -> Text:
    """Not charged and not in the table: what requests under way have reserved."""
    known = [usage for usage in found if usage.held_requests is not None]
    if not known:
        return Text("Held now: not known, since no service runs on this data directory.", style="dim")
    parts = [
        f"{usage.organisation} {whole(usage.held_tokens or 0)} tokens in {whole(usage.held_requests or 0)} requests"
        for usage in known
        if usage.held_requests
    ]
    return Text(f"Held now, not charged: {'; '.join(parts) or 'nothing'}.")
