"""``penstock plan``: how many replicas a load will take, how long it will wait, and what that costs, simulated."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from penstock.api.instants import instant_ms
from penstock.cli import app
from penstock.cli.options import DEFAULT_FILES, ConfigurationFiles, DataDirectory, load_with_places
from penstock.cli.plan_report import plan_json, plan_report
from penstock.cli.plan_settings import read_setting
from penstock.config import Configuration
from penstock.config.notation import NotationError, format_duration, parse_duration
from penstock.console.screen import screen
from penstock.errors import InvalidRequest
from penstock.planning.forecasting.autoscaler import Setting
from penstock.planning.forecasting.choosing import alternatives, choose
from penstock.planning.forecasting.loads import MILLISECOND_US, Generator, Load, Shape, generate
from penstock.planning.forecasting.outcomes import Objective, Outcome, Price, outcome
from penstock.planning.forecasting.page import page
from penstock.planning.forecasting.picture import draw
from penstock.planning.forecasting.simulation import World, simulate
from penstock.planning.forecasting.telling import Plan, moment
from penstock.planning.rehearsing import traces
from penstock.quota.operations import Lane
from penstock.wiring import planning, rehearsing
from penstock.wiring.places import Places

EXCERPT = "azure_llm_2023_conv_excerpt.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the load comes from, by the command's options."""

    trace: Path | None
    shape: Shape | None
    is_history: bool
    start: str | None
    end: str | None
    requests: int
    rate: float
    peak: float
    every: str
    speed: float
    repeat: int
    seed: int


