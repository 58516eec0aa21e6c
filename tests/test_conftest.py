"""The shared parts of the tests keep their own promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CONFTEST = Path(__file__).with_name("conftest.py")

SKIPPING = "import pytest\n\ndef test_one() -> None: pytest.skip('no store here')\n"
EXPECTED = "import pytest\n\ndef test_one() -> None: pytest.xfail('known')\n"
SEEDED = "def test_one(seed: int) -> None: assert seed == 0\n"


def run(folder: Path, test: str, *, allowed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    (folder / "allowed_skips.txt").write_text(allowed)
    (folder / "test_sample.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-q", "."]
    env = {**os.environ, "CI": "", **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("test", [SKIPPING, EXPECTED], ids=["skip", "xfail"])
def test_a_skip_or_expected_failure_that_nobody_reviewed_fails_ci(tmp_path: Path, test: str) -> None:
    finished = run(tmp_path, test, CI="true")
    assert finished.returncode == 1
    assert "not in allowed_skips.txt: test_sample.py::test_one" in finished.stdout


def test_a_skip_at_a_desk_passes(tmp_path: Path) -> None:
    assert run(tmp_path, SKIPPING).returncode == 0


def test_a_reviewed_skip_passes_in_ci(tmp_path: Path) -> None:
    assert run(tmp_path, SKIPPING, allowed="test_sample.py::test_*  # no store\n", CI="true").returncode == 0


def test_a_reviewed_skip_must_give_its_reason(tmp_path: Path) -> None:
    finished = run(tmp_path, SKIPPING, allowed="test_sample.py::test_one\n", CI="true")
    assert finished.returncode != 0
    assert "gives no reason" in finished.stdout + finished.stderr


def test_a_failure_prints_its_seed_and_the_seed_replays_it(tmp_path: Path) -> None:
    printed = run(tmp_path, SEEDED, PENSTOCK_SEED="17")
    assert printed.returncode == 1
    assert "replay with PENSTOCK_SEED=17" in printed.stdout
    assert run(tmp_path, SEEDED, PENSTOCK_SEED="0").returncode == 0
