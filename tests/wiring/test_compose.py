"""compose.yaml starts what the rest of the project has: commands, files and the environment of each stream."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import penstock.cli
from penstock.config import load
from penstock.wiring.bento import streams

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "penstock")
SECRETS = {"PENSTOCK_PASSWORD": "p" * 64, "PENSTOCK_PEPPER": "q" * 64}


@pytest.mark.parametrize("name", OURS)
def test_each_command_has_the_options_that_are_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [{"stores.yaml": "config/compose/stores.yaml"}.get(word, word) for word in SERVICES[name]["command"]]
    penstock.cli.import_commands()
    command: Any = typer.main.get_command(penstock.cli.app)
    command.commands[words[0]].make_context(words[0], words[1:])  # raises if one is unknown


def test_each_stream_has_the_environment_that_it_asks_for() -> None:
    configuration = load([ROOT / "penstock.yaml", ROOT / "config" / "compose" / "stores.yaml"])
    wanted = {
        stream.name.partition("-smollm2")[0]: stream
        for stream in streams(configuration, SECRETS, gateway_port=4195, executor_url="http://executor:4190")
    }
    for name, stream in wanted.items():
        given = {key: filled(str(value)) for key, value in SERVICES[name]["environment"].items()}
        assert given.keys() == stream.environment.keys(), name
        for key in given.keys() - {"PENSTOCK_OPERATIONS_ADDRESS", "PENSTOCK_GATEWAY_ADDRESS"}:
            if key == "PENSTOCK_MODELS":
                assert json.loads(given[key]) == json.loads(stream.environment[key])
            else:
                assert given[key] == stream.environment[key], (name, key)


def test_each_file_that_is_mounted_or_built_from_is_there() -> None:
    named = re.findall(
        r"(?:- |dockerfile: )(\.?/?[a-z/_.]+\.(?:yaml|conf|Dockerfile))", (ROOT / "compose.yaml").read_text()
    )
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    streams_named = re.findall(r"/etc/penstock/bento/(\w+\.yaml)", (ROOT / "compose.yaml").read_text())
    assert sorted(streams_named) == ["collector.yaml", "dead_letters.yaml", "gateway.yaml", "worker.yaml"]


def filled(text: str) -> str:
    return re.sub(r"\$\{(\w+)[^}]*\}", lambda found: SECRETS[found[1]], text)
