"""Options that several commands share, and what follows from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from penstock.config import Configuration, load
from penstock.wiring.places import Places

DEFAULT_FILES = [Path("penstock.yaml")]

ConfigurationFiles = Annotated[
    list[Path],
    typer.Option(
        "--config", "-c", metavar="FILE", help="The configuration; may be given again, and the later file wins."
    ),
]
DataDirectory = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIRECTORY",
        envvar="PENSTOCK_DATA",
        help="Where state is kept. Default: `server.data_directory`, else ~/.local/state/penstock.",
    ),
]


def places_of(configuration: Configuration, data: Path | None) -> Places:
    """Where this configuration keeps its state."""
    return Places.choose(data, configuration.server.data_directory, os.environ)


def load_with_places(files: list[Path], data: Path | None) -> tuple[Configuration, Places]:
    """Read the configuration, and find where its state is.

    Raises:
        ConfigurationError: It has problems.
    """
    configuration = load(files)
    return configuration, places_of(configuration, data)
