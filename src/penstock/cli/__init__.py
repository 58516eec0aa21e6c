"""The command line: one module for each command, registered on ``app``."""

from __future__ import annotations

import importlib
import pkgutil

import typer

app = typer.Typer(
    name="penstock",
    help="ML inference for many tenants, with exact token quotas, billed from a ledger.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback()
def penstock() -> None:
    """ML inference for many tenants, with exact token quotas, billed from a ledger."""


def main() -> None:
    """Run the command line; each module of this package registers its commands when imported."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        importlib.import_module(f"{__name__}.{module.name}")
    app()
