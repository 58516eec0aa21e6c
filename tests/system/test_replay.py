"""``penstock replay`` as it is run by hand: whole services, real HTTP, and a verdict that can be "they differ"."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.system.programs import Service, SimulatedModel

pytestmark = pytest.mark.slow

RUN_S = 300
README = Path(__file__).parents[2] / "README.md"


def replay(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock", "replay", *map(str, arguments)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=RUN_S, check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip


def readme_lines() -> list[str]:
    """What README shows of the report, but for the numbers: admissions depend on how fast the machine is."""
    shown = README.read_text().split("$ .venv/bin/penstock replay\n")[1].split("```")[0]
    kept = [re.sub(r" +", " ", line) for line in shown.splitlines() if re.match(r"[a-z]+ [a-z ]+|difference", line)]
    lines = [line for line in kept if not re.search(r" \d", line) or line.startswith("difference")]
    assert len(lines) == 6, lines
    return lines


def test_the_shipped_trace_is_billed_to_the_token_and_small_plans_meet_their_limits() -> None:
    done = replay()
    assert done.returncode == 0, done.stderr
    assert "difference between ledger and model server, request by request: 0 tokens, $0.00" in done.stdout
    assert "difference between ledger and what clients were told: 0 tokens" in done.stdout
    together = re.search(r"^together +500 +(\d+) +(\d+) +0 ", done.stdout, re.MULTILINE)
    assert together is not None, done.stdout
    admitted, refused = map(int, together.groups())
    assert admitted + refused == 500
    assert int(re.findall(r"^foundry/requests/minute +(\d+)$", done.stdout, re.MULTILINE)[0]) > 0
    for line in readme_lines():
        assert line in re.sub(r" +", " ", done.stdout), f"README shows another report: {line}"
    for side in ("ledger", "model server", "clients were told"):
        assert re.search(rf"^{side} +{admitted} ", done.stdout, re.MULTILINE), done.stdout


def test_jobs_are_billed_to_the_token_as_well() -> None:
    done = replay("--lane", "queue", "--requests", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "difference between ledger and model server, request by request: 0 tokens, $0.00" in done.stdout
    assert re.search(r"^together +60 +60 +0 +0 ", done.stdout, re.MULTILINE)


def test_a_model_log_that_lacks_requests_is_a_difference_and_exit_code_1(tmp_path: Path) -> None:
    model = SimulatedModel(tmp_path / "model", "--model", "m")
    model.start()
    service = Service(tmp_path / "service", model.url, limits=("100M tokens/day",), model="context: 16384")
    service.start()
    try:
        keys, incomplete = tmp_path / "keys.yaml", tmp_path / "incomplete.jsonl"
        keys.write_text(yaml.safe_dump({"acme": service.key}))
        incomplete.touch()
        against = ("--url", service.url, "--keys", keys, "--data", service.data, "--model", "m", "--requests", "5")
        done = replay(*against, "--model-log", incomplete)
        assert done.returncode == 1, done.stdout
        (tokens,) = re.findall(r"request by request: ([\d,]+) tokens", done.stdout)
        assert int(tokens.replace(",", "")) == sum(each["prompt"] + each["completion"] for each in model.produced())
        assert len(re.findall(r"^  differs: ", done.stdout, re.MULTILINE)) == 5
        agreed = replay(*against, "--model-log", model.produced_log)
        assert agreed.returncode == 0, agreed.stdout
    finally:
        service.stop()
        model.stop()


@pytest.mark.local_model
def test_questions_to_the_real_model_are_billed_as_its_own_tokenizer_counts() -> None:
    done = replay("--local", "8", "--concurrency", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "difference between ledger and model server, of the sums: 0 tokens" in done.stdout
    assert "prompts that the model's own tokenizer counts differently: 0 of 8" in done.stdout
