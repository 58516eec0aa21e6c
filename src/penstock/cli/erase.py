"""``penstock erase``: remove stored prompts, results and answers at once."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Annotated

import typer

from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config import Configuration
from penstock.errors import InvalidRequest
from penstock.lanes.administering import By, Erased
from penstock.wiring.acting import actor
from penstock.wiring.erasing import erase_from_outside
from penstock.wiring.places import Places


@app.command()
def erase(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="An organisation's name, or a job's id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where nobody could answer.")] = False,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Remove the stored texts of an organisation or of one job, for good: prompts, results, idempotent answers.

    Jobs that have not ended are cancelled. Figures stay, for the bills: tokens, prices and times, never a text. What
    was removed is printed, and what stays and why; both the removal and who asked for it are in the audit log.

        penstock erase acme
    """
    configuration, places = load_with_places(config, data)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequest("nobody is there to confirm; add --yes if it is meant")
        typer.confirm(f"Erase every stored text of {target}, for good?", abort=True, err=True)
    typer.echo(_told(asyncio.run(_erase(configuration, places, target))))


async def _erase(configuration: Configuration, places: Places, target: str) -> Erased:
    by = By(actor=actor("cli"), now_ms=time.time_ns() // 1_000_000)
    return await erase_from_outside(configuration, places, target, by)


def _told(done: Erased) -> str:
    whose = done.organisation if done.job is None else f"job {done.job} of {done.organisation}"
    lines = [
        f"{whose}: {done.prompts} waiting prompts, {done.results} results and {done.answers} idempotent answers are "
        f"erased; {done.cancelled} jobs that had not ended are told to stop.",
        "What stays:",
        *(f"  - {each}" for each in done.stays),
    ]
    return "\n".join(lines)
