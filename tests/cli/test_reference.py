"""The reference of commands: every option that it names exists, and it names every one."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import penstock.cli
from penstock.cli.keys import ROUTES

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text()
SECTIONS: dict[str, str] = dict(re.findall(r"^## `penstock ([a-z -]+)`\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def every_command() -> Iterator[str]:
    """Each as it is typed after ``penstock``."""
    for module in pkgutil.iter_modules(penstock.cli.__path__):
        importlib.import_module(f"penstock.cli.{module.name}")
    whole: Any = typer.main.get_command(penstock.cli.app)
    for name, command in whole.commands.items():
        parts = getattr(command, "commands", None)
        yield from (name,) if parts is None else (f"{name} {part}" for part in parts)


COMMANDS = tuple(every_command())


def options_of(path: str) -> set[str]:
    """The options and arguments of a command, as they are written."""
    command: Any = typer.main.get_command(penstock.cli.app)
    for name in path.split():
        command = command.commands[name]
    named: set[str] = set()
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        named.add(max(parameter.opts, key=len) if is_option else parameter.metavar.strip("[]."))
    return named - {"--help"}


@pytest.mark.parametrize("path", COMMANDS)
def test_the_page_names_exactly_the_options_of_the_command(path: str) -> None:
    named = set(re.findall(r"^\| `(-?-?[A-Za-z-]+)", SECTIONS[path], re.MULTILINE))
    shared = {"--config", "--data"}
    assert named | shared == options_of(path) | shared


def test_every_command_has_a_section() -> None:
    assert set(COMMANDS) == set(SECTIONS)


def test_the_page_names_every_route_that_a_scope_may() -> None:
    (line,) = [line for line in SECTIONS["keys create"].splitlines() if line.startswith("| `--routes")]
    assert tuple(re.findall(r"`([a-z.]+)`", line)) == ROUTES
