"""What clients were told is read from whole answers and streams alike, over real HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest

from penstock.adapters.http import HttpClient
from penstock.adapters.simulated_model import Server, Settings
from penstock.planning.rehearsing.sending import Outcome, Planned, Sender


def planned(simulate: str, *, stream: bool, model: str = "chat") -> Planned:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "four"}],
        "metadata": {"simulate": simulate},
        "stream": stream,
        "stream_options": {"include_usage": True},
    }
    return Planned(
        at_ms=0,
        organisation="acme",
        model=model,
        path="/v1/chat/completions",
        body=msgspec.json.encode(body),
        stream=stream,
    )


def send(*requests: Planned, concurrency: int = 4) -> tuple[list[Outcome], Server]:
    async def run() -> tuple[list[Outcome], Server]:
        async with Server(Settings(models=("chat",))) as server:
            client = HttpClient()
            try:
                sender = Sender(client=client, url=server.url, keys={"acme": "none"}, concurrency=concurrency)
                return await sender.send_all(requests), server
            finally:
                await client.close()

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_tells_its_tokens(stream: bool) -> None:
    outcomes, _ = send(planned("tokens=9 prompt_tokens=50 cached_tokens=20", stream=stream))
    outcome = outcomes[0]
    assert (outcome.status, outcome.prompt, outcome.cached, outcome.completion) == (200, 50, 20, 9)
    assert outcome.is_admitted
    assert not outcome.failure


@pytest.mark.parametrize(
    ("simulate", "stream", "said"),
    [
        ("fault=no_done", True, "without [DONE]"),
        ("fault=no_usage", True, "no usage"),
        ("fault=no_usage", False, "no usage"),
        ("fault=garbage_body", False, "not what was expected"),
        ("fault=refuse:503", False, "503: refused as the request asked"),
        ("fault=break_after:2", True, ""),
        ("fault=error_after:2", True, "the engine failed"),
    ],
)
def test_an_answer_that_is_not_whole_is_a_failure_with_its_reason(simulate: str, stream: bool, said: str) -> None:
    outcomes, _ = send(planned(simulate, stream=stream))
    assert outcomes[0].failure
    assert not outcomes[0].refused_by
    assert said in outcomes[0].failure


def test_every_request_is_sent_once_however_few_at_a_time() -> None:
    outcomes, server = send(*(planned(f"tokens={n}", stream=n % 2 == 0) for n in range(40)), concurrency=3)
    assert sorted(outcome.completion for outcome in outcomes) == list(range(40))
    assert dataclasses.asdict(server.journal.totals["chat"])["requests"] == 40


def test_the_simulated_models_log_is_what_the_clients_were_told() -> None:
    outcomes, server = send(*(planned(f"tokens={n}", stream=n % 2 == 0) for n in range(20)))
    totals = server.journal.totals["chat"]
    assert totals.prompt == sum(outcome.prompt for outcome in outcomes)
    assert totals.completion == sum(outcome.completion for outcome in outcomes)
