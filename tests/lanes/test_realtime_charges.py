"""What is charged when it goes wrong, row by row of the table in the quota's description."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from penstock.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from penstock.lanes.requests import Reply
from penstock.quota.events import EventKind, UsageSource
from penstock.quota.operations import Settle, Void
from tests.lanes.stage import (
    STREAM_END,
    STREAM_HEAD,
    Stage,
    collect,
    completion,
    delta,
    ending,
    event,
    http_chunk,
    request,
    sends,
    staged,
    text_of,
    tokens,
    usage,
    whole,
)

PROMPT_ESTIMATE = 7  # of the stage's request: 12 bytes in fours, and 4 for the message


def assert_charged(stage: Stage, prompt: int, completion_tokens: int, source: UsageSource) -> None:
    """Exactly one end, with this usage; nothing held."""
    (end,) = stage.store.ends()
    assert (end.kind, end.usage.prompt, end.usage.completion) == (EventKind.POSTED, prompt, completion_tokens)
    assert end.usage.source is source
    assert stage.used() == prompt + completion_tokens
    assert len({id(call) for call in stage.store.seen if isinstance(call, Settle | Void)}) == 1
    stage.assert_nothing_is_held()


def assert_void(stage: Stage) -> None:
    (end,) = stage.store.ends()
    assert end.kind is EventKind.VOIDED
    assert stage.used() == 0
    stage.assert_nothing_is_held()


# --- nothing sent, or an error status before any token: void -----------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_server_that_refuses_connections_is_charged_nothing(stream: bool) -> None:
    async def main() -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            async with staged(addresses=(f"http://127.0.0.1:{held.getsockname()[1]}",)) as stage:
                with pytest.raises(UpstreamUnreachable):
                    await stage.lane.answer(request(stream=stream))
                assert_void(stage)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("400 Bad Request", 400), ("422 Unprocessable", 422), ("413 Too Large", 413), ("415 Type", 415),
        ("429 Busy", 429),
        ("503 Busy", 503), ("401 No", None), ("403 No", None), ("404 No", None), ("500 Oops", None),
        ("502 Oops", None), ("301 Moved", None), ("204 Nothing", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_error_status_is_charged_nothing_and_only_the_clients_own_is_shown(
    status: str, shown: int | None, stream: bool
) -> None:
    async def main() -> None:
        error = {"error": {"message": "org/real-model says no", "type": "t", "param": "p", "code": "c", "host": "h"}}
        body = b"" if status.startswith("204") else error
        async with staged(sends(whole(body, status, "x-secret: 1\r\nretry-after: 7\r\n"))) as stage:
            with pytest.raises(UpstreamError) as caught:
                await stage.lane.answer(request(stream=stream))
            assert type(caught.value) is UpstreamError
            assert caught.value.status == shown
            if shown in (400, 413, 415, 422):
                wanted = {"message": "chat says no", "type": "t", "param": "p", "code": "c"}
                assert json.loads(caught.value.body) == {"error": wanted}
            else:
                assert caught.value.body == b""
            assert caught.value.retry_after_ms == (7000 if shown in (429, 503) else None)
            assert "says no" not in caught.value.message
            assert_void(stage)

    asyncio.run(main())


def test_stream_whose_first_event_is_an_error_is_charged_nothing() -> None:
    async def main() -> None:
        failure = event({"error": {"message": "out of memory"}}) + STREAM_END
        async with staged(sends(STREAM_HEAD, failure)) as stage:
            with pytest.raises(UpstreamError):
                await stage.lane.answer(request(stream=True))
            assert_void(stage)

    asyncio.run(main())


# --- sent, no answer: the prompt's estimate ----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH\r\n", STREAM_HEAD, whole(b"<html>")[:-3], whole(b"<html>"), whole([1]), whole({"a": 1})],
    ids=["closes", "garbage", "closes after the head", "closes in the body", "no JSON", "no object", "no choices"],
)
def test_request_that_was_sent_and_not_answered_is_charged_its_prompt(stream: bool, answer: bytes) -> None:
    async def main() -> None:
        async with staged(sends(answer, disconnect=True)) as stage:
            asked = request(stream=stream)
            with pytest.raises(UpstreamBroken):
                await stage.lane.answer(asked)
            assert_charged(stage, PROMPT_ESTIMATE, 0, UsageSource.LOCAL)
            assert asked.record.usage_source == "local"

    asyncio.run(main())


@pytest.mark.parametrize("phase", ["first_byte", "total"])
@pytest.mark.parametrize("stream", [False, True])
def test_silence_is_a_timeout_charged_its_prompt(phase: str, stream: bool) -> None:
    async def main() -> None:
        bound: dict[str, Any] = {f"{phase}_s": 0.05}
        async with staged(sends(b""), **bound) as stage:
            with pytest.raises(UpstreamTimeout) as caught:
                await stage.lane.answer(request(stream=stream))
            assert caught.value.phase == phase
            assert_charged(stage, PROMPT_ESTIMATE, 0, UsageSource.LOCAL)

    asyncio.run(main())


# --- stream broken, usage missing: what arrived ------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        b"",
        http_chunk(b"data: garbage\n\n"),
        event({"error": {"message": "worker died"}}),
        STREAM_END,
        b"not a chunk",
    ],
    ids=["disconnects", "garbage event", "error event", "ends without an end", "garbage framing"],
)
def test_stream_that_breaks_off_is_charged_what_arrived_and_ends_in_an_error(fault: bytes) -> None:
    async def main() -> None:
        async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
            writer.write(STREAM_HEAD + tokens(5))
            await broken.wait()
            writer.write(fault)
            await writer.drain()
            writer.close()

        broken = asyncio.Event()
        async with staged(answer) as stage:
            asked = request(stream=True, include_usage=True)
            reply = await stage.lane.answer(asked)
            broken.set()
            *events, last = await collect(reply)
            assert text_of(events) == " t0 t1 t2 t3 t4"
            assert set(last) == {"error"}
            assert "worker died" not in json.dumps(last)
            assert_charged(stage, PROMPT_ESTIMATE, 5, UsageSource.LOCAL)
            assert asked.record.outcome == "upstream_error"

    asyncio.run(main())


def test_stream_that_falls_silent_is_charged_what_arrived() -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, tokens(5)), between_chunks_s=0.05) as stage:
            asked = request(stream=True)
            *_, last = await collect(await stage.lane.answer(asked))
            assert "fell silent" in last["error"]["message"]
            assert asked.record.error == "UpstreamTimeout"
            assert_charged(stage, PROMPT_ESTIMATE, 5, UsageSource.LOCAL)

    asyncio.run(main())


ABSURD: list[Any] = [
    None,
    usage(-1, 3),
    usage(7, -3),
    usage(7.0, 3),
    usage("7", 3),
    usage(True, 3),
    usage(1001, 3),
    usage(7, 51),
    usage(7, None),
    usage(10**30, 3),
    usage(7, 3) | {"prompt_tokens_details": {"cached_tokens": 8}},
    usage(7, 3) | {"prompt_tokens_details": {"cached_tokens": -1}},
    "many",
    [],
]


@pytest.mark.parametrize("report", ABSURD, ids=str)
def test_absurd_or_missing_usage_of_a_stream_is_counted_here(report: Any) -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, tokens(6), ending(report))) as stage:
            asked = request(stream=True, include_usage=True)
            *events, last, done = await collect(await stage.lane.answer(asked))
            assert done == "[DONE]"
            assert text_of(events) == " t0 t1 t2 t3 t4 t5"
            charged = {"prompt_tokens": PROMPT_ESTIMATE, "completion_tokens": 6, "total_tokens": 13}
            assert last["usage"] == charged
            assert_charged(stage, PROMPT_ESTIMATE, 6, UsageSource.LOCAL)
            assert asked.record.outcome == "ok"
            assert asked.record.usage_source == "local"

    asyncio.run(main())


@pytest.mark.parametrize("report", ABSURD, ids=str)
def test_absurd_or_missing_usage_of_a_whole_answer_is_counted_here_and_replaced(report: Any) -> None:
    async def main() -> None:
        async with staged(sends(whole(completion(report, text="twelve bytes")))) as stage:
            reply = await stage.lane.answer(request())
            assert isinstance(reply, Reply)
            charged = {"prompt_tokens": PROMPT_ESTIMATE, "completion_tokens": 3, "total_tokens": 10}
            assert json.loads(reply.body)["usage"] == charged
            assert_charged(stage, PROMPT_ESTIMATE, 3, UsageSource.LOCAL)

    asyncio.run(main())


def test_local_count_never_exceeds_what_was_asked_for() -> None:
    async def main() -> None:
        async with staged(sends(STREAM_HEAD, tokens(60), ending())) as stage:
            await collect(await stage.lane.answer(request(stream=True)))
            assert_charged(stage, PROMPT_ESTIMATE, 50, UsageSource.LOCAL)

    asyncio.run(main())


def test_stream_without_done_that_was_finished_is_whole() -> None:
    async def main() -> None:
        last = event(delta(None, "stop")) + STREAM_END
        async with staged(sends(STREAM_HEAD, tokens(2), last)) as stage:
            events = await collect(await stage.lane.answer(request(stream=True)))
            assert events[-1] == "[DONE]"
            assert_charged(stage, PROMPT_ESTIMATE, 2, UsageSource.LOCAL)

    asyncio.run(main())
