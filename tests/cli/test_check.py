"""``penstock check`` says everything that is wrong, or what the file means, to people and to programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from penstock.cli import app, check

EXAMPLE = Path(__file__).parents[2] / "penstock.yaml"
WRONG = "models: {m: {upstream: local, context: 512}}\nplan: {}\n"


def run(*arguments: str | Path, columns: int = 100) -> Result:
    assert check.__name__ == "penstock.cli.check"
    return CliRunner().invoke(app, ["check", *map(str, arguments)], env={"COLUMNS": str(columns), "NO_COLOR": "1"})


@pytest.fixture(name="wrong")
def _wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG, encoding="utf-8")
    return path


def test_the_example_is_sound_and_every_limit_is_shown_in_100_columns() -> None:
    result = run(EXAMPLE)
    assert result.exit_code == 0, result.output
    assert "is sound: 1 model, 1 organisation, stores embedded in one process" in result.output
    for text in (
        "200k tokens/minute",
        "3_333.3 a second, plus unused holds",
        "50M tokens/month",
        "on the 1st of the month, 00:00 UTC",
        "acme › team search",
        "0.02 / 0.01 / 0.06",
        "8_768 tokens",
    ):
        assert text in result.output
    assert max(len(line) for line in result.output.splitlines()[1:]) <= 100


def test_the_setup_page_shows_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLE.parent)
    page = (EXAMPLE.parent / "docs/02-core-components/api-service/setup.md").read_text(encoding="utf-8")
    shown = page.split("$ penstock check penstock.yaml\n")[1].split("```")[0]
    printed = run("penstock.yaml").output
    assert [line.rstrip() for line in printed.rstrip().splitlines()] == shown.rstrip().splitlines()


def test_problems_are_listed_with_their_count_and_exit_code_1(wrong: Path) -> None:
    result = run(wrong)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "its default 1024 is more than context (512); set it" in result.stderr
    assert "unknown key; did you mean `plans`?" in result.stderr
    assert result.stderr.rstrip().endswith("2 problems. Nothing was started or changed.")


def test_later_files_win(tmp_path: Path) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("plans: {team: {limits: [1k tokens/day]}}", encoding="utf-8")
    for arguments in ((EXAMPLE, "-f", later), (EXAMPLE, later)):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "1k tokens/day" in result.output
        assert "200k tokens/minute" not in result.output
        assert "is sound, with 1 warning:" in " ".join(result.output.split())
        assert "more than 1k tokens/day ever admits" in " ".join(result.output.split())


def test_json_holds_the_meaning_or_the_problems(wrong: Path) -> None:
    meaning = json.loads(run(EXAMPLE, "--json").stdout)
    assert meaning["problems"] == meaning["warnings"] == []
    assert meaning["models"][0]["input_usd"] == "0.02"
    assert meaning["organisations"][0]["limits"][-1]["owner"] == "acme:team:search"
    result = run(wrong, "--json")
    assert result.exit_code == 1
    assert [problem["path"] for problem in json.loads(result.stdout)["problems"]] == ["models.m.max_tokens", "plan"]
    assert json.loads(result.stdout)["problems"][0]["place"] == f"{wrong}:1"


def test_schema_and_reference_are_printed_without_a_file() -> None:
    assert json.loads(run("--schema").stdout)["title"] == "penstock.yaml"
    assert run("--reference").stdout.startswith("# Configuration reference")


def test_without_a_file_the_fix_is_named() -> None:
    result = run()
    assert result.exit_code == 2
    assert "penstock check penstock.yaml" in result.output


def test_help_teaches() -> None:
    text = " ".join(run("--help").output.split())
    assert "Exit code 0" in text
    assert "penstock check penstock.yaml -f production.yaml" in text


def test_scaling_is_explained_with_the_models_own_numbers() -> None:
    result = run(EXAMPLE, "--explain-scaling", columns=80)
    assert result.exit_code == 0, result.output
    for text in (
        "80 tokens/s, counted at 0.8: 64 tokens/s",
        "R1 = tokens due / (64 tokens/s x seconds until due)",
        "one replica drains 3_840 tokens in time",
        "384k tokens         10   maximum         no, 100 would",
    ):
        assert text in result.output
