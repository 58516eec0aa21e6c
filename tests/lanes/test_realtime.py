"""The realtime lane when all goes well: what is sent upstream, what is charged, what the client sees."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.simulated_model import Server, Settings
from penstock.errors import Forbidden, NotFound, QuotaDenied, StoreUnavailable, Unauthenticated
from penstock.lanes.requests import InferenceRequest, Reply, StreamReply
from penstock.quota.definitions import Key, Kind, Limit, Metric
from penstock.quota.events import EventKind
from penstock.quota.operations import Reserve, Settle, Void
from tests.lanes.stage import (
    STREAM_HEAD,
    collect,
    completion,
    definitions,
    delta,
    ending,
    event,
    request,
    sends,
    staged,
    text_of,
    tokens,
    usage,
    whole,
)


def test_whole_answer_is_charged_what_the_server_reports_and_bears_our_name() -> None:
    async def main() -> None:
        async with staged(sends(whole(completion(usage(7, 3))))) as stage:
            asked = request()
            reply = await stage.lane.answer(asked)
            assert isinstance(reply, Reply)
            assert json.loads(reply.body) == completion(usage(7, 3)) | {"model": "chat"}
            assert reply.status == 200
            assert [reading.cap for reading in reply.readings] == [100, 1_000_000]
            (posted,) = stage.store.ends()
            assert (posted.kind, posted.usage.prompt, posted.usage.completion) == (EventKind.POSTED, 7, 3)
            assert stage.used() == 10
            record = asked.record
            assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (7, 3, "upstream")
            assert (record.attempts, record.upstream) == (1, f"http://127.0.0.1:{stage.servers[0].port}")
            assert record.cost_nanos == 13_000
            assert record.reservation == posted.reservation
            assert record.tokens_held == posted.tokens_held
            stage.assert_nothing_is_held()

    asyncio.run(main())


def test_the_server_is_told_the_reservation_as_the_requests_id(tmp_path: Path) -> None:
    async def main() -> None:
        log = tmp_path / "produced.jsonl"
        async with Server(Settings(models=("org/real-model",)), log=log) as server:
            async with staged(addresses=(server.url,)) as stage:
                await stage.lane.answer(request())
                (posted,) = stage.store.ends()
            server.journal.flush()
        (produced,) = log.read_text().splitlines()
        assert json.loads(produced)["request_id"] == posted.reservation

    asyncio.run(main())


def test_streamed_answer_is_charged_once_and_done_comes_last() -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, tokens(20), ending(usage(7, 20)))) as stage:
            asked = request(stream=True)
            events = await collect(await stage.lane.answer(asked))
            assert text_of(events) == "".join(f" t{index}" for index in range(20))
            assert events[-1] == "[DONE]"
            assert all(event["model"] == "chat" and "usage" not in event for event in events[:-1])
            assert all(event["choices"] for event in events[:-1])
            assert stage.used() == 27
            assert len(stage.store.ends()) == 1
            assert asked.record.chunks == 20
            assert asked.record.usage_source == "upstream"
            stage.assert_nothing_is_held()

    asyncio.run(main())


def test_client_that_asks_for_usage_gets_what_it_is_charged_as_the_last_event() -> None:
    async def main() -> None:
        reported = usage(7, 2) | {"prompt_tokens_details": {"cached_tokens": 4}}
        async with staged(sends(STREAM_HEAD, tokens(2), ending(reported))) as stage:
            *_, last, done = await collect(await stage.lane.answer(request(stream=True, include_usage=True)))
            assert done == "[DONE]"
            assert last["choices"] == []
            assert last["model"] == "chat"
            assert last["usage"] == {
                "prompt_tokens": 7,
                "completion_tokens": 2,
                "total_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 4},
            }

    asyncio.run(main())


def test_done_waits_until_the_settle_is_acknowledged() -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
            writer.write(STREAM_HEAD + tokens(3))
            await go_on.wait()
            writer.write(ending(usage(7, 3)))

        async with staged(answer) as stage:
            reply = await stage.lane.answer(request(stream=True))
            assert isinstance(reply, StreamReply)
            assert b" t0" in await anext(reply.events)
            stage.store.waits_for = asyncio.Event()
            reading = asyncio.ensure_future(anext(reply.events))
            go_on.set()
            while not isinstance(stage.store.seen[-1], Settle):
                assert not reading.done()
                await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
            assert not reading.done()
            stage.store.waits_for.set()
            assert (await reading).endswith(b"data: [DONE]\n\n")
            await reply.events.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wish", "expected"),
    [(None, 50), (20, 20), (500, 500), (5000, 1000)],
    ids=["client says nothing", "less than the default", "more than the default", "more than the context"],
)
def test_bounded_output_and_usage_are_asked_for(wish: int | None, expected: int) -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, ending(usage()))) as stage:
            asked = request(stream=True, max_tokens=wish)
            asked.body["max_completion_tokens"] = wish
            await collect(await stage.lane.answer(asked))
            (received,) = stage.received
            assert received["max_tokens"] == received["max_completion_tokens"] == expected
            assert received["stream_options"] == {"include_usage": True}
            assert received["model"] == "org/real-model"
            (reserve,) = [call for call in stage.store.seen if isinstance(call, Reserve)]
            assert reserve.outputs_bound == expected

    asyncio.run(main())


def test_embeddings_are_asked_for_without_bounds_and_charged_for_their_prompt() -> None:
    async def main() -> None:
        answer = {"object": "list", "data": [{"embedding": [0.5], "index": 0}], "model": "org/real-model"}
        reported = {"prompt_tokens": 9, "total_tokens": 9}
        async with staged(sends(whole(answer | {"usage": reported}))) as stage:
            asked = request(route="embeddings", body={"model": "chat", "input": "some text"})
            reply = await stage.lane.answer(asked)
            assert isinstance(reply, Reply)
            assert json.loads(reply.body) == answer | {"usage": reported, "model": "chat"}
            assert stage.received == [{"model": "org/real-model", "input": "some text"}]
            assert stage.used() == 9

    asyncio.run(main())


def test_running_usage_is_used_and_taken_out_of_the_events() -> None:
    async def main() -> None:
        running = b"".join(event(delta(f" {n}", usage=usage(7, n))) for n in (1, 4))
        async with staged(sends(STREAM_HEAD, running, disconnect=True), reports_running_usage=True) as stage:
            events = await collect(await stage.lane.answer(request(stream=True)))
            assert stage.received[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
            assert all("usage" not in shown for shown in events)
            assert stage.used() == 11  # two events, yet the server counted four tokens

    asyncio.run(main())


def test_connection_is_kept_after_a_stream() -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, tokens(2), ending(usage()))) as stage:
            for _ in range(3):
                await collect(await stage.lane.answer(request(stream=True)))
            assert stage.servers[0].connections == 1

    asyncio.run(main())


def _budget(cap: int) -> Any:
    return definitions(
        limits=(Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=cap),)
    )


def test_refused_request_reaches_no_server_and_says_what_is_missing() -> None:
    async def main() -> None:
        async with staged(sends(whole(completion(usage()))), governed=_budget(139)) as stage:
            await stage.lane.answer(request())
            refused = request()
            with pytest.raises(QuotaDenied) as caught:
                await stage.lane.answer(refused)
            assert refused.record.denied_by == "acme/tokens/day"
            assert caught.value.message.startswith("acme/tokens/day: needs 130 tokens, 129 left; retry in ")
            assert len(stage.received) == 1

    asyncio.run(main())


def test_request_that_never_fits_is_told_to_ask_for_less() -> None:
    async def main() -> None:
        async with staged(sends(b""), governed=_budget(100)) as stage:
            with pytest.raises(QuotaDenied, match="more than it ever allows; ask for less"):
                await stage.lane.answer(request())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"key": "k2"}, Unauthenticated),
        ({"key": "narrow"}, Forbidden),
        ({"model": "other"}, NotFound),
    ],
)
def test_key_and_model_are_checked_before_anything_is_sent(changes: dict[str, Any], error: type[Exception]) -> None:
    keys = {"k1": Key(id="k1", verified=True), "narrow": Key(id="narrow", verified=True, models=frozenset({"x"}))}

    async def main() -> None:
        async with staged(sends(b""), governed=definitions(keys=keys)) as stage:
            with pytest.raises(error):
                await stage.lane.answer(request(**changes))
            assert stage.received == []
            stage.assert_nothing_is_held()

    asyncio.run(main())


def test_reserve_whose_answer_is_lost_is_voided() -> None:
    async def main() -> None:
        async with staged(sends(b"")) as stage:
            stage.store.refusing = (Reserve,)
            with pytest.raises(StoreUnavailable):
                await stage.lane.answer(request())
            await stage.lane.close()
            reserve, void = stage.store.seen
            assert isinstance(reserve, Reserve)
            assert isinstance(void, Void)
            assert void.reservation == reserve.reservation
            assert stage.received == []

    asyncio.run(main())


def living_requests() -> list[int]:
    return sorted(id(found) for found in gc.get_objects() if isinstance(found, InferenceRequest))


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_ended_leaves_nothing_for_the_garbage_collector(stream: bool) -> None:
    async def main() -> None:
        whole_answer, streamed = whole(completion(usage())), STREAM_HEAD + tokens(2) + ending(usage())
        async with staged(sends(streamed if stream else whole_answer)) as stage:
            gc.collect()
            known = living_requests()  # what other tests keep
            gc.disable()
            try:
                for _ in range(3):
                    reply = await stage.lane.answer(request(stream=stream))
                    if isinstance(reply, StreamReply):
                        await collect(reply)
                del reply
                assert living_requests() == known
            finally:
                gc.enable()

    asyncio.run(main())
