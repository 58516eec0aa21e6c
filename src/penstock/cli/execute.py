"""``penstock execute``."""

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
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config import Configuration
from penstock.wiring.executing import serve_executor
from penstock.wiring.places import Places

PORT = 4190
OPERATIONS_PORT = 4191


@app.command()
def execute(
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
    host: Annotated[str, typer.Option(help="Address to listen on; it asks for no key, so keep it on loopback.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where the worker sends jobs; 0 for a free one.")] = PORT,
    operations_host: Annotated[str, typer.Option(help="Address of metrics and health.")] = "127.0.0.1",
    operations_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Metrics and health; 0 for a free one.")
    ] = OPERATIONS_PORT,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Jobs at once; default `queue.concurrency` for each model. More are told to wait."),
    ] = None,
    log_format: Annotated[
        LogFormat, typer.Option(help="One line for each job on standard output; auto: text on a terminal.")
    ] = LogFormat.AUTO,
) -> None:
    """Run jobs of the queue lane for the worker beside it.

    A worker takes a job from the broker and sends it to `POST /execute`. Here it is claimed in the quota store, sent to
    its model, watched for cancellation and for its deadline, and answered with its result, which the worker publishes.
    Nothing is kept between jobs: a kill at any moment lets another executor run the job again, and it is billed once.

    Needs `stores:` in the configuration; without them `penstock serve` runs jobs by itself. Ctrl-C lets running jobs
    end within `server.shutdown`, then releases them.

        penstock execute -c penstock.yaml --port 4190
    """
    configuration, places = load_with_places(config, data)
    if concurrency is None:
        concurrency = configuration.queue.concurrency * max(1, len(configuration.models))
    as_text = resolve_format(log_format, is_terminal=sys.stdout.isatty()) is LogFormat.TEXT
    writer = LineWriter(sys.stdout.fileno(), service="executor")
    configure_log(writer, LogFormat.TEXT if as_text else LogFormat.JSON)
    try:
        uvloop.run(
            _execute(
                configuration, places, host, port, operations_host, operations_port, concurrency,
                writer, as_text=as_text,
            )
        )  # fmt: skip
    finally:
        writer.close()


async def _execute(
    configuration: Configuration,
    places: Places,
    host: str,
    port: int,
    operations_host: str,
    operations_port: int,
    concurrency: int,
    writer: LineWriter,
    *,
    as_text: bool,
) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)

    def started(url: str, operations_url: str) -> None:
        typer.echo(
            f"penstock execute on {url}/execute, {concurrency} jobs at once; metrics on {operations_url}", err=True
        )

    await serve_executor(
        configuration,
        places,
        host=host,
        port=port,
        operations_host=operations_host,
        operations_port=operations_port,
        concurrency=concurrency,
        writer=writer,
        log_as_text=as_text,
        stop=stop,
        started=started,
    )