@app.command()
def plan(
    trace: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TRACE]", help="CSV with TIMESTAMP,ContextTokens,GeneratedTokens. Default: the shipped excerpt."
        ),
    ] = None,
    load: Annotated[Shape | None, typer.Option(help="Instead: make a load up, with the excerpt's lengths.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="With --load: how many.")] = 100_000,
    rate: Annotated[float, typer.Option(min=0.0001, help="With --load: requests per second, on average.")] = 5.0,
    peak: Annotated[float, typer.Option(help="With diurnal: the busiest moment, in averages; 1 to 2.")] = 1.8,
    every: Annotated[str, typer.Option(metavar="TIME", help="With bursts: between two of them.")] = "10m",
    history: Annotated[bool, typer.Option("--history", help="Instead: what the ledger has of the model.")] = False,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="With --history; included.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="With --history; excluded.")] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="Times the trace's or the history's own speed.")] = 1.0,
    repeat: Annotated[int, typer.Option(min=1, help="Go through trace or history so often.")] = 1,
    seed: Annotated[int, typer.Option(help="Draws a made-up load; the same seed, the same load.")] = 1,
    model: Annotated[str | None, typer.Option(help="Default: the first that says its `capacity`.")] = None,
    lane: Annotated[
        Lane, typer.Option(help="queue: jobs, to be done in time. realtime: first tokens in time.")
    ] = Lane.QUEUE,
    prefill: Annotated[
        float | None, typer.Option(min=0, help="Prompt tokens per second and request; 0: at once. Default: see below.")
    ] = None,
    decode: Annotated[
        float | None, typer.Option(min=0, help="Answer tokens per second and request; 0: at once. Default: see below.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests at a time in one replica. Default: `capacity.concurrency`.")
    ] = None,
    latency: Annotated[float, typer.Option(min=0, help="Seconds added to each request.")] = 0.0,
    cold_start: Annotated[
        str | None, typer.Option(metavar="TIME", help="Until a new replica serves. Default: `capacity.cold_start`.")
    ] = None,
    jobs_at_once: Annotated[
        int | None, typer.Option(min=1, help="Of all workers. Default: `workers.max` x `queue.concurrency`.")
    ] = None,
    within: Annotated[str | None, typer.Option(metavar="TIME", help="The objective. Default: the model's own.")] = None,
    percentile: Annotated[int, typer.Option(min=1, max=100, help="Of a hundred requests so many keep it.")] = 95,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTING", help="Compare this with what is configured; may be repeated."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Of a replica. Default: `deploy.gpu`, else 1.")] = None,
    gpu_price: Annotated[float, typer.Option(min=0, help="US dollars per GPU and hour.")] = 2.0,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a picture; needs the `plan` extra.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that needs nothing else.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs; times in seconds.")] = False,
    config: ConfigurationFiles = DEFAULT_FILES,
    data: DataDirectory = None,
) -> None:
    """Simulate a load on one model's servers under several ways of scaling, and recommend the cheapest that will do.

    Nothing is started and nothing is changed. Requests wait in a queue, or at the servers, for a place; servers have
    the parameters of `penstock simulate-model`; replicas follow KEDA and the horizontal pod autoscaler, with their
    polling, cooldown, 10 % tolerance, windows and policies, and need their cold start.

    What is configured is compared with alternatives that differ in one thing each, or with every `--setting`, written
    as a name, a colon, and what differs: `quick: min=1 max=8 polling=5s cooldown=60s window=60s by=queue+tokens`
    (`by=none` with the same min and max: always so many).

    Without --prefill and --decode, speeds are such that a full replica does its `capacity.tokens_per_second`, which are
    tokens of answers, on this load: measure yours, and give them. The exit code is 1 if no setting keeps the objective.

    Examples:

    - `penstock plan` (the shipped trace)
    - `penstock plan --load diurnal --rate 12 --requests 1000000 --html plan.html`
    - `penstock plan --history --from 2026-10-01 --speed 2` (last month's load, doubled)
    - `penstock plan trace.csv --lane realtime --within 500ms --percentile 99`
    - `penstock plan --setting "warm: min=2" --setting "always 4: min=4 max=4 by=none"`
    """
    source = Source(
        trace=trace, shape=load, is_history=history, start=start, end=end, requests=requests, rate=rate, peak=peak,
        every=every, speed=speed, repeat=repeat, seed=seed,
    )  # fmt: skip
    assumed = planning.Assumptions(
        prefill=prefill, decode=decode, concurrency=concurrency, latency_us=round(latency * 1_000_000),
        jobs_at_once=jobs_at_once, cold_start_ms=_duration("--cold-start", cold_start),
        within_ms=_duration("--within", within), percentile=percentile,
    )  # fmt: skip
    configuration, places = load_with_places(config, data)
    name = planning.model_to_plan(configuration, model)
    found, told = _load(source, configuration, places, name, lane)
    world = planning.world(configuration, name, found, lane, assumed)
    own = planning.configured(configuration, name, lane)
    settings = [own, *(read_setting(text, own) for text in setting)] if setting else alternatives(own, world)
    objective = planning.objective(configuration, name, lane, assumed)
    price = planning.price(configuration, name, gpus=gpus, usd_per_gpu_hour=gpu_price)
    outcomes = _simulated(world, settings, objective, price)
    done = Plan(
        title=f"Plan for {name}, {lane} lane",
        model=name, lane=lane, seed=seed, requests=len(found), tokens=found.tokens,
        facts=_facts(world, objective, price, told), server=_server(world), objective=objective,
        outcomes=tuple(outcomes), choice=choose(outcomes, objective, world),
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(plan_json(done)))
    else:
        screen().print(plan_report(done))
    _write(done, png, html)
    if not done.choice.is_met:
        raise typer.Exit(1)


def _write(done: Plan, png: Path | None, html: Path | None) -> None:
    """The files that were asked for.

    Raises:
        InvalidRequest: One cannot be written.
        ConfigurationError: The picture needs what is not installed.
    """
    for file, write in ((png, lambda at: draw(done, at)), (html, lambda at: at.write_text(page(done), "utf-8"))):
        if file is not None:
            try:
                write(file)
            except OSError as error:
                raise InvalidRequest(f"{file}: cannot be written: {error.strerror}; name another file") from error
            typer.echo(f"written: {file}", err=True)


