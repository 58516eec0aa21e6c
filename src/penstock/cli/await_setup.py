"""``penstock await``: what a pod does before anything else."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles
from penstock.config import load
from penstock.wiring.awaiting import await_setup, write_environment
from penstock.wiring.stores import Role


@app.command("await")
def await_(
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION",
            show_default=False,
            help="As given to `penstock setup --version`; `@FILE`: the text of a file, read once.",
        ),
    ],
    config: ConfigurationFiles = DEFAULT_FILES,
    role: Annotated[Role, typer.Option(help="As whom Redis is asked.")] = Role.API,
    timeout_s: Annotated[float, typer.Option(min=1, help="Give up after so many seconds.")] = 3_600,
    stream: Annotated[
        str | None,
        typer.Option(help="Then write the environment of this stream: gateway, worker:MODEL, collector, dead-letters."),
    ] = None,
    environment: Annotated[
        Path | None, typer.Option(help="Where to; for `bento --env-file`. It holds secrets: keep it in memory.")
    ] = None,
) -> None:
    """Wait until the services are prepared for a version of the configuration.

    The chart starts every pod with it, so that nothing runs against tables, functions or queues that are not there yet.
    An earlier version that was prepared once counts as well: after a rollback nothing waits.

        penstock await 4f2a90c1de --role worker --stream worker:chat-small --environment /run/stream/environment
    """
    if (stream is None) is not (environment is None):
        raise typer.BadParameter("give --stream and --environment together, or neither")
    configuration = load(config)
    asyncio.run(
        await_setup(
            configuration, _text(version), role, timeout_s=timeout_s, tell=lambda line: typer.echo(line, err=True)
        )
    )  # fmt: skip
    if stream is not None and environment is not None:
        write_environment(configuration, stream, environment, os.environ)


def _text(version: str) -> str:
    """The version itself. A file keeps it out of a pod's template, or a change would start every pod anew."""
    if not version.startswith("@"):
        return version
    try:
        return Path(version[1:]).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise typer.BadParameter(f"{version[1:]} cannot be read: {error.strerror}") from error
