"""The command line, run whole in this process: arguments in, exit code and both streams out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.cli import main

CONFIGURATION = """
models:
  chat-small: {upstream: "http://127.0.0.1:1", context: 8192, price: {input: 0.15, output: 0.60}}
  embed-small: {upstream: "http://127.0.0.1:1", context: 512, max_tokens: 1}
plans:
  team: {limits: [50M tokens/month, 600 requests/minute, 32 concurrent]}
organisations:
  acme: {plan: team, teams: {search: {limits: [20M tokens/month]}}}
  globex: {plan: team}
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data directory; not there yet."""
    return tmp_path / "state"


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A configuration with two organisations."""
    path = tmp_path / "penstock.yaml"
    path.write_text(CONFIGURATION)
    return path


@pytest.fixture
def run(data: Path, configuration: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``penstock`` with the configuration and the data directory of this test."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--config", str(configuration), "--data", str(data)])
        captured = capsys.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return run
