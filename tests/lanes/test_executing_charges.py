"""What a job is charged when it goes wrong, row by row of the quota's table, and what its result says."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from penstock.lanes.jobs import JobStatus
from penstock.quota.events import UsageSource
from tests.lanes.executing_stage import DEADLINE_MS, body_of, holding, in_turn, queued, until
from tests.lanes.stage import (
    NOW_MS,
    STREAM_END,
    STREAM_HEAD,
    completion,
    delta,
    ending,
    event,
    sends,
    tokens,
    usage,
    whole,
)

PROMPT_ESTIMATE = 7


def test_job_is_answered_whole_and_charged_what_the_server_counted() -> None:
    async def main() -> None:
        first = event(delta(None) | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        async with queued(sends(STREAM_HEAD, first, tokens(3), ending(usage(9, 3)))) as queue:
            job = queue.accept()
            result = await queue.run(job)
            assert (result.status, result.http_status, result.reason) == (JobStatus.SUCCEEDED, 200, "")
            assert (result.attempts, result.started_at_ms, result.finished_at_ms) == (1, NOW_MS, NOW_MS)
            assert result.arguments == job.reserve
            assert body_of(result) == {
                "id": "c1", "object": "chat.completion", "created": 1, "model": "chat",
                "choices": [{
                    "index": 0, "message": {"role": "assistant", "content": " t0 t1 t2"}, "finish_reason": "stop",
                }],
                "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
            }  # fmt: skip
            assert queue.charge(job, result) == (9, 3)

    asyncio.run(main())


def test_model_server_is_asked_to_stream_and_to_count_and_never_for_more_than_was_reserved() -> None:
    async def main() -> None:
        async with queued(sends(STREAM_HEAD, tokens(1), ending(usage(7, 1)))) as queue:
            await queue.run(queue.accept({"max_tokens": 400, "n": 2}, outputs_bound=100))
            (asked,) = queue.stage.received
            assert (asked["model"], asked["max_tokens"], asked["n"]) == ("org/real-model", 50, 2)
            assert asked["stream"] is True
            assert asked["stream_options"] == {"include_usage": True}

    asyncio.run(main())


def test_outputs_are_put_together_by_their_index_however_they_arrive() -> None:
    async def main() -> None:
        def part(index: int, text: str, finish: str | None = None) -> bytes:
            choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
            return event({**delta(None), "choices": [choice]})

        parts = [part(1, "b"), part(0, "a"), part(1, "d", "length"), part(0, "c", "stop")]
        async with queued(sends(STREAM_HEAD, *parts, ending(usage(7, 4)))) as queue:
            job = queue.accept({"n": 2}, outputs_bound=100)
            result = await queue.run(job)
            told = [(choice["message"]["content"], choice["finish_reason"]) for choice in body_of(result)["choices"]]
            assert told == [("ac", "stop"), ("bd", "length")]
            assert queue.charge(job, result) == (7, 4)

    asyncio.run(main())


def test_connection_is_kept_after_a_stream_that_was_read_to_its_end() -> None:
    async def main() -> None:
        async def slowly(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
            writer.write(STREAM_HEAD + tokens(1) + ending(usage(7, 1)).removesuffix(STREAM_END))
            for _ in range(20):  # turns of the event loop, in which [DONE] is read
                await asyncio.sleep(0)
            writer.write(STREAM_END)

        async with queued(slowly) as queue:
            for _ in range(3):
                queue.collect(await queue.run(queue.accept()))
            assert queue.stage.servers[0].connections == 1

    asyncio.run(main())


def test_server_that_fails_now_and_then_is_not_ejected() -> None:
    async def main() -> None:
        oops, good = whole({}, "500 Oops"), STREAM_HEAD + tokens(1) + ending(usage(7, 1))
        async with queued(in_turn(oops, oops, good, oops, oops, good)) as queue:
            for _ in range(2):
                delivery = queue.deliver(queue.accept())
                await queue.sleep.advance(3)
                assert (await queue.finish(delivery)).status is JobStatus.SUCCEEDED
            assert [healthy for _, healthy in queue.stage.health.changes] == [True]

    asyncio.run(main())


def test_server_that_answers_whole_although_asked_to_stream_is_understood() -> None:
    async def main() -> None:
        async with queued(sends(whole(completion(usage(7, 3))))) as queue:
            job = queue.accept()
            result = await queue.run(job)
            assert body_of(result)["choices"][0]["message"]["content"] == "hello"
            assert body_of(result)["model"] == "chat"
            assert queue.charge(job, result) == (7, 3)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("chat.completions", {"tools": [{"type": "function"}]}),
        ("completions", {"messages": None, "prompt": "twelve bytes", "best_of": 3}),
        ("embeddings", {"messages": None, "input": "twelve bytes"}),
    ],
)
def test_what_is_not_text_alone_is_asked_for_whole(route: str, body: dict[str, Any]) -> None:
    async def main() -> None:
        answer = completion(usage(7, 3)) if route != "embeddings" else {"data": [], "usage": {"prompt_tokens": 7}}
        async with queued(sends(whole(answer))) as queue:
            job = queue.accept(body, route=route, outputs_bound=0 if route == "embeddings" else 50)
            result = await queue.run(job)
            (asked,) = queue.stage.received
            assert "stream" not in asked
            assert queue.charge(job, result) == (7, 0 if route == "embeddings" else 3)

    asyncio.run(main())


# --- an error status before any token: void ----------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_server_that_refuses_the_request_fails_the_job_with_its_own_words_and_charges_nothing(status: int) -> None:
    async def main() -> None:
        refusal = {"error": {"message": "org/real-model says no", "type": "t", "param": "p", "code": "c"}}
        async with queued(sends(whole(refusal, f"{status} No"))) as queue:
            job = queue.accept()
            result = await queue.run(job)
            assert (result.status, result.http_status, result.attempts) == (JobStatus.FAILED, status, 1)
            assert body_of(result)["error"]["message"] == "chat says no"
            assert "says no" not in result.reason
            assert queue.charge(job, result) is None

    asyncio.run(main())


@pytest.mark.parametrize("status", ["429 Busy", "503 Busy"])
def test_busy_server_is_asked_again_when_it_says_and_the_job_is_billed_once(status: str) -> None:
    async def main() -> None:
        busy = whole({}, status, "retry-after: 7\r\n")
        served = in_turn(busy, busy, STREAM_HEAD + tokens(2) + ending(usage(7, 2)))
        async with queued(served) as queue:
            job = queue.accept()
            delivery = queue.deliver(job)
            await queue.sleep.advance(13.9)
            assert not delivery.done()
            assert len(queue.stage.received) == 2
            await queue.sleep.advance(0.1)
            result = await queue.finish(delivery)
            assert (result.status, result.attempts) == (JobStatus.SUCCEEDED, 3)
            assert (result.started_at_ms, result.finished_at_ms) == (NOW_MS, NOW_MS + 14_000)
            assert queue.charge(job, result) == (7, 2)

    asyncio.run(main())


def test_server_that_stays_busy_lets_the_job_expire_and_is_charged_nothing() -> None:
    async def main() -> None:
        async with queued(sends(whole({}, "503 Busy", "retry-after: 60\r\n"))) as queue:
            job = queue.accept()
            delivery = queue.deliver(job)
            await queue.sleep.advance(599)
            assert not delivery.done()
            await queue.sleep.advance(1)
            result = await queue.finish(delivery)
            assert (result.status, result.http_status) == (JobStatus.EXPIRED, 504)
            assert "too busy" in result.reason
            assert result.finished_at_ms == DEADLINE_MS
            assert queue.charge(job, result) is None

    asyncio.run(main())


def test_server_that_refuses_connections_is_tried_ever_more_slowly_until_the_deadline() -> None:
    async def main() -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            async with queued(addresses=(f"http://127.0.0.1:{held.getsockname()[1]}",)) as queue:
                job = queue.accept(job_deadline_ms=NOW_MS + 100_000)
                delivery = queue.deliver(job)
                await queue.sleep.advance(100)
                result = await queue.finish(delivery)
                assert result.status is JobStatus.EXPIRED
                assert result.attempts == len([0, 1, 3, 7, 15, 31, 61, 91])
                assert queue.charge(job, result) is None

    asyncio.run(main())


@pytest.mark.parametrize("status", ["500 Oops", "502 Oops", "401 No", "404 No"])
def test_server_that_fails_before_any_token_is_asked_three_times_and_charged_nothing(status: str) -> None:
    async def main() -> None:
        async with queued(sends(whole({}, status))) as queue:
            job = queue.accept()
            delivery = queue.deliver(job)
            await queue.sleep.advance(3)
            result = await queue.finish(delivery)
            assert (result.status, result.http_status, result.attempts) == (JobStatus.FAILED, 502, 3)
            assert body_of(result)["error"]["code"] == "upstream_error"
            assert queue.charge(job, result) is None

    asyncio.run(main())


def test_error_as_the_first_event_counts_as_such_a_failure() -> None:
    async def main() -> None:
        failure = STREAM_HEAD + event({"error": {"message": "out of memory"}}) + STREAM_END
        async with queued(in_turn(failure, STREAM_HEAD + tokens(1) + ending(usage(7, 1)))) as queue:
            job = queue.accept()
            delivery = queue.deliver(job)
            await queue.sleep.advance(1)
            result = await queue.finish(delivery)
            assert (result.status, result.attempts) == (JobStatus.SUCCEEDED, 2)
            assert queue.charge(job, result) == (7, 1)

    asyncio.run(main())


# --- sent, and it broke: what arrived, at least the prompt's estimate --------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH\r\n", STREAM_HEAD, whole(b"<html>")[:-3], whole(b"<html>"), whole([1]), whole({"a": 1})],
    ids=["closes", "garbage", "closes after the head", "closes in the body", "no JSON", "no object", "no choices"],
)
def test_request_that_was_sent_and_not_answered_fails_once_and_is_charged_its_prompt(answer: bytes) -> None:
    async def main() -> None:
        async with queued(sends(answer, disconnect=True)) as queue:
            job = queue.accept()
            result = await queue.run(job)
            assert (result.status, result.http_status, result.attempts) == (JobStatus.FAILED, 502, 1)
            assert result.usage is not None
            assert result.usage.source is UsageSource.LOCAL
            assert queue.charge(job, result) == (PROMPT_ESTIMATE, 0)

    asyncio.run(main())


def test_stream_that_breaks_off_is_charged_what_arrived() -> None:
    async def main() -> None:
        async with queued(sends(STREAM_HEAD, tokens(4), disconnect=True)) as queue:
            job = queue.accept()
            result = await queue.run(job)
            assert (result.status, result.http_status) == (JobStatus.FAILED, 502)
            assert queue.charge(job, result) == (PROMPT_ESTIMATE, 4)

    asyncio.run(main())


def test_garbage_in_the_middle_is_charged_what_arrived_before() -> None:
    async def main() -> None:
        async with queued(sends(STREAM_HEAD, tokens(2), event("{]"), tokens(2), STREAM_END)) as queue:
            job = queue.accept()
            result = await queue.run(job)
            assert result.status is JobStatus.FAILED
            assert queue.charge(job, result) == (PROMPT_ESTIMATE, 2)

    asyncio.run(main())


def test_silence_is_a_timeout_charged_its_prompt() -> None:
    async def main() -> None:
        async with queued(sends(b""), first_byte_s=0.05) as queue:
            job = queue.accept()
            result = await queue.run(job)
            assert (result.status, result.http_status) == (JobStatus.FAILED, 504)
            assert body_of(result)["error"]["code"] == "upstream_timeout"
            assert queue.charge(job, result) == (PROMPT_ESTIMATE, 0)

    asyncio.run(main())


# --- usage missing or absurd: the local count --------------------------------------------------------------------


@pytest.mark.parametrize("reported", [None, usage(-1, 3), usage(7, 51), usage("7", 3), usage(10**6, 3)], ids=repr)
def test_usage_that_is_missing_or_absurd_is_replaced_by_what_arrived(reported: Any) -> None:
    async def main() -> None:
        async with queued(sends(STREAM_HEAD, tokens(4), ending(reported))) as queue:
            job = queue.accept()
            result = await queue.run(job)
            assert result.usage is not None
            assert (result.status, result.usage.source) == (JobStatus.SUCCEEDED, UsageSource.LOCAL)
            assert body_of(result)["usage"]["completion_tokens"] == 4
            assert queue.charge(job, result) == (PROMPT_ESTIMATE, 4)

    asyncio.run(main())


@pytest.mark.parametrize("reported", [None, usage(7, 51)], ids=repr)
def test_whole_answer_without_sound_usage_is_counted_by_its_text(reported: Any) -> None:
    async def main() -> None:
        async with queued(sends(whole(completion(reported, text="x" * 40)))) as queue:
            job = queue.accept()
            result = await queue.run(job)
            assert queue.charge(job, result) == (PROMPT_ESTIMATE, 10)

    asyncio.run(main())


# --- cancelled, expired ------------------------------------------------------------------------------------------


def test_job_cancelled_while_it_runs_stops_within_5_s_and_is_charged_what_was_produced() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept()
            delivery = queue.deliver(job)
            await until(lambda: writers)
            writers[0].write(STREAM_HEAD + tokens(4))
            await queue.sleep.advance(1)
            queue.cancel(job)
            await queue.sleep.advance(5)
            result = await queue.finish(delivery)
            await queue.stage.servers[0].disconnected.wait()
            assert (result.status, result.http_status, body_of(result)) == (JobStatus.CANCELLED, 499, None)
            assert queue.charge(job, result) == (PROMPT_ESTIMATE, 4)

    asyncio.run(main())


def test_job_cancelled_before_its_model_answered_is_charged_its_prompt() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept()
            delivery = queue.deliver(job)
            await until(lambda: writers)
            queue.cancel(job)
            await queue.sleep.advance(5)
            result = await queue.finish(delivery)
            await queue.stage.servers[0].disconnected.wait()
            assert queue.charge(job, result) == (PROMPT_ESTIMATE, 0)

    asyncio.run(main())


def test_job_cancelled_while_its_server_is_busy_is_charged_nothing() -> None:
    async def main() -> None:
        async with queued(sends(whole({}, "503 Busy", "retry-after: 60\r\n"))) as queue:
            job = queue.accept()
            delivery = queue.deliver(job)
            await queue.sleep.advance(1)
            queue.cancel(job)
            await queue.sleep.advance(5)
            result = await queue.finish(delivery)
            assert result.status is JobStatus.CANCELLED
            assert queue.charge(job, result) is None

    asyncio.run(main())


def test_job_that_runs_at_its_deadline_is_stopped_and_charged_what_was_produced() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept(job_deadline_ms=NOW_MS + 9_500)
            delivery = queue.deliver(job)
            await until(lambda: writers)
            writers[0].write(STREAM_HEAD + tokens(4))
            await queue.sleep.advance(9.4)
            assert not delivery.done()
            await queue.sleep.advance(0.1)
            result = await queue.finish(delivery)
            await queue.stage.servers[0].disconnected.wait()
            assert (result.status, result.finished_at_ms) == (JobStatus.EXPIRED, NOW_MS + 9_500)
            assert queue.charge(job, result) == (PROMPT_ESTIMATE, 4)

    asyncio.run(main())
