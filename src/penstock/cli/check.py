"""``penstock check``: everything that is wrong with a configuration, or what it means."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from penstock.cli import app
from penstock.cli.scaling_report import scaling_report
from penstock.config.charting import chart_values
from penstock.config.describing import reference, schema
from penstock.config.explaining import Meaning, ModelMeaning, OrganisationMeaning, explain
from penstock.config.loading import Examination, examine
from penstock.config.reading import Problem, path_text
from penstock.wiring.scaling import pools

_HELP = """Check configuration files, and say what they mean.

With several files the later one wins, key by key, as in Helm. Lists are replaced whole, and `null` removes a key.

Exit code 0: no problems, there may be warnings. 1: problems, each with its path, what was found, what is wanted and
the fix. 2: wrong use of this command.

Examples:

- `penstock check penstock.yaml`
- `penstock check penstock.yaml -f production.yaml` (the two together)
- `penstock check penstock.yaml --json` (for programs)
- `penstock check penstock.yaml --explain-scaling` (how many replicas a load gets, and why)
- `penstock check --schema > penstock.schema.json` (for an editor)
"""


@app.command(help=_HELP)
def check(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Files, merged in this order.", show_default=False)
    ] = None,
    later: Annotated[
        list[Path] | None,
        typer.Option("-f", "--file", metavar="FILE", help="A further file that wins; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print problems, or the meaning, as JSON.")] = False,
    as_schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of penstock.yaml.")] = False,
    explain_scaling: Annotated[
        bool, typer.Option("--explain-scaling", help="Print how each model's replicas are computed, with its numbers.")
    ] = False,
    as_values: Annotated[
        bool, typer.Option("--values", help="Print every default, as the chart's values.yaml.")
    ] = False,
    as_reference: Annotated[bool, typer.Option("--reference", help="Print the reference page (Markdown).")] = False,
) -> None:
    """Check files, or print what the settings are."""
    if as_schema:
        typer.echo(json.dumps(schema(), indent=2))
        return
    if as_values:
        typer.echo(chart_values(), nl=False)
        return
    if as_reference:
        typer.echo(reference(), nl=False)
        return
    paths = [*(files or []), *(later or [])]
    if not paths:
        raise typer.BadParameter("give at least one file, such as `penstock check penstock.yaml`")
    examined = examine(paths)
    meaning = explain(examined.configuration) if examined.configuration else None
    if as_json:
        typer.echo(json.dumps(_as_json(examined, meaning), indent=2))
    elif examined.configuration is None or meaning is None:
        Console(stderr=True, highlight=False).print(_problems(examined.problems))
    elif explain_scaling:
        found = pools(examined.configuration)
        without = tuple(name for name in examined.configuration.models if name not in found)
        Console(highlight=False).print(scaling_report(found, without))
    else:
        Console(highlight=False).print(_meaning(paths, meaning, examined.warnings))
    if meaning is None:
        raise typer.Exit(1)


def _as_json(examined: Examination, meaning: Meaning | None) -> dict[str, Any]:
    said: dict[str, Any] = {
        "problems": [_problem_json(problem) for problem in examined.problems],
        "warnings": [_problem_json(warning) for warning in examined.warnings],
    }
    return said | (asdict(meaning) if meaning else {})


def _problem_json(problem: Problem) -> dict[str, str]:
    return {"path": path_text(problem.location), "place": problem.place, "message": problem.message}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(problems: tuple[Problem, ...], colour: str) -> Group:
    """One after another: where, then what; nothing is cut off, however narrow the terminal."""
    parts: list[RenderableType] = []
    for problem in problems:
        if not problem.location:
            parts += [Text(problem.message, style=f"bold {colour}"), Text()]
            continue
        head = Text.assemble((path_text(problem.location), f"bold {colour}"), (f"  {problem.place}", "dim"))
        parts += [head, Padding(Text(problem.message), (0, 0, 1, 2))]
    return Group(*parts)


def _problems(problems: tuple[Problem, ...]) -> Group:
    total = Text(f"{_count(len(problems), 'problem')}. Nothing was started or changed.", style="bold")
    return Group(_listed(problems, "red"), total)


def _meaning(paths: list[Path], meaning: Meaning, warnings: tuple[Problem, ...]) -> Group:
    names = " + ".join(str(path) for path in paths)
    head = Text.assemble(
        (names, "bold"),
        (f" is sound, with {_count(len(warnings), 'warning')}: " if warnings else " is sound: ", "green"),
        f"{_count(len(meaning.models), 'model')}, {_count(len(meaning.organisations), 'organisation')}, ",
        "stores embedded in one process" if meaning.stores == "embedded" else "stores in Redis, PostgreSQL, RabbitMQ",
    )
    parts: list[RenderableType] = [head, Text(), _models(meaning.models)]
    for organisation in meaning.organisations:
        parts += [_organisation(organisation), Text()]
    if warnings:
        parts += [Text(_count(len(warnings), "warning"), style="bold"), Text(), _listed(warnings, "yellow")]
    return Group(*parts)


def _table(title: Text, *columns: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name, justify in columns:
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    return table


def _models(models: tuple[ModelMeaning, ...]) -> Table:
    title = Text.assemble(("Models", "bold"), ("  prices in US dollars per million tokens", "dim"))
    table = _table(
        title,
        ("model, and where it runs", ""),
        ("context", "right"),
        ("max_tokens", "right"),
        ("input / cached / output", "right"),
        ("a full request", "right"),
    )
    for model in models:
        where = [f"  {_upstream(url, model)}" for url in model.upstreams]
        each = f"\n+ {model.request_usd} usd a request" if model.request_usd != "0" else ""
        table.add_row(
            Text.assemble((model.name, "bold cyan"), ("\n" + "\n".join(where), "dim")),
            f"{model.context:_}",
            f"{model.max_tokens:_}",
            f"{model.input_usd} / {model.cached_input_usd} / {model.output_usd}{each}",
            f"{model.full_request_tokens:_} tokens\n{model.full_request_usd} usd",
        )
    return table


def _upstream(url: str, model: ModelMeaning) -> str:
    if url == "local":
        return "the bundled small model"
    return url if model.kind == "openai" else f"{url} ({model.kind})"


def _organisation(organisation: OrganisationMeaning) -> Table:
    overrun = "runs into debt" if organisation.overrun == "debt" else "ends a stream early"
    reserve = {
        "strict": "a request holds the most that it can use, so no budget is overshot",
        "learned": f"a request holds what 95 of 100 like it used; more than that {overrun}",
    }[organisation.reserve]
    title = Text.assemble(
        ("Organisation ", "bold"),
        (organisation.name, "bold cyan"),
        (f"  plan {organisation.plan}\n{organisation.reserve}: {reserve}", "dim"),
    )
    table = _table(title, ("limit of", ""), ("limit", ""), ("kind", ""), ("comes back", ""))
    previous = None
    for limit in organisation.limits:
        owner = limit.owner.replace(":team:", " › team ").replace(":key:", " › key ")
        owner += f" › {limit.model}" if limit.model else ""
        if previous is not None and owner != previous:
            table.add_section()
        shown = "" if owner == previous else owner
        table.add_row(Text(shown, style="cyan"), Text(limit.sentence, style="bold"), limit.kind, limit.comes_back)
        previous = owner
    return table
