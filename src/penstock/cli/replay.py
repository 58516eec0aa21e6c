"""``penstock replay``: the main job on real input, and the proof that the ledger is what the models produced."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from penstock.adapters.http import HttpClient
from penstock.adapters.local_model import LocalModel
from penstock.adapters.local_model.counting import counters, prompt_tokens
from penstock.adapters.simulated_model import counting
from penstock.cli import app
from penstock.cli.rehearsal_report import Evidence, report
from penstock.config import Configuration, load
from penstock.errors import InvalidRequest
from penstock.planning.rehearsing import drawing, traces
from penstock.planning.rehearsing.comparing import Books, Produced
from penstock.planning.rehearsing.sending import Outcome, Planned, Sender
from penstock.ports import UpstreamClient
from penstock.quota.operations import Lane
from penstock.wiring import rehearsing
from penstock.wiring.places import Places

EXCERPT = "azure_llm_2023_conv_excerpt.csv"
LOCAL_MODEL = "smollm2-135m"
LOCAL_CONTEXT = 2048
LOCAL_PARALLEL = 4
LOCAL_MAX_TOKENS = 48
LOG_POLL_S = 0.1
LOG_POLLS_MAX = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The command's options."""

    trace: Path | None
    requests: int
    speed: float
    concurrency: int
    stream_percent: int
    seed: int
    config: Sequence[Path]
    as_jobs: bool
    is_cluster: bool


