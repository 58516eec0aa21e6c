"""``penstock usage``: what organisations used, from the ledger, with what is held at this moment beside it."""

from __future__ import annotations

import asyncio
import csv
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from penstock.adapters.sql.ledger import LedgerReads
from penstock.api.instants import instant_ms, to_ms
from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config import Configuration
from penstock.config.walking import nearest
from penstock.console.keys import moment
from penstock.console.screen import screen
from penstock.console.usage import OrganisationUsage, usage_table
from penstock.errors import InvalidRequest
from penstock.ports import USAGE_GROUPS, USAGE_SUMS, UsageQuery, UsageRow
from penstock.wiring.database import existing_database
from penstock.wiring.holding import Held, ask_held, held_in_cluster
from penstock.wiring.knowing import check_known, known_organisations
from penstock.wiring.places import Places

NOTHING = Held(0, 0)


@app.command()
def usage(
    organisation: Annotated[str | None, typer.Argument(metavar="[ORGANISATION]", help="Default: all.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Included, such as 2025-11-01. Default: this month.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Excluded, such as 2025-12-01. Default: now.")
    ] = None,
    by: Annotated[str, typer.Option(metavar="GROUPS", help="Any of day,model,key,team, with commas.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, for programs; cost in nano-dollars.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="One line for each row, for spreadsheets.")] = False,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Show what was used and charged, from the ledger; times are UTC.

    Works while the service runs and while it does not. What requests under way hold is shown apart, if it runs.

    Examples:

    - `penstock usage` (every organisation, this month)
    - `penstock usage acme --by day,model`
    - `penstock usage --from 2025-11-01 --to 2025-12-01 --csv > november.csv`
    """
    if as_json and as_csv:
        raise InvalidRequest("--json and --csv: give one of them")
    groups = _groups(by)
    start_ms, end_ms = _range(start, end)
    configuration, places = load_with_places(config, data)
    found = _read(places, organisation, configuration, start_ms=start_ms, end_ms=end_ms, groups=groups)
    if as_csv:
        _write_csv(found, groups)
    elif as_json:
        _write_json(found, groups, start_ms=start_ms, end_ms=end_ms)
    else:
        screen().print(usage_table(found, group_by=groups, start=moment(start_ms), end=moment(end_ms)))


def _read(
    places: Places,
    organisation: str | None,
    configuration: Configuration,
    *,
    start_ms: int,
    end_ms: int,
    groups: tuple[str, ...],
) -> list[OrganisationUsage]:
    held = ask_held(places) if configuration.stores is None else asyncio.run(held_in_cluster(configuration))
    with existing_database(configuration, places) as engine, engine.begin() as connection:
        ledger = LedgerReads(connection)
        known = known_organisations(connection, configuration)
        if organisation is not None:
            check_known(organisation, known)
        rows = {
            name: ledger.usage(UsageQuery(organisation=name, start_ms=start_ms, end_ms=end_ms, group_by=groups))
            for name in (sorted(known) if organisation is None else [organisation])
        }
    return [
        OrganisationUsage(
            organisation=name,
            rows=tuple(found),
            held_requests=None if held is None else held.get(name, NOTHING).requests,
            held_tokens=None if held is None else held.get(name, NOTHING).tokens,
        )
        for name, found in rows.items()
    ]


def _groups(by: str) -> tuple[str, ...]:
    groups = tuple(part.strip() for part in by.split(",") if part.strip())
    for group in groups:
        if group not in USAGE_GROUPS:
            raise InvalidRequest(f"--by: {group!r} is no group; {nearest(group, USAGE_GROUPS)}")
    if len(set(groups)) < len(groups):
        raise InvalidRequest("--by: names a group twice; give each once")
    return groups


def _range(start: str | None, end: str | None) -> tuple[int, int]:
    now = datetime.now(UTC)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    start_ms = to_ms(month) if start is None else instant_ms("--from", start)
    end_ms = to_ms(now) + 1 if end is None else instant_ms("--to", end)
    if end_ms <= start_ms:
        raise InvalidRequest("--to: must be after --from; the start is included, the end is not")
    return start_ms, end_ms


def _write_csv(found: Sequence[OrganisationUsage], groups: tuple[str, ...]) -> None:
    writer = csv.writer(sys.stdout, lineterminator=os.linesep)
    writer.writerow(("organisation", *groups, *USAGE_SUMS))
    for each in found:
        for row in each.rows:
            sums = row.sums.values()
            writer.writerow((each.organisation, *("" if value is None else value for value in row.group), *sums))


def _write_json(found: Sequence[OrganisationUsage], groups: tuple[str, ...], *, start_ms: int, end_ms: int) -> None:
    said = {
        "start_ms": start_ms,
        "end_ms": end_ms,
        "group_by": groups,
        "organisations": [
            {
                "organisation": each.organisation,
                "data": [dict(zip(groups, row.group, strict=True)) | row.sums for row in each.rows],
                "totals": UsageRow.total(each.rows).sums,
                "held": None
                if each.held_requests is None
                else {"requests": each.held_requests, "tokens": each.held_tokens},
            }
            for each in found
        ],
    }
    sys.stdout.write(msgspec.json.encode(said).decode() + "\n")
