"""``penstock ledger``: the ledger for other programs, and putting right what it says."""

from __future__ import annotations

import getpass
import re
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from penstock.adapters.exporting import FORMATS
from penstock.api.instants import instant_ms
from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config import NotationError
from penstock.config.notation import NANOS_PER_USD, parse_usd
from penstock.config.walking import nearest
from penstock.console.amounts import dollars
from penstock.errors import InvalidRequest
from penstock.lanes.administering import By
from penstock.lanes.billing import Month
from penstock.wiring.correcting import Wanted
from penstock.wiring.correcting import correct as write_it
from penstock.wiring.database import existing_database
from penstock.wiring.exporting import DAY_MS, Export, export_days, write_rows

REASON_MAX = 200
_REFERENCE = re.compile(r"[A-Za-z0-9._-]{1,64}")

ledger = typer.Typer(name="ledger", no_args_is_help=True, help="The ledger: export it, correct it.")
app.add_typer(ledger)


@ledger.callback()
def _group() -> None:
    """The ledger: export it, correct it."""


@ledger.command()
def export(
    organisation: Annotated[str | None, typer.Argument(metavar="[ORGANISATION]", help="Default: all.")] = None,
    month: Annotated[str | None, typer.Option(metavar="MONTH", help="Such as 2026-11, in place of days.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="The first day, such as 2026-11-01.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="DAY", help="The day after the last one.")] = None,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="csv, parquet or cloudevents.")] = "csv",
    into: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="One file for each day; days that are there are kept.")
    ] = None,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Write the ledger's rows of a month, or of some days: to standard output, or a file a day with --into.

    Days and months are those of UTC in which something was charged, as on invoices. An export into a folder that was
    interrupted goes on when it is run again. Files of days that are not over are named .open, and made anew each time.

    Examples:

    - `penstock ledger export acme --month 2026-10 > acme-2026-10.csv`
    - `penstock ledger export --from 2026-10-01 --to 2026-11-01 --format parquet --into ledger`
    """
    if form not in FORMATS:
        raise InvalidRequest(f"--format: {form!r} is no format; {nearest(form, tuple(FORMATS))}")
    start_ms, end_ms = _days(month, start, end)
    configuration, places = load_with_places(config, data)
    with existing_database(configuration, places) as engine:
        wanted = Export.of(engine, FORMATS[form], organisation, start_ms=start_ms, end_ms=end_ms)
        if into is None:
            write_rows(wanted, sys.stdout.buffer, start_ms=start_ms, end_ms=end_ms)
            sys.stdout.flush()
        else:
            export_days(wanted, into, now_ms=time.time_ns() // 1_000_000, told=_tell)


@ledger.command()
def correct(
    organisation: Annotated[str, typer.Argument(metavar="ORGANISATION", help="Whose bill.")],
    reference: Annotated[
        str, typer.Option(metavar="TEXT", help="Your own, such as a ticket; given again, it is the same.")
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="For the invoice, and for whoever reads it later.")],
    reservation: Annotated[str | None, typer.Option(metavar="ID", help="What was charged wrongly.")] = None,
    month: Annotated[str | None, typer.Option(metavar="MONTH", help="Of an invoice, with --model: its line.")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Of the line.")] = None,
    team: Annotated[str | None, typer.Option(metavar="TEAM", help="Of the line; none if not given.")] = None,
    prompt: Annotated[int, typer.Option(metavar="TOKENS", help="More prompt tokens, or fewer: --prompt=-100.")] = 0,
    cached: Annotated[int, typer.Option(metavar="TOKENS", help="How many of them were cached.")] = 0,
    completion: Annotated[int, typer.Option(metavar="TOKENS", help="More completion tokens, or fewer.")] = 0,
    usd: Annotated[
        str | None,
        typer.Option(metavar="DOLLARS", help="More dollars, or fewer: --usd=-1.25. Default: the tokens' price."),
    ] = None,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Put right what was billed wrongly, by a row of its own: no row is ever changed.

    It is a line of the invoice of the month in which it is written, is exported with the ledger, and is in the audit
    log. Limits do not see it: what was used was used. Of a cluster it needs the account of `penstock setup`.

    Examples:

    - `penstock ledger correct acme --reference T-17 --reason "answered twice" --reservation ID --completion=-400`
    - `penstock ledger correct acme --reference T-18 --reason "outage" --month 2026-10 --model chat-small --usd=-12.50`
    """
    if not _REFERENCE.fullmatch(reference):
        raise InvalidRequest("--reference: wanted are 1 to 64 of letters, digits, `.`, `_` and `-`; such as T-17")
    if not reason.strip() or not reason.isprintable() or len(reason) > REASON_MAX:
        raise InvalidRequest(f"--reason: wanted is one line of at most {REASON_MAX} characters")
    wanted = Wanted(
        organisation=organisation, reference=reference, reason=reason.strip(), reservation=reservation,
        month=None if month is None else Month.read(month), model=model, team=team, prompt_tokens=prompt,
        cached_tokens=cached, completion_tokens=completion, cost_nanos=None if usd is None else _nanos(usd),
    )  # fmt: skip
    configuration, places = load_with_places(config, data)
    by = By(actor=f"cli:{getpass.getuser()}", now_ms=time.time_ns() // 1_000_000)
    made, is_new = write_it(configuration, places, wanted, by)
    tokens = made.prompt_tokens + made.completion_tokens
    state = "written" if is_new else "was there already, nothing is written"
    typer.echo(f"{reference}: {state}; {made.corrects}: {tokens:+,} tokens, {dollars(made.cost_nanos)}")


def _nanos(usd: str) -> int:
    sign, amount = (-1, usd[1:]) if usd.startswith("-") else (1, usd)
    try:
        return sign * parse_usd(amount, per_usd=NANOS_PER_USD)
    except NotationError as error:
        raise InvalidRequest(f"--usd: {error}") from None


def _days(month: str | None, start: str | None, end: str | None) -> tuple[int, int]:
    if month is not None:
        if start is not None or end is not None:
            raise InvalidRequest("--month: cannot be given together with --from or --to; leave one out")
        found = Month.read(month)
        return found.start_ms, found.end_ms
    if start is None or end is None:
        raise InvalidRequest("--from and --to: both are needed; or give --month 2026-11")
    start_ms, end_ms = instant_ms("--from", start), instant_ms("--to", end)
    if start_ms % DAY_MS or end_ms % DAY_MS:
        raise InvalidRequest("--from and --to: must be days, such as 2026-11-01")
    if end_ms <= start_ms:
        raise InvalidRequest("--to: must be after --from; the start is included, the end is not")
    return start_ms, end_ms


def _tell(file: Path, rows: int | None) -> None:
    sys.stderr.write(f"{file}: {'there already' if rows is None else f'{rows} rows'}\n")