@app.command()
def replay(
    trace: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TRACE]", help="CSV with TIMESTAMP,ContextTokens,GeneratedTokens. Default: the shipped excerpt."
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=0, help="Send so many of the trace; 0: all.")] = 0,
    speed: Annotated[
        float, typer.Option(min=0, help="Times the trace's own speed; 0: as fast as --concurrency allows.")
    ] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 32,
    stream: Annotated[int, typer.Option(min=0, max=100, help="Percent of the requests that stream.")] = 50,
    seed: Annotated[int, typer.Option(help="Draws who sends what; the same seed, the same draw.")] = 1,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", "-c", help="Serve with this; its models are simulated. Default: a shipped one."),
    ] = None,
    lane: Annotated[Lane, typer.Option(help="realtime, or queue: as jobs, each waited for.")] = Lane.REALTIME,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Start a whole cluster, as `penstock up` does, instead of one process.")
    ] = False,
    local: Annotated[
        int, typer.Option(min=0, max=200, help="Instead: ask the local model so many shipped questions.")
    ] = 0,
    url: Annotated[str | None, typer.Option(help="Use this running service instead of starting one.")] = None,
    keys: Annotated[
        Path | None, typer.Option(help="With --url: a YAML mapping of organisations to API keys, largest share first.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="With --url: the service's data directory, for its ledger.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="With --url: a model to ask for; may be repeated.")] = None,
    model_log: Annotated[
        Path | None, typer.Option(help="With --url: the file that `penstock simulate-model --log` writes.")
    ] = None,
) -> None:
    """Send a trace of real requests over HTTP, and compare the ledger with the models' own logs.

    Without --url, everything is started for this and stopped afterwards: a service with an empty ledger, or with
    --cluster all processes and services of one, and a simulated model that answers as long as the trace says, or with
    --local the real small model. Organisations send by a skewed share (Zipf), so that small plans meet their limits.

    The report says who was admitted, which limit refused how many, what was used and charged, how many tokens were
    held for each token used, and the difference between ledger and models, request by request. It is 0; otherwise,
    or if a request failed, the exit code is 1.

    Examples: `penstock replay` · `penstock replay trace.csv --speed 10 --requests 5000` · `penstock replay --local 200`
    """
    chosen = Choices(
        trace=trace,
        requests=requests,
        speed=speed,
        concurrency=concurrency,
        stream_percent=0 if lane is Lane.QUEUE else stream,
        seed=seed,
        config=config or (),
        as_jobs=lane is Lane.QUEUE,
        is_cluster=cluster,
    )
    if url is not None:
        if keys is None or data is None or model_log is None or not model:
            raise InvalidRequest("--url needs --keys, --data, --model and --model-log, to send and to compare")
        evidence = _run(_against(chosen, url.rstrip("/"), _read_keys(keys), Places(data), model, model_log))
    elif local:
        evidence = _run(_with_local_model(chosen, local))
    else:
        evidence = _run(_with_simulated_model(chosen))
    if not report(evidence):
        raise typer.Exit(1)


def _run(work: Coroutine[None, None, Evidence]) -> Evidence:
    """Run until it is done; SIGTERM ends it as Ctrl-C does, so that what was started is stopped."""

    async def bounded() -> Evidence:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(bounded())
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        typer.echo("stopped before the end; nothing is left running", err=True)
        raise typer.Exit(130) from error


def _arrivals(chosen: Choices) -> list[traces.Arrival]:
    if chosen.trace is None:
        lines, name = rehearsing.shipped(EXCERPT).splitlines(), EXCERPT
    else:
        try:
            lines, name = chosen.trace.read_text(encoding="utf-8-sig").splitlines(), str(chosen.trace)
        except OSError as error:
            raise InvalidRequest(f"{chosen.trace}: {error.strerror}; name a file, or none for the excerpt") from error
    found = list(traces.read(lines, name=name))
    return found[: chosen.requests] if chosen.requests else found


def _planned_trace(chosen: Choices, organisations: Sequence[str], models: Sequence[str]) -> list[Planned]:
    arrivals = _arrivals(chosen)
    draws = drawing.draw(
        len(arrivals),
        organisations=organisations,
        models=models,
        stream_percent=chosen.stream_percent,
        seed=chosen.seed,
    )
    return drawing.plan_trace(
        arrivals, draws, write_prompt=counting.text_of_tokens, tokens_per_message=counting.TOKENS_PER_MESSAGE
    )


async def _send(
    chosen: Choices, client: UpstreamClient, url: str, keys: dict[str, str], planned: Sequence[Planned]
) -> list[Outcome]:
    """Send, with a progress bar on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[refused]} refused, {task.fields[failed]} failed"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("replaying", total=len(planned), refused=0, failed=0)
        refused = failed = 0

        def seen(outcome: Outcome) -> None:
            nonlocal refused, failed
            refused += bool(outcome.refused_by)
            failed += bool(outcome.failure)
            progress.update(task, advance=1, refused=refused, failed=failed)

        sender = Sender(
            client=client, url=url, keys=keys, concurrency=chosen.concurrency, speed=chosen.speed,
            as_jobs=chosen.as_jobs, seen=seen,
        )  # fmt: skip
        return await sender.send_all(planned)


def _configuration(chosen: Choices, folder: Path) -> list[Path]:
    if chosen.config:
        return [file.resolve() for file in chosen.config]
    written = folder / "rehearsal.yaml"
    written.write_text(rehearsing.shipped("rehearsal.yaml"))
    return [written]


async def _with_simulated_model(chosen: Choices) -> Evidence:
    with tempfile.TemporaryDirectory(prefix="penstock-replay-") as named:
        folder = Path(named)
        configuration = _configuration(chosen, folder)
        models = rehearsing.models_of(configuration)
        async with AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(rehearsing.simulated_model(folder, models))
            upstreams = dict.fromkeys(models, upstream)
            serve = rehearsing.cluster if chosen.is_cluster else rehearsing.service
            started = await stack.enter_async_context(serve(configuration, upstreams, folder))
            client = HttpClient(server="the service")
            stack.push_async_callback(client.close)
            planned = _planned_trace(chosen, list(started.keys), models)
            outcomes = await _send(chosen, client, started.url, dict(started.keys), planned)
            await rehearsing.until_written(started.places)
            books = Books.of(rehearsing.read_ledger(started.configuration, started.places))
        return Evidence(outcomes=outcomes, books=books, produced=_produced(folder / "produced.jsonl"))


def _produced(log: Path, *, skip_lines: int = 0) -> list[Produced]:
    return [
        Produced(line.request_id, line.model, line.prompt, line.completion, line.cached)
        for line in rehearsing.read_productions(log)[skip_lines:]
    ]


def _read_keys(file: Path) -> dict[str, str]:
    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{file}: {error}; wanted lines `organisation: key`") from error
    if not isinstance(found, dict) or not found or not all(isinstance(value, str) for value in found.values()):
        raise InvalidRequest(f"{file}: wanted lines `organisation: key`")
    return found


async def _against(
    chosen: Choices, url: str, keys: dict[str, str], places: Places, models: Sequence[str], model_log: Path
) -> Evidence:
    """Use a service that runs; rows and lines that were there before are left out."""
    configuration = load(chosen.config) if chosen.config else Configuration()
    before = {event.reservation for event in rehearsing.read_ledger(configuration, places)}
    lines_before = len(rehearsing.read_productions(model_log))
    client = HttpClient(server="the service")
    try:
        planned = _planned_trace(chosen, list(keys), models)
        outcomes = await _send(chosen, client, url, keys, planned)
    finally:
        await client.close()
    await rehearsing.until_written(places)
    events = (event for event in rehearsing.read_ledger(configuration, places) if event.reservation not in before)
    await _until_logged(model_log, lines=lines_before + sum(outcome.is_admitted for outcome in outcomes))
    produced = _produced(model_log, skip_lines=lines_before)
    return Evidence(outcomes=outcomes, books=Books.of(events), produced=produced)


async def _until_logged(model_log: Path, *, lines: int) -> None:
    """Give the model server time for the last lines: it writes them together, a moment after the answers."""
    for _ in range(LOG_POLLS_MAX):
        if len(rehearsing.read_productions(model_log)) >= lines:
            return
        await asyncio.sleep(LOG_POLL_S)


async def _with_local_model(chosen: Choices, count: int) -> Evidence:
    with tempfile.TemporaryDirectory(prefix="penstock-replay-") as named:
        folder = Path(named)
        configuration = _configuration(chosen, folder)
        local = LocalModel(
            name=LOCAL_MODEL, context=LOCAL_CONTEXT, parallel=LOCAL_PARALLEL, log_file=folder / "engine.log"
        )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(local.stop)
            upstream = await local.start()
            described = rehearsing.describe_local_model(
                folder, LOCAL_MODEL, context=LOCAL_CONTEXT, concurrency=LOCAL_PARALLEL
            )
            started = await stack.enter_async_context(
                rehearsing.service([*configuration, described], {LOCAL_MODEL: upstream}, folder)
            )
            client = HttpClient(server="the service")
            stack.push_async_callback(client.close)
            questions = rehearsing.shipped("questions.txt").splitlines()[:count]
            draws = drawing.draw(
                len(questions),
                organisations=list(started.keys),
                models=[LOCAL_MODEL],
                stream_percent=chosen.stream_percent,
                seed=chosen.seed,
            )
            planned = drawing.plan_questions(questions, draws, max_tokens=LOCAL_MAX_TOKENS)
            patient = replace(chosen, concurrency=min(chosen.concurrency, 2 * LOCAL_PARALLEL))
            outcomes = await _send(patient, client, started.url, dict(started.keys), planned)
            counted = await counters(client, upstream)
            tokenized = await _tokenized(client, upstream, outcomes)
        return Evidence(
            outcomes=outcomes,
            books=Books.of(rehearsing.read_ledger(started.configuration, started.places)),
            sums={LOCAL_MODEL: Produced("", LOCAL_MODEL, counted.prompt, counted.completion, counted.cached)},
            tokenized=tokenized,
        )


async def _tokenized(client: UpstreamClient, upstream: str, outcomes: Sequence[Outcome]) -> list[tuple[int, int]]:
    """For each admitted request the prompt's tokens as charged to its client, and as the tokenizer counts them."""
    found = []
    for outcome in outcomes:
        if outcome.is_admitted:
            messages = drawing.messages_of(outcome.planned)
            found.append((outcome.prompt, await prompt_tokens(client, upstream, messages)))
    return found
