"""``penstock up``: the whole cluster on this machine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from penstock.api.server import stop_on_signals
from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles
from penstock.errors import ConfigurationError
from penstock.wiring.cluster import Up, run_cluster
from penstock.wiring.places import Places, default_data_directory

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")


@app.command()
def up(
    config: ConfigurationFiles = DEFAULT_FILES,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", help="Where everything is kept. Default: `cluster` in the state directory."),
    ] = None,
    bento: Annotated[
        Path | None, typer.Option(envvar="PENSTOCK_BENTO", help="Our Bento; default: where `make bento` puts it.")
    ] = None,
) -> None:
    """Run the whole cluster on this machine, from the same file as the embedded default.

    Redis, PostgreSQL and RabbitMQ on free loopback ports, prepared by what `penstock setup` does; then the keeper, the
    executor, Bento's gateway, workers, collector and dead letters, and the API service at its usual address. What dies
    is started again. Everything is kept in one directory, and a second start goes on from there.

    Each line of the log begins with its process's name; the services write into files. Ctrl-C ends all in order.

        penstock up -c penstock.yaml
    """
    asyncio.run(_up(config, Places(data or _default_data()), bento or _default_bento()))


async def _up(files: list[Path], places: Places, bento: Path) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    out, error = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    colours: dict[str, str] = {}

    def show(name: str, line: str) -> None:
        colour = colours.setdefault(name, _COLOURS[len(colours) % len(_COLOURS)])
        out.print(Text.assemble((f"{name:<14}", colour), " ", line))

    def started(told: Up) -> None:
        files = " ".join(f"-c {file}" for file in told.files)
        error.print(
            f"\nPenstock answers on {told.url}/v1; metrics, health and audit on {told.operations_url}.\n"
            f"Every file is in {places.data}, the services' logs in {told.logs}. Other commands find it by\n\n"
            f"    penstock keys create ORGANISATION {files}\n",
        )

    await run_cluster([file.resolve() for file in files], places, bento, show=show, stop=stop, started=started)


def _default_data() -> Path:
    """The state directory; of root one that the database's own account can reach."""
    return (Path("/var/lib/penstock") if os.getuid() == 0 else default_data_directory(os.environ)) / "cluster"


def _default_bento() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    bento = cache / "penstock" / "bento"
    if not bento.exists():
        raise ConfigurationError((f"{bento}: there is no Bento; build it with `make bento`, or name one with --bento",))
    return bento
