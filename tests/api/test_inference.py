"""The hot path as clients meet it: over a socket, and with the official client."""

from __future__ import annotations

import asyncio

import openai
import pytest

from penstock.errors import (
    PenstockError,
    StoreUnavailable,
    UpstreamBroken,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from penstock.quota.definitions import Kind, Metric
from tests.api.door import (
    NARROW_TOKEN,
    OLD_TOKEN,
    TOKEN,
    WRONG_TOKENS,
    Door,
    ModelStore,
    a_limit,
    chat_body,
    failing,
    open_door,
)


@pytest.fixture
def client(door: Door) -> openai.OpenAI:
    """The official client, which never retries here."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{door.port}/v1", api_key=TOKEN, max_retries=0)


def test_official_client_chats(client: openai.OpenAI) -> None:
    with client:
        answer = client.chat.completions.create(model="chat-small", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "one two three"


def test_official_client_streams_to_the_end(client: openai.OpenAI) -> None:
    with (
        client,
        client.chat.completions.create(
            model="chat-small", messages=[{"role": "user", "content": "hi"}], stream=True
        ) as stream,
    ):
        assert [chunk.choices[0].delta.content for chunk in stream] == ["one ", "two ", "three"]


def test_official_client_completes_a_text(client: openai.OpenAI) -> None:
    with client:
        answer = client.completions.create(model="chat-small", prompt=["a", "b"], max_tokens=5)
    assert answer.choices[0].text == "one two three"


def test_official_client_embeds_a_list(client: openai.OpenAI) -> None:
    with client:
        answer = client.embeddings.create(model="chat-small", input=["a", "b"], encoding_format="float")
    assert [row.index for row in answer.data] == [0, 1]


def test_official_client_lists_and_gets_models_with_slashes(client: openai.OpenAI) -> None:
    with client:
        assert [model.id for model in client.models.list()] == ["chat-small", "meta-llama/Llama-3.1-8B-Instruct"]
        assert client.models.retrieve("meta-llama/Llama-3.1-8B-Instruct").id == "meta-llama/Llama-3.1-8B-Instruct"


def test_official_client_sees_a_spent_budget_as_one_not_to_retry() -> None:
    spent = ModelStore(
        (a_limit(Metric.TOKENS, Kind.WINDOW, 250), a_limit(Metric.REQUESTS, Kind.STRICT_RATE, 9, 60_000))
    )
    with open_door(Door(store=spent)) as door:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{door.port}/v1", api_key=TOKEN, max_retries=3)
        with client:
            for _ in range(5):
                client.completions.create(model="chat-small", prompt="hi", max_tokens=10)
            with pytest.raises(openai.RateLimitError) as refused:
                client.completions.create(model="chat-small", prompt="hi", max_tokens=100)
        assert refused.value.code == "insufficient_quota"
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert len(door.lane.seen) == 6


def test_a_chat_answer_carries_every_rate_header(door: Door) -> None:
    answer = door.chat()
    assert answer.status == 200
    headers = answer.headers
    assert headers["x-ratelimit-limit-requests"] == "600"
    assert headers["x-ratelimit-remaining-requests"] == "599"
    assert headers["x-ratelimit-reset-requests"] == "100ms"
    assert headers["x-ratelimit-limit-tokens"] == "200000"
    assert 199_000 < int(headers["x-ratelimit-remaining-tokens"]) < 200_000
    assert headers["x-ratelimit-reset-tokens"].endswith("ms")
    assert headers["ratelimit-policy"] == '"rpm";q=600;w=60, "tpm";q=200000;w=60'
    assert headers["ratelimit"].startswith('"rpm";r=599;t=1, "tpm";r=199')
    assert len(headers["x-request-id"]) == 32
    assert "server" not in headers


def test_a_streamed_answer_carries_the_same_headers(door: Door) -> None:
    answer = door.chat(stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-ratelimit-remaining-requests"] == "599"
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("asked", ["mine-1_A", "x" * 64])
def test_a_harmless_request_id_is_kept(door: Door, asked: str) -> None:
    answer = door.ask("POST", "/v1/chat/completions", chat_body(), headers=(("x-request-id", asked),))
    assert answer.headers["x-request-id"] == asked == door.watcher.last().request_id


@pytest.mark.parametrize("asked", ["", "x" * 65, "a b", "a\tb", "{}", "\x80"])
def test_any_other_request_id_is_replaced(door: Door, asked: str) -> None:
    answer = door.ask("POST", "/v1/chat/completions", chat_body(), headers=(("x-request-id", asked),))
    assert answer.headers["x-request-id"] != asked
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("why", WRONG_TOKENS)
def test_every_bad_key_gets_one_and_the_same_answer(door: Door, why: str) -> None:
    wrong = door.ask("POST", "/v1/chat/completions", chat_body(), token=WRONG_TOKENS[why])
    missing = door.ask("POST", "/v1/chat/completions", chat_body(), token=None)
    assert wrong.status == missing.status == 401
    assert wrong.body == missing.body
    ignored = {"x-request-id", "date"}
    assert {name: value for name, value in wrong.headers.items() if name not in ignored} == {
        name: value for name, value in missing.headers.items() if name not in ignored
    }
    assert wrong.headers["www-authenticate"] == "Bearer"
    assert door.watcher.last(2).outcome == "unauthenticated"


def test_a_key_minted_under_the_older_pepper_still_passes(door: Door) -> None:
    assert door.ask("POST", "/v1/chat/completions", chat_body(), token=OLD_TOKEN).status == 200


def test_a_key_outside_its_scope_is_forbidden(door: Door) -> None:
    answer = door.ask("POST", "/v1/embeddings", {"model": "chat-small", "input": "a"}, token=NARROW_TOKEN)
    assert (answer.status, answer.error()["code"]) == (403, "insufficient_permissions")


def test_an_emptied_rate_is_throttled_with_its_wait() -> None:
    store = ModelStore((a_limit(Metric.REQUESTS, Kind.STRICT_RATE, 1, 60_000),))
    with open_door(Door(store=store)) as door:
        assert door.chat().status == 200
        answer = door.chat()
    assert answer.status == 429
    assert (answer.error()["type"], answer.error()["code"]) == ("requests", "rate_limit_exceeded")
    assert answer.headers["retry-after-ms"] == "60000"
    assert answer.headers["retry-after"] == "60"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in answer.headers
    assert door.watcher.last().outcome == "denied"


def test_a_budget_that_is_only_held_is_throttled_for_one_second() -> None:
    store = ModelStore((a_limit(Metric.TOKENS, Kind.WINDOW, 400),))
    with open_door(Door(store=store)) as door:
        door.chat(max_tokens=100)
        asyncio.run(door.lane.reserve(door.lane.seen[0]))
        answer = door.chat(max_tokens=100)
    assert answer.status == 429
    assert answer.error()["code"] == "rate_limit_exceeded"
    assert answer.headers["retry-after-ms"] == "1000"
    assert answer.headers["retry-after"] == "1"


def test_what_never_fits_is_a_400(door: Door) -> None:
    store = ModelStore((a_limit(Metric.TOKENS, Kind.WINDOW, 50),))
    with open_door(Door(store=store)) as small:
        answer = small.chat()
    assert (answer.status, answer.error()["code"]) == (400, "larger_than_limit")
    assert "retry-after" not in answer.headers


FAULTS: list[tuple[PenstockError, int, str, str | None]] = [
    (StoreUnavailable("no answer", retry_after_ms=1500), 503, "quota_unavailable", "2"),
    (UpstreamUnreachable("refused"), 502, "upstream_error", None),
    (UpstreamBroken("broke off"), 502, "upstream_error", None),
    (UpstreamTimeout("slow", phase="first_byte"), 504, "upstream_timeout", None),
    (UpstreamError("it failed", status=500, body=b"stack trace"), 502, "upstream_error", None),
    (UpstreamError("our key is wrong", status=401, body=b"{}"), 502, "upstream_error", None),
    (UpstreamError("busy", status=429, retry_after_ms=2100), 503, "upstream_overloaded", "3"),
    (UpstreamError("busy", status=503), 503, "upstream_overloaded", "1"),
]


@pytest.mark.parametrize(("fault", "status", "code", "retry_after"), FAULTS)
def test_each_fault_has_its_status_and_still_shows_the_limits(
    fault: PenstockError, status: int, code: str, retry_after: str | None
) -> None:
    with open_door(failing(fault)) as door:
        answer = door.chat()
    assert (answer.status, answer.error()["code"]) == (status, code)
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers["x-ratelimit-remaining-requests"] == "599"
    assert b"stack trace" not in answer.body


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_the_model_servers_refusal_is_passed_on_in_its_words_and_our_shape(status: int) -> None:
    said = b'{"object":"error","message":"this model has no tools","code":400,"secret":"x"}'
    with open_door(failing(UpstreamError("refused", status=status, body=said))) as door:
        answer = door.chat()
    assert answer.status == status
    assert answer.error() == {
        "message": "this model has no tools",
        "type": "invalid_request_error",
        "param": None,
        "code": "upstream_refused",
    }
    assert door.watcher.last().outcome == "upstream_refused"


def test_a_bug_is_one_500_without_its_text_and_the_service_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    door = Door()
    door.lane.fault = ZeroDivisionError("a secret of ours")
    with open_door(door):
        answer = door.chat()
        door.lane.fault = None
        assert door.chat().status == 200
    assert answer.status == 500
    assert answer.headers["x-request-id"] in answer.body.decode() or "x-request-id" in answer.body.decode()
    assert b"secret of ours" not in answer.body
    assert answer.headers["x-request-id"] in caplog.text
    assert door.watcher.ended[0].outcome == "error"


def test_a_store_that_is_down_is_a_503_never_a_429(door: Door) -> None:
    door.store.is_down = True
    answer = door.chat()
    assert answer.status == 503
    assert answer.headers["retry-after-ms"] == "1500"


def test_the_record_of_a_request_says_what_happened(door: Door) -> None:
    door.chat(stream=True)
    record = door.watcher.last()
    assert (record.organisation, record.key, record.model) == ("acme", "k1", "chat-small")
    assert (record.route, record.stream, record.status, record.outcome) == ("chat.completions", True, 200, "ok")
    assert record.total_ms > 0


def test_every_request_is_observed_once_from_start_to_end(door: Door) -> None:
    door.chat()
    door.chat(stream=True)
    door.chat(n="two")
    door.ask("GET", "/v1/chat/completions")
    door.ask("POST", "/v1/chat/completions", b"{")
    door.ask("GET", "/v1/models")
    door.ask("GET", "/nowhere")
    door.watcher.last(7)
    assert [id(record) for record in door.watcher.begun] == [id(record) for record in door.watcher.ended]
    assert [record.status for record in door.watcher.ended] == [200, 200, 400, 405, 400, 200, 404]


def test_the_lane_is_given_what_accounting_needs(door: Door) -> None:
    door.ask("POST", "/v1/completions", {"model": "chat-small", "prompt": ["a", "b"], "n": 2, "best_of": 3})
    request = door.lane.seen[0]
    assert (request.prompts, request.outputs, request.max_tokens) == (2, 6, None)
    assert request.body_bytes == len(b'{"model": "chat-small", "prompt": ["a", "b"], "n": 2, "best_of": 3}')


def test_an_image_reserves_the_whole_context(door: Door) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert door.chat(messages=[{"role": "user", "content": [image]}]).status == 200
    assert door.lane.seen[0].body_bytes == 2**31 - 1
