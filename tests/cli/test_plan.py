"""``penstock plan``: a load in, a table, a picture, a page or JSON out, the same for the same seed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome, Run
from tests.cli.test_usage import NOVEMBER_1_MS, Charged, charged

__all__ = ["charged"]

SIZED = """
models:
  chat-small:
    capacity: {tokens_per_second: 20k, concurrency: 64, cold_start: 20s}
    objective: {drain: 2m}
    replicas: {min: 0, max: 8}
"""
SMALL = ("--load", "bursts", "--requests", "600", "--rate", "3", "--every", "2m")


Planned = Callable[..., Outcome]


@pytest.fixture
def plan(run: Run, tmp_path: Path) -> Planned:
    """Runs ``penstock plan`` with a ``chat-small`` that says its capacity."""
    sized = tmp_path / "sized.yaml"
    sized.write_text(SIZED)
    return lambda *arguments: run("plan", *arguments, "--config", str(sized))


def told(outcome: Outcome) -> Any:
    assert outcome.code == 0, outcome
    return json.loads(outcome.out)


def test_a_made_up_load_is_compared_and_one_setting_recommended(plan: Planned) -> None:
    found = told(plan(*SMALL, "--json"))
    names = [each["name"] for each in found["settings"]]
    assert names[:2] == ["as configured", "by tokens alone"]
    assert {each["requests"] for each in found["settings"]} == {600}
    kept = [each for each in found["settings"] if each["objective_is_kept"]]
    assert found["recommended"] == min(kept, key=lambda each: each["cost_usd"])["name"]
    for each in found["settings"]:
        assert each["done_s"]["p50"] <= each["done_s"]["p95"] <= each["done_s"]["p99"]
        assert each["cost_usd"] == pytest.approx(2 * each["gpu_hours"], rel=1e-3)


def test_the_same_seed_says_the_same_and_another_does_not(plan: Planned) -> None:
    once, again, other = (plan(*SMALL, "--json", "--seed", seed).out for seed in ("1", "1", "2"))
    assert once == again != other


def test_people_get_a_table_the_reasons_and_what_to_write(plan: Planned) -> None:
    out = plan(*SMALL).out
    assert "600 requests in" in out
    assert re.search(r"> .*kept", out)
    assert "Recommended: " in out
    assert re.search(r"models.chat-small.replicas: {min: \d, max: \d}", out)


def test_the_shipped_trace_is_used_where_nothing_is_said(plan: Planned) -> None:
    out = plan("--setting", "warm: min=8").out
    assert "500 requests in 129 s, 600,220 tokens, from the shipped trace" in out


def test_settings_of_ones_own_are_compared_with_what_is_configured(plan: Planned) -> None:
    found = told(
        plan(
            *SMALL,
            "--json",
            "--setting",
            "q: max=4 polling=5s cooldown=1m window=90s by=queue",
            "--setting",
            "f: min=3 max=3 by=none",
        )
    )
    own, quick, fixed = found["settings"]
    assert (own["replicas_min"], own["replicas_max"], own["triggers"]) == (0, 8, ["queue", "tokens"])
    assert (quick["replicas_max"], quick["triggers"]) == (4, ["queue"])
    assert (quick["polling_s"], quick["cooldown_s"], quick["window_s"]) == (5, 60, 90)
    assert (fixed["replicas_mean"], fixed["replicas_most"]) == (3, 3)


def test_the_ledgers_history_is_replayed(plan: Planned, charged: Charged) -> None:
    for number in range(40):
        charged(NOVEMBER_1_MS + number * 1_000)
    charged(NOVEMBER_1_MS, lane="queue")
    charged(NOVEMBER_1_MS, model="embed-small")
    arguments = ("--history", "--lane", "realtime", "--within", "1m", "--setting", "warm: min=2", "--json")
    assert told(plan(*arguments))["requests"] == 40
    assert told(plan(*arguments, "--to", "2025-11-01T00:00:10"))["requests"] == 10
    assert told(plan(*arguments, "--repeat", "3"))["tokens"] == 40 * 120 * 3


def test_the_page_needs_nothing_else_and_names_every_setting(plan: Planned, tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    assert plan(*SMALL, "--html", str(file), "--setting", "<b>: min=1").code == 0
    text = file.read_text()
    assert not re.search(r"<script|<link|https?://|src=", text)
    assert "&lt;b&gt;" in text
    assert "<b>:" not in text
    assert text.count("<svg") == 2


@pytest.mark.slow
def test_the_picture_is_drawn(plan: Planned, tmp_path: Path) -> None:
    file = tmp_path / "plan.png"
    assert plan(*SMALL, "--png", str(file)).code == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_an_objective_that_nothing_keeps_ends_with_1_and_says_what_is_missing(plan: Planned) -> None:
    ended = plan(*SMALL, "--within", "1ms")
    assert ended.code == 1
    assert "no number of replicas keeps it" in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "chat-smal"), "chat-small"),
        (("--model", "embed-small"), "does not say its `capacity`"),
        (("--history",), "there is no ledger"),
        (("--history", "--load", "poisson"), "give one of them"),
        (("--from", "2025-11-01"), "add --history"),
        (("nowhere.csv",), "nowhere.csv"),
        (("--within", "soon"), "--within: "),
        (("--load", "diurnal", "--peak", "3"), "--peak"),
        (("--setting", "min=1"), "a name, a colon"),
        (("--setting", "x: mni=1"), "min"),
        (("--setting", "x: min=9"), "min <= max"),
        (("--setting", "x: by=luck"), "queue, tokens, queue+tokens, none"),
        (("--setting", "x: by=none"), "fixed"),
        (("--setting", "x: polling=fast"), "x: polling"),
        (("--repeat", "100000000"), "repeat less often"),
        (("--html", "nowhere/plan.html"), "name another file"),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(plan: Planned, arguments: Sequence[str], said: str) -> None:
    ended = plan(*arguments)
    assert (ended.code, said in ended.err) == (1, True), ended
