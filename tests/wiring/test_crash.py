"""A crash happens where and when it was asked for, and nowhere else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.errors import ConfigurationError
from penstock.wiring.crash import crash_from

POINTS = ("queued", "committed")


def _run(wanted: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from penstock.wiring.crash import crash_from\n"
        f"reached = crash_from({wanted!r}, {POINTS!r})\n"
        "for number in range(3):\n"
        "    for point in ('queued', 'committed'):\n"
        "        print(point, number, flush=True); reached(point)\n"
    )
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


def test_the_process_dies_by_kill_the_nth_time_it_reaches_the_point() -> None:
    ended = _run("committed:2")
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.splitlines()[-1] == "committed 1"


def test_a_point_that_is_not_reached_often_enough_kills_nothing() -> None:
    assert _run("queued:4").returncode == 0


def test_without_the_variable_nothing_is_called() -> None:
    assert crash_from(None, POINTS) is None
    assert crash_from("", POINTS) is None


def test_a_file_names_the_point_of_one_process_and_nothing_to_the_others(tmp_path: Path) -> None:
    file = tmp_path / "crash"
    assert crash_from(f"@{file}", POINTS) is None
    file.write_text("elsewhere:1\n")
    assert crash_from(f"@{file}", POINTS) is None
    file.write_text("committed:2\n")
    ended = _run(f"@{file}")
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (-signal.SIGKILL, "committed 1")
    assert not file.exists(), "it would happen again at the next start"


@pytest.mark.parametrize("wanted", ["queue:1", "queued", "queued:0", "queued:-1", "queued:x", ":1", "queued:1:melt"])
def test_a_value_that_cannot_be_obeyed_is_refused_with_the_points_that_exist(wanted: str) -> None:
    with pytest.raises(ConfigurationError, match="a point of queued, committed; unset it"):
        crash_from(wanted, POINTS)
