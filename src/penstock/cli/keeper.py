"""``penstock keeper``."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer
import uvloop

from penstock.adapters.observing.lines import LineWriter
from penstock.adapters.observing.log import LogFormat, configure_log, resolve_format
from penstock.api.server import stop_on_signals
from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles
from penstock.config import Configuration, load
from penstock.quota.state import LEASE_MS
from penstock.wiring.keeping import LEASE_S, run_keeper

OPERATIONS_PORT = 8083
AUDIT_S = 1800.0
FIGURES_S = 3.0


@app.command()
def keeper(
    config: ConfigurationFiles = DEFAULT_FILES,
    operations_host: Annotated[str, typer.Option(help="Address of metrics and health.")] = "127.0.0.1",
    operations_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Metrics and health; 0 for a free one.")
    ] = OPERATIONS_PORT,
    lease_s: Annotated[
        float, typer.Option(min=2, help="A keeper that hangs for so many seconds is replaced by one that stands by.")
    ] = LEASE_S,
    rebuild_s: Annotated[
        float,
        typer.Option(min=0, help="After Redis lost its state: seconds in which running requests may claim theirs."),
    ] = LEASE_MS / 1000,
    audit_s: Annotated[
        float,
        typer.Option(
            min=0,
            envvar="PENSTOCK_AUDIT_S",
            help="Between two comparisons of counters, holds and ledger, for metrics; 0: none.",
        ),
    ] = AUDIT_S,
    figures_s: Annotated[
        float, typer.Option(min=0.1, help="Between two looks at what waits, for metrics and scaling.")
    ] = FIGURES_S,
    log_format: Annotated[
        LogFormat, typer.Option(help="What it logs, on standard output; auto: text on a terminal.")
    ] = LogFormat.AUTO,
) -> None:
    """Carry what the quota decided into the ledger, and keep the quota in order.

    Drains Redis's outbox into PostgreSQL, each event once; rolls usage up by hour and day; defines limits and keys
    after each change; expires what is overdue; settles results that nobody settled; rebuilds Redis from the ledger
    after a loss.

    Run as many as you like: one is active, by a lock in PostgreSQL, and the others stand by. A kill at any moment costs
    the time until another takes over, and nothing else: what was not drained is still in Redis.

        penstock keeper -c penstock.yaml
    """
    configuration = load(config)
    writer = LineWriter(sys.stdout.fileno(), service="keeper")
    configure_log(writer, resolve_format(log_format, is_terminal=sys.stdout.isatty()))
    try:
        uvloop.run(_keep(configuration, operations_host, operations_port, lease_s, rebuild_s, audit_s, figures_s))
    finally:
        writer.close()


async def _keep(
    configuration: Configuration,
    host: str,
    port: int,
    lease_s: float,
    rebuild_s: float,
    audit_s: float,
    figures_s: float,
) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    await run_keeper(
        configuration, host=host, port=port, lease_s=lease_s, rebuild_s=rebuild_s, audit_s=audit_s,
        figures_s=figures_s, stop=stop,
        started=lambda url: typer.echo(f"penstock keeper; metrics and health on {url}", err=True),
    )  # fmt: skip
