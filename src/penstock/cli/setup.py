"""``penstock setup``: prepare Redis, PostgreSQL and RabbitMQ."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles
from penstock.config import load
from penstock.wiring.setting_up import set_up


@app.command()
def setup(
    config: ConfigurationFiles = DEFAULT_FILES,
    version: Annotated[
        str | None, typer.Option(help="Record this when done, for `penstock await`: small letters and digits.")
    ] = None,
) -> None:
    """Prepare the services that `stores` names, so that everything else finds them ready.

    PostgreSQL: tables, partitions, roles and their rights, organisations and limits. Redis: the function library,
    users, definitions. RabbitMQ: the virtual host, users, exchanges and queues. What it applies lies in `config/`.

    Run it again after each change of the configuration or of Penstock's version: what is right already stays as it
    is, and two at once wait for each other. It needs the accounts that `stores` names as `username`.
    """
    configuration = load(config)
    asyncio.run(set_up(configuration, os.environ, tell=typer.echo, version=version))
