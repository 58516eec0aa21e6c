"""The official client, the API, the realtime lane, the quota model and a simulated model server, all over sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import openai
import pytest

from penstock.adapters.http import HttpClient
from penstock.adapters.simulated_model import Server, Settings
from penstock.adapters.simulated_model.journal import Totals
from penstock.api.application import application
from penstock.lanes.models import ServedModel, Upstream
from penstock.lanes.realtime import RealtimeLane
from tests.api.door import TOKEN, Clock, Door, chat_body, listening
from tests.polling import until

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "twelve bytes"}]


class Whole:
    """A door with the real lane behind it, and the model server's own record of what it produced."""

    def __init__(self) -> None:
        self.door = Door()
        self.simulated = Server(Settings(models=("simulated",)))
        self._client = HttpClient()
        self.lane = RealtimeLane(
            self.door.store,
            self._client,
            Clock(),
            {
                "chat-small": ServedModel(
                    name="chat-small",
                    upstreams=(Upstream(url=self.simulated.url),),
                    upstream_model="simulated",
                    context=8192,
                    max_tokens=64,
                )
            },
            observer=self.door.watcher,
        )
        self.services = replace(self.door.services(), lane=self.lane)

    @asynccontextmanager
    async def around(self) -> AsyncIterator[None]:
        async with self.simulated:
            await self.lane.start()
            yield
            await self.lane.close()
            await self._client.close()

    def used_tokens(self) -> int:
        return {limit.limit: limit.used for limit in self.door.store.inspected().limits}["acme/tokens/month"]

    def produced(self) -> Totals:
        """Of the model's own log, which it writes when it notices that a caller has gone."""
        until(lambda: "simulated" in self.simulated.journal.totals, bound_s=20)
        return self.simulated.journal.totals["simulated"]


@pytest.fixture
def whole() -> Iterator[Whole]:
    """Everything, listening; once it has stopped, nothing may be held."""
    whole = Whole()
    with listening(application(whole.services), around=whole.around) as (whole.door.port, _):
        yield whole
    assert not whole.door.store.inspected().holds


@pytest.fixture
def client(whole: Whole) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{whole.door.port}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


def test_chat_is_answered_and_charged_what_its_usage_says(whole: Whole, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chat-small", messages=MESSAGES, max_tokens=20)
    assert answer.model == "chat-small"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    assert whole.used_tokens() == answer.usage.total_tokens


def test_stream_with_usage_ends_in_it(whole: Whole, client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="chat-small",
            messages=MESSAGES,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.used_tokens() == chunks[-1].usage.total_tokens


def test_stream_without_usage_shows_none_and_is_charged_all_the_same(whole: Whole, client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="chat-small", prompt="once", max_tokens=20, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert whole.used_tokens() > 20


def test_abort_in_mid_stream_stops_the_model_and_charges_what_came(whole: Whole, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="chat-small",
        messages=MESSAGES,
        max_tokens=2000,
        stream=True,
        metadata={"simulate": "tokens=2000 fault=slow_chunks:5"},
    )
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    stream.close()
    record = whole.door.watcher.last()
    assert (record.outcome, record.status) == ("client_gone", 200)
    assert 0 < whole.produced().completion < 200


def test_abort_before_the_answer_stops_the_model(whole: Whole) -> None:
    connection = whole.door.begin(metadata={"simulate": "fault=hang"})
    whole.door.watcher.wait_begun(1)
    connection.close()
    assert whole.door.watcher.last().status == 499


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_embeddings_come_in_either_format(whole: Whole, client: openai.OpenAI, encoding_format: str) -> None:
    answer = client.embeddings.create(
        model="chat-small",
        input=["one", "two"],
        encoding_format=encoding_format,  # type: ignore[arg-type]
    )
    assert len(answer.data) == 2
    assert whole.used_tokens() == answer.usage.total_tokens


def test_a_model_that_nobody_serves_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="nothing", messages=MESSAGES)
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("refuse:400", 400, None),
        ("refuse:401", 502, "upstream_error"),
        ("refuse:500", 502, "upstream_error"),
        ("refuse:503", 503, "upstream_overloaded"),
        ("break_before", 502, "upstream_error"),
        ("garbage_body", 502, "upstream_error"),
    ],
)
def test_each_fault_of_the_model_server_has_its_status_and_headers(
    whole: Whole, fault: str, status: int, code: str | None
) -> None:
    answer = whole.door.chat(metadata={"simulate": f"fault={fault}"})
    assert answer.status == status
    assert code is None or answer.error()["code"] == code
    assert answer.headers["x-ratelimit-limit-tokens"] == "200000"


