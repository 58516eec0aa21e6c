"""``penstock doctor``: what is wrong, in order of importance, and what to type; for people, and for cron."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated

import typer

from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.console.diagnosis import diagnosis_text
from penstock.console.screen import screen
from penstock.errors import ConfigurationError
from penstock.lanes.diagnosis import Diagnosis
from penstock.wiring.clock import SystemClock
from penstock.wiring.doctoring.examining import examine, refused
from penstock.wiring.doctoring.patient import Patient


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Look at everything that a configuration names, and say what is wrong and what to type.

    Configuration, secrets and certificates; of a cluster the stores, their versions and policies, queues and who works
    on them, the quota's functions, clocks, the outbox, dead letters, the keeper, and whether counters and ledger agree.
    Of the embedded default its database and its service. Nothing is changed.

    Exit code 0: all is well. 1: warnings, or something could not be looked at. 2: something is wrong.

        penstock doctor -c penstock.yaml
    """
    try:
        configuration, places = load_with_places(config, data)
        patient = Patient(configuration=configuration, places=places, environment=os.environ, clock=SystemClock())
        found = asyncio.run(examine(patient))
    except ConfigurationError as error:
        found = refused(error.problems)
    _tell(found, as_json=as_json)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _tell(found: Diagnosis, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(found.encoded().decode() + "\n")
    else:
        screen().print(diagnosis_text(found))
