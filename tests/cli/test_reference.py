"""The reference of commands: every option that it names exists, and it names every one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

import penstock.cli
import penstock.cli.audit
import penstock.cli.await_setup
import penstock.cli.check
import penstock.cli.doctor
import penstock.cli.erase
import penstock.cli.execute
import penstock.cli.invoice
import penstock.cli.keys
import penstock.cli.ledger
import penstock.cli.local_model
import penstock.cli.plan
import penstock.cli.rebuild
import penstock.cli.replay
import penstock.cli.serve
import penstock.cli.setup
import penstock.cli.simulate_model
import penstock.cli.top
import penstock.cli.up
import penstock.cli.usage

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "commands.md").read_text()
SECTIONS: dict[str, str] = dict(re.findall(r"^## `penstock ([a-z -]+)`\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
COMMANDS = (
    "serve", "check", "execute", "keys create", "keys list", "keys rotate", "keys revoke", "usage", "audit", "replay",
    "setup", "simulate-model", "up", "invoice", "ledger export", "ledger correct", "await", "local-model",
    "erase", "rebuild", "plan", "doctor", "top",
)  # fmt: skip


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


def test_every_section_is_a_command() -> None:
    assert set(COMMANDS) <= set(SECTIONS)
    for path in SECTIONS:
        assert options_of(path)


def test_the_page_names_every_route_that_a_scope_may() -> None:
    (line,) = [line for line in SECTIONS["keys create"].splitlines() if line.startswith("| `--routes")]
    assert tuple(re.findall(r"`([a-z.]+)`", line)) == penstock.cli.keys.ROUTES
