"""What the documentation shows of a command is what the command prints: each is run again on real services."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs_commands import is_as_shown, shown
from tests.system.stages import STAGES

ROOT = Path(__file__).parents[2]
COMMANDS = {
    str(path.relative_to(ROOT)): list(shown(path.read_text()))
    for path in sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
}
OPERATIONS = sorted(page for page in COMMANDS if page.endswith("/operations.md"))
COMMAND_S = 60


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, commands in COMMANDS.items() if commands])
def test_every_command_prints_what_its_page_shows(page: str, tmp_path: Path) -> None:
    with ExitStack() as stages:
        environments: dict[str, dict[str, str]] = {}
        for each in COMMANDS[page]:
            if each.stage not in environments:
                place = tmp_path / each.stage
                place.mkdir()
                environments[each.stage] = stages.enter_context(STAGES[each.stage](place))
            done = subprocess.run(
                ["sh", "-euc", each.command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=COMMAND_S, cwd=ROOT, check=False,
                env={**os.environ, **environments[each.stage]},
            )  # fmt: skip
            assert done.returncode == 0, f"{page}: {each.command}\n{done.stdout}"
            assert is_as_shown(done.stdout, each.output), f"{page}: {each.command}\n{done.stdout}"


@pytest.mark.parametrize("page", OPERATIONS)
def test_a_page_on_operating_a_component_shows_three_commands(page: str) -> None:
    assert len(COMMANDS[page]) >= 3


def test_a_changed_output_is_seen() -> None:
    assert is_as_shown("a 17\nb\n", "a ...\nb")
    assert is_as_shown("a\nb\nc\nd", "a\n...\nd")
    assert not is_as_shown("a 17\nb", "a 17")
    assert not is_as_shown("a 17", "a 1")


@pytest.mark.parametrize("text", ["```console\n$ true\n```\n", "<!-- rerun: redis -->\n```console\nout\n```\n"])
def test_a_block_that_would_never_be_run_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"rerun|begins with"):
        list(shown(text))
