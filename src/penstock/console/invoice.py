"""An invoice as a table: lines to the nano-dollar, and the one rounding stated under them."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from penstock.console.amounts import dollars, whole
from penstock.lanes.billing import Invoice, Status
from penstock.quota.definitions import Price

_STATES = {
    Status.OPEN: "The month is not over: this is what it costs so far.",
    Status.CLOSING: "The month is over; final an hour after its end, when all of it has reached the ledger.",
    Status.FINAL: "Final: it will be the same whenever it is made again.",
}


def invoice_table(invoice: Invoice) -> Group:
    """The table, the total, and what it rests on."""
    title = Text.assemble((f"Invoice {invoice.organisation} {invoice.month.name}", "bold"), ("  UTC", "dim"))
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in ("model", invoice.payers, "per million: in / cached / out, request"):
        table.add_column(heading, overflow="fold")
    for heading in ("requests", "prompt", "of it cached", "completion", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in invoice.lines:
        counts = (line.requests, line.prompt_tokens, line.cached_tokens, line.completion_tokens)
        model = f"{line.model} (adjustment)" if line.is_adjustment else line.model
        table.add_row(model, line.payer or "-", shown_price(line.price), *map(whole, counts), dollars(line.cost_nanos))
    for each in invoice.corrections:
        model = f"{each.model} (correction {each.reference})"
        payer = each.team if invoice.payers == "team" else each.key
        counts = (0, each.prompt_tokens, each.cached_tokens, each.completion_tokens)
        table.add_row(model, payer or "-", each.reason, *map(whole, counts), dollars(each.cost_nanos))
    table.add_row("total", "", "", *("" for _ in range(4)), dollars(invoice.total_nanos), style="bold")
    notes = [
        f"To pay: ${invoice.total_usd:,} (the exact total, rounded once to cents, half a cent upwards).",
        _STATES[invoice.status],
    ]
    if any(line.is_adjustment for line in invoice.lines):
        notes.append("Adjustments: what requests of an earlier month really used, beyond what that month was charged.")
    notes += [f"Correction {each.reference}: of {each.corrects}, by {each.author}." for each in invoice.corrections]
    return Group(table, Text(), *map(Text, notes))


def shown_price(price: Price) -> str:
    """Dollars per million tokens, and per request.

    Example:
        >>> shown_price(Price(prompt_picos=150_000, cached_picos=75_000, completion_picos=600_000))
        '$0.15 / $0.075 / $0.60, $0.00'
    """
    per_million = (price.prompt_picos, price.cached_picos, price.completion_picos)
    tokens = " / ".join(dollars(picos * 1000) for picos in per_million)
    nanos, rest = divmod(price.request_picos, 1000)
    return f"{tokens}, {dollars(nanos)}" + (f" + {rest} pico-dollars" if rest else "")