def test_a_stream_that_breaks_off_ends_with_an_error_event(whole: Whole) -> None:
    answer = whole.door.chat(stream=True, max_tokens=50, metadata={"simulate": "tokens=50 fault=break_after:5"})
    assert answer.status == 200
    assert answer.body.rstrip().splitlines()[-1].startswith(b'data: {"error"')
    assert b"[DONE]" not in answer.body


def test_max_tokens_is_written_upstream_when_the_client_says_nothing(whole: Whole) -> None:
    body = chat_body(metadata={"simulate": "tokens=5000"})
    del body["max_tokens"]
    answer = whole.door.ask("POST", "/v1/chat/completions", body)
    usage = answer.json()["usage"]
    assert isinstance(usage, dict)
    assert usage["completion_tokens"] == 64


def test_many_clients_at_once_are_all_answered_and_accounted(whole: Whole) -> None:
    async def main() -> list[int]:
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{whole.door.port}/v1", api_key=TOKEN, max_retries=0
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model="chat-small", messages=MESSAGES, max_tokens=3)
                    for _ in range(30)
                )
            )
        return [answer.usage.total_tokens for answer in answers if answer.usage is not None]

    told = sum(asyncio.run(main()))
    assert told == whole.used_tokens() == whole.produced().prompt + whole.produced().completion


def test_a_response_is_answered_and_charged_what_its_usage_says(whole: Whole, client: openai.OpenAI) -> None:
    answer = client.responses.create(model="chat-small", input="twelve bytes", max_output_tokens=70)
    assert (answer.status, answer.model, answer.to_dict()["store"]) == ("completed", "chat-small", False)
    assert answer.usage is not None
    assert 0 < answer.usage.output_tokens < 70
    assert answer.output_text
    assert whole.used_tokens() == answer.usage.total_tokens
    assert (whole.door.watcher.last().route, whole.door.watcher.last().outcome) == ("responses", "ok")


def test_a_response_that_was_cut_says_so(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="chat-small", input="twelve bytes", max_output_tokens=3)
    assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )


def test_a_streamed_response_ends_settled_and_tells_the_same_as_its_parts(whole: Whole, client: openai.OpenAI) -> None:
    with client.responses.stream(model="chat-small", input="twelve bytes", max_output_tokens=70) as stream:
        events = list(stream)
    response = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert response.output_text == "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    )
    assert response.usage is not None
    assert whole.used_tokens() == response.usage.total_tokens
    assert not whole.door.store.inspected().holds


def test_a_streamed_response_that_breaks_off_fails_and_is_charged_what_came(
    whole: Whole, client: openai.OpenAI
) -> None:
    events = list(
        client.responses.create(
            model="chat-small", input="x", stream=True, metadata={"simulate": "tokens=50 fault=break_after:5"}
        )
    )
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert whole.used_tokens() >= 5


def test_a_client_that_leaves_a_streamed_response_stops_the_model(whole: Whole, client: openai.OpenAI) -> None:
    stream = client.responses.create(
        model="chat-small", input="x", stream=True, metadata={"simulate": "tokens=2000 fault=slow_chunks:5"}
    )
    for _, _event in zip(range(8), stream, strict=False):
        pass
    stream.close()
    assert whole.door.watcher.last().outcome == "client_gone"
    assert 0 < whole.used_tokens() < 2000


def test_a_response_that_is_refused_says_which_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="chat-small", input="x", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
