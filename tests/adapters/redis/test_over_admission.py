"""However many processes ask at once, and however they end, not one token more is admitted than there is.

Each run is a crowd of processes on one real Redis: see ``tests.adapters.redis.crowd``. Checked is every instant, since
a replica sees each write; and the same crowd, with a check before an increment instead, is seen to admit too much.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.counts import count

ROOT = Path(__file__).parents[3]
BOUND_S = count(7_200, short=240)

pytestmark = [pytest.mark.slow, pytest.mark.torture, pytest.mark.timeout(BOUND_S)]


def crowd(seed: int, *options: object) -> dict[str, Any]:
    """The figures of one run, which appear beside a failure and in the report of ``pytest -rP``."""
    words = [sys.executable, "-m", "tests.adapters.redis.crowd", "--seed", str(seed % 1_000_000), *map(str, options)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    sys.stdout.write(f"{' '.join(words[1:])}\n{ended.stdout}{ended.stderr[-3000:]}")
    assert ended.returncode == 0, ended.stderr
    figures: dict[str, Any] = json.loads(ended.stdout)
    return figures


def test_not_one_token_is_admitted_over_a_limit_and_all_accounts_agree(seed: int) -> None:
    attempts = count(1_000_000, short=8_000)
    found = crowd(
        seed, "--processes", count(64, short=16), "--attempts", attempts, "--kills", count(400, short=8)
    )  # fmt: skip
    assert found["over"] == {}
    assert found["faults"] == []
    assert (found["held at the end"], found["open at the end"]) == (0, 0)
    assert found["events drained"] == found["events written"] > attempts / 8
    assert found["sums differ"] == 0
    assert found["ledger and clients differ"] == []
    assert found["attempts"] >= attempts
    assert found["instants observed"] > attempts
    assert sum(share >= 950 for share in found["fullest, per mille"].values()) >= 4, "limits were fought over"
    assert {"Settle Settled late", "Settle Duplicate posted", "Void Done", "Extend Extended"} <= set(found["answers"])


def test_the_same_crowd_finds_what_checking_before_incrementing_admits(seed: int) -> None:
    found = crowd(seed, "--processes", 16, "--attempts", 2_000, "--kills", 4, "--careless")
    assert sum(found["over"].values()) > 0
