"""``penstock serve``: the embedded default."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from penstock.adapters.observing.lines import LineWriter
from penstock.adapters.observing.log import LogFormat, configure_log, resolve_format
from penstock.api.server import stop_on_signals
from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.config import Configuration, NotationError
from penstock.config.notation import parse_duration
from penstock.errors import InvalidRequest
from penstock.wiring.listening import Started
from penstock.wiring.places import Places
from penstock.wiring.serving import serve_embedded
from penstock.wiring.serving_cluster import serve_cluster


@app.command()
def serve(
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
    host: Annotated[str | None, typer.Option(help="Instead of `server.host`.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Instead of `server.port`; 0 for a free one.")
    ] = None,
    operations_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Instead of `server.operations_port`; 0 for a free one.")
    ] = None,
    stop_delay: Annotated[
        str,
        typer.Option(metavar="DURATION", help="How long connections are still accepted after SIGTERM, not ready."),
    ] = "0s",
    log_format: Annotated[
        LogFormat, typer.Option(help="One line for each request on standard output; auto: text on a terminal.")
    ] = LogFormat.AUTO,
) -> None:
    """Serve an OpenAI-compatible API with exact token quotas.

    The configuration says which models there are and who may use how much of them; `penstock check` explains it.
    Without `stores` in it everything is in this one process: counters, ledger and keys live in one SQLite database
    in the data directory, and survive a kill at any moment. With `stores` this is one of any number of processes on
    the quota in Redis and the ledger in PostgreSQL, which `penstock setup` has prepared.

    At the first start without stores a key is made and shown. Ctrl-C lets running requests end; twice ends at once.

        penstock serve -c penstock.yaml
    """
    configuration, places = load_with_places(config, data)
    configuration = _overridden(configuration, host, port, operations_port)
    as_text = resolve_format(log_format, is_terminal=sys.stdout.isatty()) is LogFormat.TEXT
    delay_s = _duration_ms(stop_delay) / 1000
    writer = LineWriter(sys.stdout.fileno(), service="api")
    configure_log(writer, LogFormat.TEXT if as_text else LogFormat.JSON)
    try:
        uvloop.run(_serve(configuration, places, writer, as_text=as_text, delay_s=delay_s))
    finally:
        writer.close()


async def _serve(
    configuration: Configuration, places: Places, writer: LineWriter, *, as_text: bool, delay_s: float
) -> None:
    stop = asyncio.Event()

    def say(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    def started(told: Started) -> None:
        say(welcome(told, configuration, places.data))

    longest_s = configuration.server.shutdown_ms / 1000
    stop_on_signals(stop, told_to=lambda: say(f"\nstopping: running requests have {longest_s:g} s to end\n"))

    serving = serve_embedded if configuration.stores is None else serve_cluster
    await serving(
        configuration, places, writer=writer, log_as_text=as_text, stop=stop, stop_delay_s=delay_s, started=started
    )


def _duration_ms(text: str) -> int:
    try:
        return parse_duration(text)
    except NotationError as error:
        raise InvalidRequest(f"--stop-delay: {error}") from error


def _overridden(
    configuration: Configuration, host: str | None, port: int | None, operations_port: int | None
) -> Configuration:
    given = {"host": host, "port": port, "operations_port": operations_port}
    server = msgspec.structs.replace(
        configuration.server, **{name: value for name, value in given.items() if value is not None}
    )
    return msgspec.structs.replace(configuration, server=server)


def welcome(told: Started, configuration: Configuration, data: Path) -> str:
    """What a person sees when the service answers: where it is, and what to type next."""
    model = next(iter(configuration.models))
    lines = [
        f"Penstock answers on {told.url}/v1; metrics, health and audit on {told.operations_url}; state in {data}",
    ]
    if told.first_key is not None:
        lines += [
            "",
            "This is the first start, so here is a key. It is shown this once:",
            "",
            f"    export OPENAI_API_KEY={told.first_key}",
            f"    export OPENAI_BASE_URL={told.url}/v1",
            "",
            "Then, in another terminal:",
            "",
            '    curl $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" \\',
            "      -H 'Content-Type: application/json' \\",
            f'      -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}\'',
        ]
    else:
        lines.append("Make a key with `penstock keys create ORGANISATION`.")
    return "\n".join(lines) + "\n\n"
