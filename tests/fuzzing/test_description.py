"""Requests made by schemathesis from our own description of the API: whatever it tries, no server error."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from penstock.api.application import application
from tests.api.desk import PLATFORM, Desk
from tests.api.door import TOKEN, Door, listening
from tests.counts import count

pytestmark = [pytest.mark.slow, pytest.mark.torture]


@pytest.mark.parametrize("part", ["/v1/", "/admin/"])
def test_nothing_that_the_description_allows_or_forbids_is_a_server_error(part: str, seed: int, tmp_path: Path) -> None:
    is_admin = part == "/admin/"
    door = Desk(tmp_path) if is_admin else Door()
    with listening(application(door.services())) as (door.port, _):
        door.lane.words = ["one"]
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{door.port}/openapi.json",
            "--include-path-regex", f"^{part}", "--phases", "examples,coverage,fuzzing",
            "--checks", "not_a_server_error", "--max-examples", str(count(100, short=2)), "--seed", str(seed),
            "--header", f"Authorization: Bearer {PLATFORM if is_admin else TOKEN}",
            "--suppress-health-check", "all", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=3000, check=False)
        assert done.returncode == 0, done.stdout[-50_000:] + done.stderr[-2_000:]
        statuses = Counter(record.status for record in door.watcher.ended)
        assert statuses.total() > 100
        assert not [status for status in statuses if status >= 500], statuses
        assert statuses[401] < statuses.total() / 2, "it was mostly not let in"
        assert door.ask("GET", "/health/ready", token=None).status == 200
    if isinstance(door, Desk):
        door.engine.dispose()
