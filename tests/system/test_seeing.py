"""What a running service shows: held apart from used, differences by name, secrets nowhere, metrics that add up."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.polling import until
from tests.system.programs import Service, SimulatedModel

pytestmark = pytest.mark.slow

HELLO: Any = [{"role": "user", "content": "Say something."}]
CANARY = "canary-51d7"
REQUESTS_MAX = 6
BOUND_S = 20.0


@pytest.fixture
def model(tmp_path: Path) -> Iterator[SimulatedModel]:
    simulated = SimulatedModel(tmp_path / "model", "--model", "m", "--decode", "40", "--tokens", "1000")
    simulated.start()
    yield simulated
    simulated.stop()


@pytest.fixture
def service(tmp_path: Path, model: SimulatedModel) -> Iterator[Service]:
    serving = Service(tmp_path / "service", model.url, limits=("1M tokens/day", f"{REQUESTS_MAX} requests/hour"))
    serving.start()
    yield serving
    if serving.process is not None and serving.process.poll() is None:
        assert serving.stop() == 0, serving.log.read_text()


def client(service: Service, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key or service.key, max_retries=0)


def metrics(service: Service) -> str:
    with urlopen(f"{service.running['operations_url']}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def total(exposed: str, sample: str, **labels: str) -> float:
    """The sum of the samples of this name that carry these labels."""
    families = text_string_to_metric_families(exposed)
    found = [each for family in families for each in family.samples if each.name == sample]
    return sum(each.value for each in found if labels.items() <= each.labels.items())


def usage(service: Service) -> dict[str, Any]:
    (acme,) = json.loads(service.command("usage", "acme", "--json"))["organisations"]
    return dict(acme)


def accepts(service: Service, key: str) -> bool:
    with client(service, key) as penstock:
        try:
            penstock.models.list()
        except openai.AuthenticationError:
            return False
        return True


def test_what_a_stream_holds_is_shown_apart_until_it_is_charged(service: Service) -> None:
    with client(service) as penstock:
        stream = penstock.chat.completions.create(model="m", messages=HELLO, max_tokens=1000, stream=True)
        chunks = iter(stream)
        next(chunks)
        during = usage(service)
        assert during["totals"]["completion_tokens"] == 0
        assert during["held"]["requests"] == 1
        assert during["held"]["tokens"] > 1000
        assert total(metrics(service), "penstock_in_flight_requests") == 1
        stream.close()
    until(lambda: usage(service)["held"] == {"requests": 0, "tokens": 0}, bound_s=BOUND_S)
    assert 0 < usage(service)["totals"]["completion_tokens"] < 1000


def test_a_ledger_that_somebody_changed_is_told_by_the_audit_of_the_running_service(service: Service) -> None:
    with client(service) as penstock:
        penstock.chat.completions.create(model="m", messages=HELLO, max_tokens=5)
    assert service.audited()["differences"] == []
    with closing(sqlite3.connect(service.data / "penstock.db")) as database, database:
        ((reservation,),) = database.execute("SELECT reservation FROM ledger WHERE kind = 'posted'").fetchall()
        database.execute("DROP TRIGGER ledger_no_update")
        database.execute("UPDATE ledger SET amounts = json_set(amounts, '$[1][2]', 1)")
    report = json.loads(service.command("audit", "--json", expect=1))
    assert report["source"] == "service"
    ((difference,),) = [each["differences"] for each in report["organisations"]]
    assert (difference["limit"], difference["expected"]) == ("acme/tokens/day", 1)
    assert difference["reservations"] == [reservation]
    assert reservation in service.command("audit", expect=1)


def test_metrics_and_ledger_say_the_same(service: Service) -> None:
    with client(service) as penstock:
        for _ in range(REQUESTS_MAX):
            penstock.chat.completions.create(model="m", messages=HELLO, max_tokens=5)
        with pytest.raises(openai.RateLimitError):
            penstock.chat.completions.create(model="m", messages=HELLO, max_tokens=5)
    totals = usage(service)["totals"]
    exposed = metrics(service)
    mine = {"organisation": "acme", "model": "m", "lane": "realtime"}
    used = "penstock_used_tokens_total"
    assert total(exposed, used, token_type="prompt", **mine) == totals["prompt_tokens"]
    assert total(exposed, used, token_type="completion", **mine) == totals["completion_tokens"] == 5 * REQUESTS_MAX
    assert total(exposed, "penstock_cost_usd_total", **mine) == totals["cost_nanos"] / 1e9
    assert total(exposed, "penstock_held_tokens_total", **mine) > totals["prompt_tokens"] + totals["completion_tokens"]
    assert total(exposed, "penstock_over_tokens_total", **mine) == 0
    assert total(exposed, "penstock_requests_total", outcome="ok", route="chat.completions") == REQUESTS_MAX
    assert total(exposed, "penstock_refusals_total", metric="requests", kind="window") == 1
    assert total(exposed, "penstock_upstream_healthy", model="m") == 1
    assert total(exposed, "penstock_group_commit_events_sum") >= REQUESTS_MAX
    assert total(exposed, "penstock_reserve_duration_seconds_count", route="chat.completions") == REQUESTS_MAX + 1
    assert total(exposed, "gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 5 * REQUESTS_MAX


def test_prompts_keys_and_made_up_names_are_in_no_log_and_no_metric(service: Service) -> None:
    said: Any = [{"role": "system", "content": CANARY}, {"role": "user", "content": [{"type": "text", "text": CANARY}]}]
    tools: Any = [{"type": "function", "function": {"name": "f", "description": CANARY}}]
    secret = service.key.split("_")[3]
    wrong = service.key.replace(secret, secret[::-1])
    with client(service) as penstock:
        headers = {"x-request-id": CANARY + "/not-an-id", "x-anything": CANARY}
        penstock.chat.completions.create(
            model="m", messages=said, tools=tools, max_tokens=3, user=CANARY, extra_headers=headers
        )
        for _ in penstock.chat.completions.create(model="m", messages=said, max_tokens=3, stream=True):
            pass
        with pytest.raises(openai.NotFoundError):
            penstock.chat.completions.create(model=CANARY, messages=said, max_tokens=3)
        with pytest.raises(openai.BadRequestError):
            penstock.chat.completions.create(model="m", messages=said, max_tokens=3, extra_body={"api_base": CANARY})
        with pytest.raises(openai.NotFoundError):
            penstock.get(f"/{CANARY}", cast_to=object)
        for _ in range(REQUESTS_MAX - 2):
            penstock.embeddings.create(model="m", input=[CANARY])
        with pytest.raises(openai.RateLimitError):
            penstock.completions.create(model="m", prompt=CANARY, max_tokens=3)
    for key in (wrong, f"psk_{CANARY}_k_{secret}", f"Bearer {CANARY}"):
        assert not accepts(service, key)
    exposed = metrics(service)
    first_key = service.key
    service.stop()
    log = service.log.read_text().replace(f"OPENAI_API_KEY={first_key}", "")
    lines = [json.loads(line) for line in log.splitlines() if '"event":"request"' in line]
    assert len(lines) == REQUESTS_MAX + 7
    for canary in (CANARY, secret, secret[::-1]):
        assert canary not in exposed
        assert canary not in log


def test_both_secrets_of_a_rotated_key_work_until_the_grace_period_ends(service: Service) -> None:
    first = service.key
    key_id = first.split("_")[2]
    second = service.command("keys", "rotate", "acme", key_id).strip()
    until(lambda: accepts(service, second), bound_s=BOUND_S)
    assert accepts(service, first)
    third = service.command("keys", "rotate", "acme", key_id, "--grace", "0s").strip()
    until(lambda: accepts(service, third), bound_s=BOUND_S)
    assert not accepts(service, first)
    assert not accepts(service, second)
