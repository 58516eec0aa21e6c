"""The command line: one module for each command, registered on ``app``."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from penstock import __version__
from penstock.errors import ConfigurationError, PenstockError

app = typer.Typer(
    name="penstock",
    help="ML inference for many tenants, with exact token quotas, billed from a ledger.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def penstock(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """ML inference for many tenants, with exact token quotas, billed from a ledger."""


def import_commands(first: str = "") -> None:
    """Register one command, or all of them if ``first`` names none."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    first = first.replace("-", "_")
    for name in [first] if first in modules else modules:
        importlib.import_module(f"{__name__}.{name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; each module of this package registers its commands when imported.

    A module that is named as the first argument is the only one imported: the others cost a second of start.

    Args:
        arguments: Without the program's name; those of the process if None.

    Raises:
        SystemExit: At the end: 0, 1 after an error of ours (told on standard error), 2 for wrong usage.
    """
    import_commands("".join((sys.argv[1:] if arguments is None else arguments)[:1]))
    try:
        app(args=arguments, prog_name="penstock")
    except PenstockError as error:
        problems = error.problems if isinstance(error, ConfigurationError) else (error.message,)
        sys.stderr.write("".join(f"penstock: {problem}\n" for problem in problems))
        raise SystemExit(1) from None
