"""``penstock rebuild``."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles
from penstock.config import load
from penstock.quota.state import LEASE_MS
from penstock.wiring.rebuilding import rebuild_now


@app.command()
def rebuild(
    organisations: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ORGANISATION]...", help="Those to rebuild; all that Redis has lost, if none is named."
        ),
    ] = None,
    config: ConfigurationFiles = DEFAULT_FILES,
    force: Annotated[
        bool, typer.Option("--force", help="Even if Redis has its state: forget that, and rebuild from the ledger.")
    ] = False,
    rebuild_s: Annotated[
        float, typer.Option(min=0, help="How long running requests may claim theirs before new ones are admitted.")
    ] = LEASE_MS / 1000,
) -> None:
    """Rebuild the quota in Redis from the ledger in PostgreSQL, now.

    A keeper does this by itself when it finds that Redis lost an organisation; this is for when none runs, or when the
    counters in Redis are not to be trusted. Windows become what the ledger sums to, requests that ended are known,
    accepted jobs hold what they held, and rates begin empty. Processes that serve claim their running requests again
    within a lease, and then admissions begin. Until then clients see 503 with Retry-After.

    It is refused while a keeper is active, and where nothing was lost unless `--force` is given. Interrupted, it is
    begun again by running it once more, or by the next keeper.

        penstock rebuild
        penstock rebuild acme --force
    """
    asyncio.run(
        rebuild_now(
            load(config), tuple(organisations or ()), is_forced=force, rebuild_s=rebuild_s,
            tell=lambda line: typer.echo(line, err=True),
        )
    )  # fmt: skip
