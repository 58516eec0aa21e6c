"""``penstock serve`` as its users meet it: the official ``openai`` client, a shared budget, a kill, a restart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai
import pytest

from tests.polling import until
from tests.system.programs import Service, SimulatedModel

pytestmark = pytest.mark.slow

Messages = list[dict[str, Any]]
HELLO: Any = [{"role": "user", "content": "Say something."}]
BOUND_S = 20.0


@pytest.fixture
def model(tmp_path: Path) -> Iterator[SimulatedModel]:
    simulated = SimulatedModel(tmp_path / "model", "--model", "m")
    simulated.start()
    yield simulated
    simulated.stop()


@pytest.fixture
def serving(tmp_path: Path, model: SimulatedModel) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def serve(**settings: Any) -> Service:
        service = Service(tmp_path / f"service-{len(started)}", settings.pop("url", model.url), **settings)
        started.append(service)
        service.start()
        return service

    yield serve
    for service in started:
        if service.process is not None and service.process.poll() is None:
            assert service.stop() == 0, service.log.read_text()
            assert service.audited()["holds"] == 0


def client(service: Service, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key or service.key, max_retries=0)


def billed(service: Service) -> dict[str, int]:
    (acme,) = json.loads(service.command("usage", "acme", "--json"))["organisations"]
    return dict(acme["totals"])


def ledger_tokens(service: Service) -> int:
    return billed(service)["prompt_tokens"] + billed(service)["completion_tokens"]


def produced_tokens(model: SimulatedModel) -> int:
    return sum(line["prompt"] + line["completion"] for line in model.produced())


def test_the_openai_client_chats_streams_embeds_and_lists(
    model: SimulatedModel, serving: Callable[..., Service]
) -> None:
    service = serving(limits=("1M tokens/minute", "1M tokens/day", "10 usd/month", "64 concurrent"))
    with client(service) as penstock:
        chat = penstock.chat.completions.create(model="m", messages=HELLO, max_tokens=10)
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 10
        stream = penstock.chat.completions.create(
            model="m", messages=HELLO, max_tokens=7, stream=True, stream_options={"include_usage": True}
        )
        *_, last = stream
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.completion_tokens == 7
        text = penstock.completions.create(model="m", prompt="Once", max_tokens=3)
        embedded = penstock.embeddings.create(model="m", input=["one", "two"])
        assert len(embedded.data) == 2
        assert [each.id for each in penstock.models.list()] == ["m"]
    assert text.usage is not None
    used = chat.usage.total_tokens + last.usage.total_tokens + text.usage.total_tokens + embedded.usage.total_tokens
    assert ledger_tokens(service) == used == produced_tokens(model)


def test_an_abort_in_mid_stream_stops_the_model_and_charges_what_was_produced(
    tmp_path: Path, serving: Callable[..., Service]
) -> None:
    slow = SimulatedModel(tmp_path / "slow", "--model", "m", "--decode", "50")
    slow.start()
    try:
        service = serving(url=slow.url, limits=("1M tokens/day",))
        with client(service) as penstock:
            stream = penstock.chat.completions.create(model="m", messages=HELLO, max_tokens=2000, stream=True)
            for _, chunk in zip(range(6), stream, strict=False):
                assert chunk.choices
            stream.close()
        assert service.stop() == 0  # waits until it is settled
        assert "stopping: running requests have 30 s to end" in service.log.read_text()
        (line,) = slow.produced()
        assert line["outcome"] == "aborted"
        assert 5 <= line["completion"] < 200
        assert 5 <= billed(service)["completion_tokens"] <= line["completion"]
    finally:
        slow.stop()


def test_64_threads_against_one_budget_admit_not_one_token_over(
    model: SimulatedModel, serving: Callable[..., Service]
) -> None:
    budget = 100_000
    service = serving(limits=(f"{budget} tokens/month",), model="context: 4096, template_tokens: 0")

    def spend(number: int) -> int:
        """Ask until the budget itself is used up; a refusal for want of holds is only a wait."""
        spent = 0
        for _ in range(10_000):
            try:
                answer = penstock.chat.completions.create(model="m", messages=HELLO, max_tokens=900 + number)
            except openai.RateLimitError as refused:
                if refused.code == "insufficient_quota":
                    return spent
            else:
                assert answer.usage is not None
                spent += answer.usage.total_tokens
        raise AssertionError("the budget was never used up")

    with client(service) as penstock, ThreadPoolExecutor(64) as threads:
        admitted = sum(threads.map(spend, range(64)))
    assert budget - 1_100 < admitted <= budget
    assert ledger_tokens(service) == admitted == produced_tokens(model)


def test_a_revoked_key_is_refused_within_a_second_or_two(serving: Callable[..., Service]) -> None:
    service = serving()
    token = service.command("keys", "create", "acme", "--name", "short-lived").strip()
    with client(service, token) as penstock:
        until(lambda: not is_refused(penstock), bound_s=BOUND_S)
        service.command("keys", "revoke", "acme", token.split("_")[2])
        until(lambda: is_refused(penstock), bound_s=BOUND_S)


def is_refused(penstock: openai.OpenAI) -> bool:
    try:
        penstock.chat.completions.create(model="m", messages=HELLO, max_tokens=1)
    except openai.AuthenticationError:
        return True
    return False


def test_killed_under_load_it_comes_back_with_counters_that_equal_the_ledger(
    model: SimulatedModel, serving: Callable[..., Service]
) -> None:
    service = serving(limits=("1M tokens/day", "100 concurrent"))
    key, acknowledged = service.key, []
    with client(service) as penstock, ThreadPoolExecutor(8) as threads:

        def attempt(_: int) -> None:
            try:
                answer = penstock.chat.completions.create(model="m", messages=HELLO, max_tokens=20)
            except (openai.APIConnectionError, openai.InternalServerError):
                return
            assert answer.usage is not None
            acknowledged.append(answer.usage.total_tokens)
            if len(acknowledged) == 100:
                service.kill()

        list(threads.map(attempt, range(300)))
    assert len(acknowledged) >= 100
    service.start()
    audited = service.audited()
    (day,) = [each for each in audited["limits"] if each["limit"] == "acme/tokens/day"]
    assert day["used"] == ledger_tokens(service) >= sum(acknowledged)
    assert day["held"] == audited["tokens_held"]
    with client(service, key) as penstock:
        assert penstock.models.list().data
    service.stop()  # what the kill left open is held until its lease ends
    service.audited()


def test_health_metrics_and_log_tell_of_a_request_and_repeat_no_prompt_and_no_key(
    serving: Callable[..., Service],
) -> None:
    service = serving(limits=("1M tokens/day",))
    canary = "canary-7f3a"
    with client(service) as penstock:
        penstock.chat.completions.create(model="m", messages=[{"role": "user", "content": canary}], max_tokens=5)
    operations = service.running["operations_url"]
    with urlopen(f"{operations}/metrics", timeout=10) as answer:
        exposed = answer.read().decode()
    with urlopen(f"{operations}/health/ready", timeout=10) as answer:
        assert json.load(answer)["ready"]
    assert "penstock_requests_total{" in exposed
    key = service.key
    service.stop()
    (line,) = [json.loads(each) for each in service.log.read_text().splitlines() if '"chat.completions"' in each]
    assert (line["status"], line["model"], line["completion_tokens"]) == (200, "m", 5)
    log = service.log.read_text().replace(f"OPENAI_API_KEY={key}", "")
    database = b"".join(path.read_bytes() for path in service.data.iterdir() if path.is_file())
    for secret in (canary, key, key.split("_")[3]):
        assert secret not in exposed + log
        assert secret.encode() not in database


def test_a_second_service_on_the_same_data_is_refused_with_the_fix(serving: Callable[..., Service]) -> None:
    service = serving()
    assert service.process is not None
    (told,) = service.refused("serve", "--port", "0", "--operations-port", "0").splitlines()
    assert f"another penstock (process {service.process.pid}) already serves the database" in told
    assert told.endswith("stop it, or give this one a directory of its own with --data")


def test_a_taken_port_is_refused_in_one_line_before_anything_is_started(
    tmp_path: Path, serving: Callable[..., Service]
) -> None:
    service = serving()
    elsewhere = tmp_path / "elsewhere"
    for option, other in (("--port", "--operations-port"), ("--operations-port", "--port")):
        taken = service.running["url" if option == "--port" else "operations_url"].rpartition(":")[2]
        (told,) = service.refused("serve", option, taken, other, "0", "--data", str(elsewhere)).splitlines()
        assert told == (
            f"penstock: server.{option[2:].replace('-', '_')}: cannot listen on 127.0.0.1:{taken}: "
            "Address already in use; stop what listens there, or choose another port"
        )
    assert not (elsewhere / "penstock.db").exists()
