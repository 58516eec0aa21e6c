"""``penstock local-model``: the bundled small model by itself, as the chart runs it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from penstock.adapters.local_model import LocalModel
from penstock.api.server import stop_on_signals
from penstock.cli import app


@app.command("local-model")
def local_model(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one and prints it.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    model: Annotated[str, typer.Option(help="What it calls itself in answers.")] = "local",
    context: Annotated[int, typer.Option(min=1, max=8192, help="Tokens of prompt and answer together.")] = 8192,
    parallel: Annotated[int, typer.Option(min=1, help="Requests at a time; others wait.")] = 4,
) -> None:
    """Serve the bundled small model, OpenAI-compatible and without keys or quotas, for a gateway on another machine.

    `penstock serve` starts it by itself where a model says `upstream: local`; the chart gives it a pod of its own.
    Needs the `local` extra. It runs until Ctrl-C or SIGTERM.

        penstock local-model --host 0.0.0.0 --port 8000 --model smollm2-135m
    """
    asyncio.run(_serve(LocalModel(name=model, host=host, port=port, context=context, parallel=parallel)))


async def _serve(model: LocalModel) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    try:
        url = await model.start()
        typer.echo(f"local model on {url}")
        await stop.wait()
    finally:
        await model.stop()