def _duration(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_duration(text)
    except NotationError as error:
        raise InvalidRequest(f"{option}: {error}") from error


def _load(source: Source, configuration: Configuration, places: Places, model: str, lane: Lane) -> tuple[Load, str]:
    """The load, and where it is from in a few words.

    Raises:
        InvalidRequest: Options that exclude each other, or a trace that cannot be read.
    """
    given = [bool(source.trace), source.shape is not None, source.is_history]
    if sum(given) > 1:
        raise InvalidRequest("a trace, --load and --history: give one of them")
    if (source.start or source.end) and not source.is_history:
        raise InvalidRequest("--from and --to say which part of the history; add --history")
    if source.shape is not None:
        every_ms = _duration("--every", source.every) or 0
        wanted = Generator(
            shape=source.shape, requests=source.requests, rate=source.rate, seed=source.seed, peak=source.peak,
            every_s=every_ms / 1_000,
        )  # fmt: skip
        return generate(wanted, _trace(None)), f"{source.shape}, {source.rate:g} requests/s, seed {source.seed}"
    if source.is_history:
        start_ms = instant_ms("--from", source.start) if source.start else 0
        end_ms = instant_ms("--to", source.end) if source.end else time.time_ns() // 1_000_000 + 1
        arrivals = planning.history(configuration, places, model=model, lane=lane, start_ms=start_ms, end_ms=end_ms)
        told = "the ledger"
    else:
        arrivals, told = _trace(source.trace), source.trace.name if source.trace else "the shipped trace"
    how = (f", {source.speed:g} times as fast" if source.speed != 1 else "") + (
        f", {source.repeat} times over" if source.repeat > 1 else ""
    )
    return planning.replayed(arrivals, speed=source.speed, repeat=source.repeat), f"{told}{how}"


def _trace(file: Path | None) -> list[traces.Arrival]:
    if file is None:
        return list(traces.read(rehearsing.shipped(EXCERPT).splitlines(), name=EXCERPT))
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file}: {error}; name a CSV file, or none for the shipped excerpt") from error
    found = list(traces.read(lines, name=str(file)))
    if not found:
        raise InvalidRequest(f"{file}: has a head and no request; a trace has one or more")
    return found


def _simulated(world: World, settings: Sequence[Setting], objective: Objective, price: Price) -> list[Outcome]:
    """Every setting, with a progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    outcomes = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("simulating", total=len(settings))
        for index, each in enumerate(settings):
            progress.update(task, description=each.name)
            run = simulate(world, each, tell=lambda share, index=index: progress.update(task, completed=index + share))  # type: ignore[misc]
            outcomes.append(outcome(world, run, objective=objective, price=price))
            progress.update(task, completed=index + 1)
    return outcomes


def _server(world: World) -> dict[str, float]:
    server = world.server
    return {
        "prefill": round(server.prefill, 3),
        "decode": round(server.decode, 3),
        "concurrency": server.concurrency,
        "latency_s": server.latency_us / 1_000_000,
        "cold_start_s": world.pool.cold_start_ms / 1_000,
    }


def _facts(world: World, objective: Objective, price: Price, told: str) -> tuple[tuple[str, str], ...]:
    load, server = world.load, world.server
    lasts = moment(round(load.lasts_s * 1_000_000))
    speeds = f"prompts {_speed(server.prefill)}, answers {_speed(server.decode)} each"
    bound = f"; the workers hand over {server.at_once:,} at once" if server.at_once is not None else ""
    return (
        ("load", f"{len(load):,} requests in {lasts}, {load.tokens:,} tokens, from {told}"),
        ("one replica", f"{server.concurrency} requests at a time; {speeds}{bound}"),
        ("cold start", format_duration(world.pool.cold_start_ms)),
        ("objective", f"{objective.percentile} of 100 {'jobs done' if world.is_queued else 'first tokens'} within "
         f"{format_duration(objective.within_us // MILLISECOND_US)}"),
        ("price", f"{price.gpus} GPU a replica, {price.usd_per_gpu_hour:g} US dollars an hour"),
    )  # fmt: skip


def _speed(tokens_per_second: float) -> str:
    if not tokens_per_second:
        return "at once"
    return f"{tokens_per_second:,.0f} tokens/s" if tokens_per_second >= 1_000 else f"{tokens_per_second:.3g} tokens/s"
