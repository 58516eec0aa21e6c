"""The official client gets along with the simulated model, and what it produced is what it says it produced."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest

from penstock.adapters.simulated_model import counting
from tests import polling
from tests.adapters.simulated_model.conftest import START_S, Simulated

Simulate = Callable[..., Simulated]
until = partial(polling.until, bound_s=START_S)
PROMPT: list[Any] = [{"role": "user", "content": "How deep is the lake?"}]  # 21 bytes: 6 tokens, and 1 for the message


def client(simulated: Simulated) -> openai.OpenAI:
    return openai.OpenAI(base_url=simulated.url + "/v1", api_key="none", max_retries=0)


def test_a_chat_reports_the_tokens_that_the_rule_counts(simulated: Simulated) -> None:
    with client(simulated) as official:
        answer = official.chat.completions.create(model="chat", messages=PROMPT, max_tokens=9)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 9, 16)
    text = answer.choices[0].message.content
    assert text is not None
    assert counting.text_tokens(text) == 9
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_hands_over_one_token_in_each_chunk_and_the_usage_last(simulated: Simulated) -> None:
    with client(simulated) as official:
        events = list(
            official.chat.completions.create(
                model="chat",
                messages=PROMPT,
                stream=True,
                stream_options={"include_usage": True},
                metadata={"simulate": "tokens=5 cached_tokens=3"},
            )
        )
    words = [event.choices[0].delta.content for event in events if event.choices and event.choices[0].delta.content]
    assert words == [counting.word(index) for index in range(5)]
    assert [event.usage for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 5
    assert events[-1].usage.prompt_tokens_details is not None
    assert events[-1].usage.prompt_tokens_details.cached_tokens == 3


def test_usage_runs_in_every_chunk_on_demand(simulated: Simulated) -> None:
    with client(simulated) as official:
        events = list(
            official.completions.create(
                model="chat",
                prompt="four",
                max_tokens=3,
                stream=True,
                extra_body={"stream_options": {"continuous_usage_stats": True}},
            )
        )
    assert [event.usage.completion_tokens for event in events if event.usage] == [1, 2, 3, 3]


def test_several_outputs_are_all_produced_and_counted(simulated: Simulated) -> None:
    with client(simulated) as official:
        answer = official.completions.create(model="chat", prompt=["a", "b"], n=3, max_tokens=4)
        events = list(official.chat.completions.create(model="chat", messages=PROMPT, n=2, max_tokens=4, stream=True))
    assert len(answer.choices) == 6
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert sum(bool(event.choices[0].delta.content) for event in events) == 8
    assert [line["completion"] for line in simulated.lines()] == [24, 8]


def test_embeddings_come_as_floats_and_as_base64_alike(simulated: Simulated) -> None:
    with client(simulated) as official:
        decoded = official.embeddings.create(model="chat", input=["one", "two tokens"])
        floats = official.embeddings.create(model="chat", input=["one", "two tokens"], encoding_format="float")
    assert decoded.usage.prompt_tokens == 1 + 3
    for one, other in zip(decoded.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)
    assert decoded.data[0].embedding != decoded.data[1].embedding
    assert simulated.lines()[0] == {
        "request_id": "", "route": "embeddings", "model": "chat",
        "prompt": 4, "cached": 0, "completion": 0, "outcome": "finished",
    }  # fmt: skip


def test_token_lists_count_by_their_length(simulated: Simulated) -> None:
    assert simulated.post("/v1/embeddings", {"model": "chat", "input": [[1, 2, 3], [4]]})[1]["usage"] == {
        "prompt_tokens": 4, "total_tokens": 4,
    }  # fmt: skip


@pytest.mark.parametrize("body", [{"prompt": "twelve bytes"}, {"content": "twelve bytes"}])
def test_tokenize_counts_like_a_completion_in_both_dialects(simulated: Simulated, body: dict[str, str]) -> None:
    status, counted = simulated.post("/tokenize", {"model": "chat", **body})
    assert (status, counted["count"], len(counted["tokens"])) == (200, 3, 3)


def test_the_log_names_the_request_as_its_caller_did(simulated: Simulated) -> None:
    body = {"model": "chat", "messages": PROMPT, "metadata": {"simulate": "tokens=2 prompt_tokens=50"}}
    simulated.post("/v1/chat/completions", body, {"x-request-id": "r-1"})
    assert simulated.lines() == [
        {"request_id": "r-1", "route": "chat.completions", "model": "chat",
         "prompt": 50, "cached": 0, "completion": 2, "outcome": "finished"}
    ]  # fmt: skip


def test_totals_are_the_sum_of_the_log(simulated: Simulated) -> None:
    for tokens in (1, 2, 3):
        simulated.post("/v1/completions", {"model": "chat", "prompt": "four", "max_tokens": tokens})
    totals = json.loads(simulated.get("/log"))["models"]["chat"]
    assert (totals["requests"], totals["prompt"], totals["completion"]) == (3, 3, 6)
    assert 'vllm:generation_tokens_total{model_name="chat"} 6' in simulated.get("/metrics")


def test_a_caller_that_leaves_mid_stream_is_logged_with_what_was_produced(simulate: Simulate) -> None:
    simulated = simulate(decode=200)
    with client(simulated) as official:
        stream = official.chat.completions.create(model="chat", messages=PROMPT, max_tokens=5000, stream=True)
        for _ in range(4):
            next(stream)
        stream.close()
    until(lambda: bool(simulated.lines()))
    line = simulated.lines()[0]
    assert line["outcome"] == "aborted"
    assert 3 <= line["completion"] < 5000


def test_a_caller_that_leaves_a_slow_body_is_logged_as_aborted(simulate: Simulate) -> None:
    simulated = simulate(decode=10)
    leaving = simulated.connect("/v1/completions", {"model": "chat", "prompt": "four", "max_tokens": 100_000})
    until(lambda: 'num_requests_running{model_name="chat"} 1' in simulated.get("/metrics"))
    leaving.close()
    until(lambda: bool(simulated.lines()))
    assert simulated.lines()[0]["outcome"] == "aborted"


def test_requests_beyond_the_concurrency_wait_and_are_served(simulate: Simulate) -> None:
    simulated = simulate(concurrency=1)
    hanging = simulated.connect(
        "/v1/completions",
        {"model": "chat", "prompt": "a", "stream": True, "metadata": {"simulate": "fault=hang_after:0"}},
    )
    assert hanging.recv(12) == b"HTTP/1.1 200"
    second = simulated.connect("/v1/completions", {"model": "chat", "prompt": "a", "max_tokens": 1})
    left = simulated.connect("/v1/completions", {"model": "chat", "prompt": "a", "max_tokens": 1})
    until(lambda: 'num_requests_waiting{model_name="chat"} 2' in simulated.get("/metrics"))
    left.close()
    until(lambda: 'num_requests_waiting{model_name="chat"} 1' in simulated.get("/metrics"))
    hanging.close()
    assert second.recv(12) == b"HTTP/1.1 200"
    second.close()
    until(lambda: 'num_requests_running{model_name="chat"} 0' in simulated.get("/metrics"))
    assert sorted(line["outcome"] for line in simulated.lines()) == ["aborted", "aborted", "finished"]


def test_speed_is_what_was_chosen(simulate: Simulate) -> None:
    simulated = simulate(prefill=100, decode=100)
    started_s = time.monotonic()
    simulated.post("/v1/completions", {"model": "chat", "prompt": "four" * 10, "max_tokens": 10})
    assert time.monotonic() - started_s >= 0.2


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/chat/completions", {"model": "other", "messages": PROMPT}, 404, "models: chat"),
        ("/v1/chat/completions", {"model": "chat"}, 400, "messages"),
        ("/v1/completions", {"model": "chat"}, 400, "prompt"),
        ("/v1/completions", {"model": "chat", "prompt": "a", "max_tokens": "x"}, 400, "max_tokens"),
        ("/v1/completions", {"model": "chat", "prompt": "a" * 400}, 400, "context 50"),
        ("/v1/completions", {"model": "chat", "prompt": "a", "metadata": {"simulate": "tokns=3"}}, 400, "tokens"),
        ("/v1/completions", {"model": "chat", "prompt": "a", "metadata": {"simulate": "tokens=-3"}}, 400, "whole"),
        ("/v1/completions", {"model": "chat", "prompt": "a", "metadata": {"simulate": "fault=x"}}, 400, "hang_after"),
        ("/v1/nothing", {}, 404, "POST /v1/nothing"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    simulate: Simulate, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    answered, error = simulate(context=50).post(path, body)
    assert answered == status
    assert said in error["error"]["message"]
