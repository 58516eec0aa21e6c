"""Jobs whose model gets another request than the client sent, or has no tokens: responses and inferences."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from penstock.lanes.generic import Per, Units
from penstock.lanes.jobs import Job, JobStatus
from penstock.quota.estimate import BODY_UNBOUNDED
from penstock.quota.events import UsageSource
from tests.lanes.executing_stage import Queue, body_of, queued
from tests.lanes.stage import STREAM_HEAD, completion, ending, sends, tokens, usage, whole

ASKED = {"model": "chat", "input": "twelve bytes", "max_output_tokens": 400, "instructions": "be brief"}
TENSORS = {"inputs": [{"name": "x", "shape": [3], "data": [1, 2, 3]}], "stream": "theirs"}
INFERRED = {"model_name": "org/real-model", "outputs": [], "parameters": {"units": 40}}


def a_response(queue: Queue, **asked: Any) -> Job:
    job = queue.accept(route="responses")
    return msgspec.structs.replace(job, request=ASKED | asked)


def an_inference(queue: Queue, *, prompt_tokens: int | None, received_bytes: int = 0) -> Job:
    size = BODY_UNBOUNDED if received_bytes else 90
    job = queue.accept(route="infer", prompt_tokens=prompt_tokens, body_bytes=size, outputs_bound=0)
    return msgspec.structs.replace(job, request=TENSORS, received_bytes=received_bytes)


def test_a_responses_job_is_a_chat_for_its_model_and_a_response_for_its_client() -> None:
    async def main() -> None:
        async with queued(sends(STREAM_HEAD, tokens(3), ending(usage(9, 3)))) as queue:
            job = a_response(queue)
            result = await queue.run(job)
            (asked,) = queue.stage.received
            assert [message["role"] for message in asked["messages"]] == ["system", "user"]
            assert (asked["model"], asked["max_tokens"], asked["stream"]) == ("org/real-model", 50, True)
            response = body_of(result)
            assert (response["id"], response["object"]) == (f"resp_{job.job}", "response")
            assert response["output"][0]["content"][0]["text"] == " t0 t1 t2"
            assert (response["instructions"], response["usage"]["output_tokens"]) == ("be brief", 3)
            assert queue.charge(job, result) == (9, 3)

    asyncio.run(main())


def test_a_responses_job_with_tools_is_asked_for_whole() -> None:
    async def main() -> None:
        async with queued(sends(whole(completion(usage(7, 3))))) as queue:
            job = a_response(queue, tools=[{"type": "function", "name": "f"}])
            result = await queue.run(job)
            assert "stream" not in queue.stage.received[0]
            assert body_of(result)["output"][0]["content"][0]["text"] == "hello"
            assert queue.charge(job, result) == (7, 3)

    asyncio.run(main())


def test_what_a_model_server_refuses_of_a_responses_job_is_an_error_and_no_response() -> None:
    async def main() -> None:
        async with queued(sends(whole({"error": {"message": "no"}}, "400 Bad Request"))) as queue:
            job = a_response(queue)
            result = await queue.run(job)
            assert (result.status, result.http_status) == (JobStatus.FAILED, 400)
            assert body_of(result)["error"]["message"] == "no"
            assert queue.charge(job, result) is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("units", "known", "received_bytes", "answer", "charged"),
    [
        (Units(Per.ELEMENT, "x"), 3, 0, INFERRED, 3),
        (Units(Per.BYTE), 90, 0, INFERRED, 90),
        (Units(Per.USAGE), None, 90, INFERRED, 40),
        (Units(Per.USAGE), None, 90, INFERRED | {"parameters": {"units": 1001}}, 23),
    ],
)
def test_an_inference_is_charged_by_the_rule_of_its_model_and_sent_as_it_came(
    units: Units, known: int | None, received_bytes: int, answer: dict[str, Any], charged: int
) -> None:
    async def main() -> None:
        async with queued(sends(whole(answer)), units=units) as queue:
            job = an_inference(queue, prompt_tokens=known, received_bytes=received_bytes)
            result = await queue.run(job)
            assert queue.stage.received == [TENSORS]
            assert body_of(result) == answer | {"model_name": "chat"}
            assert result.usage is not None
            is_told = (result.usage.source is UsageSource.UPSTREAM) == (charged != 23)
            assert is_told
            assert queue.charge(job, result) == (charged, 0)

    asyncio.run(main())


@pytest.mark.parametrize("units", [None, Units(Per.REQUEST)])
def test_a_model_that_changed_its_protocol_fails_jobs_of_the_other_and_is_not_asked(units: Units | None) -> None:
    async def main() -> None:
        async with queued(sends(whole(completion(usage(7, 3)))), units=units) as queue:
            job = an_inference(queue, prompt_tokens=1) if units is None else a_response(queue)
            result = await queue.run(job)
            assert (result.status, result.http_status) == (JobStatus.FAILED, 400)
            assert "the model does not answer this endpoint" in result.reason
            assert queue.stage.received == []
            assert queue.charge(job, result) is None

    asyncio.run(main())


def test_a_response_that_is_no_longer_understood_is_a_failed_job() -> None:
    async def main() -> None:
        async with queued(sends(whole(completion(usage(7, 3))))) as queue:
            job = a_response(queue, fashionable=True)
            result = await queue.run(job)
            assert (result.status, result.http_status, result.usage) == (JobStatus.FAILED, 400, None)
            assert "fashionable" in result.reason

    asyncio.run(main())
