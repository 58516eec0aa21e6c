"""``penstock audit``: do counters, open holds and ledger agree? For people, and for cron by its exit code."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Annotated

import msgspec
import typer

from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config.walking import nearest
from penstock.console.audit import audit_table
from penstock.console.screen import screen
from penstock.errors import InvalidRequest, PenstockError
from penstock.lanes.audit_report import AuditReport
from penstock.wiring.auditing import audit_database
from penstock.wiring.auditing_cluster import audit_from_outside
from penstock.wiring.governing import in_file
from penstock.wiring.running import ask

DIFFERENCES, COULD_NOT_LOOK = 1, 2


@app.command()
def audit(
    organisation: Annotated[str | None, typer.Argument(metavar="[ORGANISATION]", help="Default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Compare each limit's counters with the open reservations and with the ledger, per limit and window.

    A running service is asked for its live counters. Where none runs, the database is read, counters are rebuilt as
    a restart would rebuild them, and nothing is written. Of a cluster, Redis and PostgreSQL are asked, whatever runs.
    Each difference is told with the reservations behind it.

    Exit code 0: all agrees. 1: there are differences. 2: it was not possible to look.
    """
    try:
        report = _looked(organisation, config=config, data=data)
    except PenstockError as error:
        sys.stderr.write(f"penstock: {error.message}\n")
        raise typer.Exit(COULD_NOT_LOOK) from None
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        screen().print(audit_table(report))
    if report.differences:
        raise typer.Exit(DIFFERENCES)


def _looked(organisation: str | None, *, config: ConfigurationFiles, data: DataDirectory) -> AuditReport:
    configuration, places = load_with_places(config, data)
    answer = None if configuration.stores is not None else ask(places, "/audit")
    if configuration.stores is not None:
        report = asyncio.run(audit_from_outside(configuration))
    elif answer is not None:
        report = AuditReport.decode(answer)
    else:
        report = audit_database(places, in_file(configuration), now_ms=time.time_ns() // 1_000_000)
    if organisation is None:
        return report
    mine = report.only(organisation)
    if not mine.organisations:
        known = [each.organisation for each in report.organisations]
        raise InvalidRequest(f"there is no organisation {organisation!r}; {nearest(organisation, known)}")
    return mine
