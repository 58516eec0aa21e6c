"""``penstock ledger``: the ledger for other programs."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from penstock.adapters.exporting import FORMATS
from penstock.api.instants import instant_ms
from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config.walking import nearest
from penstock.errors import InvalidRequest
from penstock.lanes.billing import Month
from penstock.wiring.database import existing_database
from penstock.wiring.exporting import DAY_MS, Export, export_days, write_rows

ledger = typer.Typer(name="ledger", no_args_is_help=True, help="The ledger, for other programs.")
app.add_typer(ledger)


@ledger.callback()
def _group() -> None:
    """The ledger, for other programs."""


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
