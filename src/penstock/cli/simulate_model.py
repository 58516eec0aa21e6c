"""``penstock simulate-model``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli import app

if TYPE_CHECKING:
    from penstock.adapters.simulated_model import Settings

EPILOG = "Example: `penstock simulate-model --port 8000 --model chat-small --decode 80 --log produced.jsonl`"


def _help() -> str:
    from penstock.adapters.simulated_model.instructions import HELP

    return f"""Serve an OpenAI-compatible model that invents text at a chosen speed and fails on request.

For tests, benchmarks and rehearsals: no weights, no GPU. It serves /v1/chat/completions, /v1/completions,
/v1/embeddings, /v1/models, /tokenize, /health, /metrics and /log (totals of what was really produced).

A token is four bytes of text, rounded up; each message of a chat adds one.

{HELP}"""


@app.command("simulate-model", help=_help(), epilog=EPILOG)
def simulate_model(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one and prints it.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    model: Annotated[list[str] | None, typer.Option(help="Name to serve; may be repeated.")] = None,
    prefill: Annotated[int, typer.Option(min=0, help="Prompt tokens per second and request; 0: at once.")] = 0,
    decode: Annotated[int, typer.Option(min=0, help="Tokens per second and request; 0: as fast as possible.")] = 0,
    concurrency: Annotated[int, typer.Option(min=0, help="Requests at a time, others wait; 0: no bound.")] = 0,
    latency: Annotated[float, typer.Option(min=0, help="Seconds added before each answer.")] = 0.0,
    context: Annotated[int, typer.Option(min=1, help="Tokens of prompt and answer together.")] = 131_072,
    tokens: Annotated[int, typer.Option(min=0, help="Length of an answer, unless the request says.")] = 64,
    log: Annotated[Path | None, typer.Option(help="Append a JSON line for each request at its end.")] = None,
    traces: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Send spans of callers' traces to this collector, OTLP over HTTP."),
    ] = None,
) -> None:
    """Run until stopped by Ctrl-C or SIGTERM; a caller that is still being served is cut off after a second."""
    from penstock.adapters.simulated_model import Settings

    settings = Settings(
        models=tuple(model or ["simulated"]),
        prefill=prefill,
        decode=decode,
        concurrency=concurrency,
        latency_s=latency,
        context=context,
        tokens=tokens,
    )
    asyncio.run(_serve(settings, port=port, host=host, log=log, traces=traces))


async def _serve(settings: Settings, *, port: int, host: str, log: Path | None, traces: str | None) -> None:
    """Signals are obeyed before the address is told: whoever waits for it may stop this at once."""
    from penstock.api.server import stop_on_signals
    from penstock.wiring.tracing import traced_server

    stop = asyncio.Event()
    stop_on_signals(stop)
    async with traced_server(traces, "simulated-model") as around:
        await _serve_within(settings, stop, port=port, host=host, log=log, around=around)


async def _serve_within(
    settings: Settings, stop: asyncio.Event, *, port: int, host: str, log: Path | None, around: Any
) -> None:
    from penstock.adapters.simulated_model import Server

    try:
        server = Server(settings, port=port, host=host, log=log, around=around)
    except OSError as error:
        fix = "choose another file" if error.filename else "--port 0 takes a free port"
        typer.echo(f"cannot use {error.filename or f'{host}:{port}'}: {error.strerror}; {fix}", err=True)
        raise typer.Exit(1) from error
    async with server:
        typer.echo(f"simulated model on {server.url}, models: {', '.join(settings.models)}")
        await stop.wait()
    typer.echo("simulated model stopped", err=True)
