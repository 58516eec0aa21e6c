"""What the program does before any command is run."""

from __future__ import annotations

import pytest

import penstock
from penstock.cli import main


def ended(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code


def test_the_version_is_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"{penstock.__version__}\n"


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("servee") == 2
    assert "'serve'" in capsys.readouterr().err


def test_without_a_command_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    ended()
    printed = "".join(capsys.readouterr())
    for command in ("serve", "check", "keys", "usage", "audit", "replay", "simulate-model"):
        assert command in printed
