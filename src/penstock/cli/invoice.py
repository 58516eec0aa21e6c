"""``penstock invoice``: what an organisation owes for a month."""

from __future__ import annotations

import csv
import os
import sys
import time
from typing import Annotated

import msgspec
import typer

from penstock.adapters.sql.billing import PAYERS
from penstock.adapters.sql.billing import invoice as read_invoice
from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config.walking import nearest
from penstock.console.invoice import invoice_table
from penstock.console.screen import screen
from penstock.errors import InvalidRequest
from penstock.lanes.billing import Correction, Invoice, InvoiceLine, Month
from penstock.wiring.database import existing_database
from penstock.wiring.knowing import check_known, known_organisations

_FIELDS = (
    "model", "payer", "adjustment", "prompt_picos", "cached_picos", "completion_picos", "request_picos", "requests",
    "prompt_tokens", "cached_tokens", "completion_tokens", "cost_nanos", "correction", "corrects", "reason",
)  # fmt: skip


@app.command()
def invoice(
    organisation: Annotated[str, typer.Argument(metavar="ORGANISATION", help="Whose.")],
    month: Annotated[str, typer.Argument(metavar="MONTH", help="Such as 2026-11, UTC.")],
    by: Annotated[str, typer.Option(metavar="PAYER", help="Lines for each team, or each key.")] = "team",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; money in nano-dollars.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="One line for each line; money in nano-dollars.")] = False,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Show what an organisation owes for a month, from the ledger: a line for each model, team and price.

    Lines add up to the nano-dollar; the total is rounded to cents once. A request is charged in the month in which it
    ended, so an invoice that is final never changes; what came late is on the next one, as an adjustment.

    Examples:

    - `penstock invoice acme 2026-10`
    - `penstock invoice acme 2026-10 --by key --csv > acme-2026-10.csv`
    """
    if as_json and as_csv:
        raise InvalidRequest("--json and --csv: give one of them")
    if by not in PAYERS:
        raise InvalidRequest(f"--by: {by!r} is no payer; {nearest(by, PAYERS)}")
    asked = Month.read(month)
    configuration, places = load_with_places(config, data)
    status = asked.status(now_ms=time.time_ns() // 1_000_000)
    with existing_database(configuration, places) as engine, engine.begin() as connection:
        check_known(organisation, known_organisations(connection, configuration))
        found = read_invoice(connection, organisation, asked, payers=by, status=status)
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator=os.linesep)
        writer.writerow([by if name == "payer" else name for name in _FIELDS])
        writer.writerows(_line(line) for line in found.lines)
        writer.writerows(_correction(each, by) for each in found.corrections)
    elif as_json:
        sys.stdout.write(msgspec.json.encode(_object(found)).decode() + "\n")
    else:
        screen().print(invoice_table(found))


def _line(line: InvoiceLine) -> list[str | int]:
    return [*_fields(line).values(), "", "", ""]


def _correction(each: Correction, by: str) -> list[str | int]:
    payer = each.team if by == "team" else each.key
    counts = (0, each.prompt_tokens, each.cached_tokens, each.completion_tokens, each.cost_nanos)
    return [each.model, payer or "", 0, 0, 0, 0, 0, *counts, each.reference, each.corrects, each.reason]


def _fields(line: InvoiceLine) -> dict[str, str | int]:
    price = line.price
    values = (
        line.model, line.payer or "", int(line.is_adjustment),
        price.prompt_picos, price.cached_picos, price.completion_picos, price.request_picos,
        line.requests, line.prompt_tokens, line.cached_tokens, line.completion_tokens, line.cost_nanos,
    )  # fmt: skip
    return dict(zip(_FIELDS, values, strict=False))


def _object(found: Invoice) -> dict[str, object]:
    return {
        "organisation": found.organisation,
        "month": found.month.name,
        "start_ms": found.month.start_ms,
        "end_ms": found.month.end_ms,
        "status": found.status.value,
        "by": found.payers,
        "ledger_rows": found.rows,
        "lines": [{**_fields(line), "payer": line.payer, "adjustment": line.is_adjustment} for line in found.lines],
        "corrections": found.corrections,
        "total_nanos": found.total_nanos,
        "total_usd": str(found.total_usd),
        "rounding": "the total alone, to cents, half a cent upwards",
    }
