"""Jobs over HTTP: what asks for one, how it is answered, and every refusal with its fix."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.api.preferences import Preference, read_preference
from penstock.errors import Conflict, StoreUnavailable
from penstock.lanes.accepting import Accepted, Relayed, Replayed
from penstock.ports import JobState
from penstock.quota.events import Usage
from tests.api.door import MODEL_TOKEN, NARROW_TOKEN, NOW_MS, OLD_TOKEN, OTHER_TOKEN, TOKEN, Answer, Door, chat_body

MODELS = ("chat-small", "meta-llama/Llama-3.1-8B-Instruct")
ASYNC = (("prefer", "respond-async"),)


def submit(door: Door, *headers: tuple[str, str], **more: object) -> Answer:
    return door.ask("POST", "/v1/chat/completions", chat_body(**more), headers=(*ASYNC, *headers))


def a_job(door: Door) -> str:
    return str(submit(door).json()["id"])


# --- handing in --------------------------------------------------------------------------------------------------


def test_respond_async_is_answered_202_with_where_to_look_and_the_limits(door: Door) -> None:
    answer = submit(door)
    job = answer.json()["id"]
    assert answer.status == 202
    assert answer.json() == {"id": job, "object": "job", "status": "queued", "model": "chat-small"}
    assert answer.headers["location"] == f"/v1/jobs/{job}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert door.lane.seen == []
    record = door.watcher.last()
    assert (record.lane, record.outcome, record.status) == ("queue", "accepted", 202)


@pytest.mark.parametrize("value", ["return=minimal", "wait=5", "handling=lenient"])
def test_another_preference_changes_nothing(door: Door, value: str) -> None:
    answer = door.ask("POST", "/v1/chat/completions", chat_body(), headers=(("prefer", value),))
    assert (answer.status, len(door.shelf.asked)) == (200, 0)


@pytest.mark.parametrize(
    ("value", "preference"),
    [
        (b"respond-async", Preference(True, 0)),
        (b"Respond-Async, Wait=10", Preference(True, 10)),
        (b'wait="7" , respond-async;x=y', Preference(True, 7)),
        (b"respond-async, wait=99999999999", Preference(True, 60)),
        (b"respond-async, wait=soon", Preference(True, 0)),
        (b"wait=3", Preference(False, 3)),
        (b"\xff, =, ;", Preference(False, 0)),
    ],
)
def test_a_preference_is_read_as_far_as_it_is_understood(value: bytes, preference: Preference) -> None:
    assert read_preference(value) == preference


def test_two_prefer_headers_count_as_one(door: Door) -> None:
    answer = door.ask("POST", "/v1/chat/completions", chat_body(), headers=(("prefer", "wait=1"), *ASYNC))
    assert answer.status == 202


def test_the_acceptor_gets_the_body_as_sent_and_nothing_else_of_the_client_but_five_things(door: Door) -> None:
    submit(door, ("idempotency-key", '"k 1"'), ("traceparent", "00-1-2-01"), ("x-request-id", "mine"))
    (asked,) = door.shelf.asked
    assert json.loads(asked.raw) == chat_body()
    assert (asked.idempotency_key, asked.traceparent, asked.authorization) == ("k 1", "00-1-2-01", f"Bearer {TOKEN}")
    assert asked.request.record.request_id == "mine"
    assert len(asked.key_macs) == 2


@pytest.mark.parametrize("stream", [True])
def test_a_stream_is_refused_with_the_fix(door: Door, stream: bool) -> None:
    answer = submit(door, stream=stream)
    assert (answer.status, answer.error()["param"], answer.error()["code"]) == (400, "stream", "stream_refused")
    assert "leave it out" in str(answer.error()["message"])


@pytest.mark.parametrize("value", ["", '""', "x" * 256])
def test_a_bad_idempotency_key_is_refused(door: Door, value: str) -> None:
    answer = submit(door, ("idempotency-key", value))
    assert (answer.status, answer.error()["param"]) == (400, "Idempotency-Key")


def test_a_stored_answer_is_for_keys_that_may_ask_the_question_only(door: Door) -> None:
    door.shelf.answer = Replayed("j", 200, b'{"secret":1}')
    key = (*ASYNC, ("idempotency-key", "k"))
    asked = chat_body(model="meta-llama/Llama-3.1-8B-Instruct")
    for token, status in ((TOKEN, 200), (OLD_TOKEN, 200), (NARROW_TOKEN, 403), (TOKEN[:-9] + "x" * 9, 401)):
        assert door.ask("POST", "/v1/chat/completions", asked, token=token, headers=key).status == status
    outside = door.ask(
        "POST", "/v1/completions", {"model": "chat-small", "prompt": "a"}, token=NARROW_TOKEN, headers=key
    )
    assert outside.status == 403


def test_a_stored_answer_is_given_with_its_place(door: Door) -> None:
    door.shelf.answer = Replayed("j1", 502, b'{"error":{}}')
    answer = submit(door, ("idempotency-key", "k"))
    assert (answer.status, answer.body, answer.headers["location"]) == (502, b'{"error":{}}', "/v1/jobs/j1")


def test_what_the_gateway_says_is_passed_on(door: Door) -> None:
    door.shelf.answer = Relayed(429, b'{"error":{"message":"no"}}', (("retry-after", "3"),))
    answer = submit(door)
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (429, b'{"error":{"message":"no"}}', "3")
    door.shelf.answer = StoreUnavailable("the queue is away", code="queue_unavailable")
    answer = submit(door)
    assert (answer.status, answer.error()["code"]) == (503, "queue_unavailable")
    assert answer.headers["retry-after"] == "1"
    door.shelf.answer = Conflict("under way", code="request_under_way")
    assert submit(door).status == 409


def test_whoever_waits_gets_the_answer_or_the_job_after_the_time(door: Door) -> None:
    job = a_job(door)
    door.shelf.end(job, body='{"id":"x"}')
    door.shelf.answer = Accepted(job)
    answer = door.ask("POST", "/v1/chat/completions", chat_body(), headers=(("prefer", "respond-async, wait=9"),))
    assert (answer.status, answer.json(), answer.headers["preference-applied"]) == (200, {"id": "x"}, "wait=9")
    assert answer.headers["location"] == f"/v1/jobs/{job}"
    door.shelf.end(job, state=JobState.FAILED, http_status=502, body="{}")
    answer = door.ask("POST", "/v1/chat/completions", chat_body(), headers=(("prefer", "respond-async, wait=9"),))
    assert (answer.status, answer.json()["status"]) == (202, "failed")


CHAT = {"id": "c", "object": "chat.completion", "choices": [{"message": {"content": "hello"}}], "usage": None}


@pytest.mark.parametrize(
    ("status", "stored", "shown"),
    [
        (200, {"id": "resp_1", "object": "response", "output": []}, {"id": "resp_1"}),
        (200, CHAT, {"id": "resp_018bcfe56800000000000000000000ff", "object": "response"}),
        (502, {"error": {"message": "broke off"}}, {"error": {"message": "broke off"}}),
    ],
    ids=["of a job", "of the realtime lane", "a failure"],
)
def test_the_stored_answer_of_a_response_is_a_response_whichever_lane_answered_it(
    door: Door, status: int, stored: dict[str, Any], shown: dict[str, Any]
) -> None:
    door.shelf.answer = Replayed("018bcfe56800000000000000000000ff", status, json.dumps(stored).encode())
    asked = {"model": "chat-small", "input": "hi"}
    answer = door.ask("POST", "/v1/responses", asked, headers=(*ASYNC, ("idempotency-key", "k")))
    assert answer.status == status
    assert answer.json() == answer.json() | shown


@pytest.mark.parametrize(
    ("route", "path", "body"),
    [
        ("responses", "/v1/responses", {"model": "chat-small", "input": "hi"}),
        ("infer", "/v2/models/chat-small/infer", {"inputs": [{"name": "x", "shape": [1], "data": [1]}]}),
    ],
)
def test_responses_and_inferences_are_jobs_as_they_were_sent_and_known_by_their_endpoint(
    door: Door, route: str, path: str, body: dict[str, Any]
) -> None:
    answer = door.ask("POST", path, body, headers=ASYNC)
    (asked,) = door.shelf.asked
    assert (answer.status, json.loads(asked.raw), asked.request.route) == (202, body, route)
    job = str(answer.json()["id"])
    door.shelf.end(job, route=route)
    assert door.ask("GET", f"/v1/jobs/{job}").json()["endpoint"] == path


# --- looking -----------------------------------------------------------------------------------------------------


def test_a_job_shows_all_that_is_known_of_it(door: Door) -> None:
    job = a_job(door)
    door.shelf.end(
        job, started_at_ms=NOW_MS + 50, route="chat.completions", usage=Usage(10, 5, 2), cost_nanos=77, body='{"a":[1]}'
    )
    told = door.ask("GET", f"/v1/jobs/{job}").json()
    assert told == {
        "id": job,
        "object": "job",
        "status": "succeeded",
        "model": "chat-small",
        "endpoint": "/v1/chat/completions",
        "team": None,
        "key": TOKEN.split("_")[2],
        "created_at": "2025-11-01T12:26:40.001Z",
        "started_at": "2025-11-01T12:26:40.050Z",
        "finished_at": "2025-11-01T12:26:40.099Z",
        "expires_at": "2025-11-01T12:27:40Z",
        "cancel_requested": False,
        "reason": None,
        "usage": {
            "prompt_tokens": 10,
            "cached_tokens": 2,
            "completion_tokens": 5,
            "total_tokens": 15,
            "source": "upstream",
        },
        "cost_nanos": 77,
        "result": {"status_code": 200, "body": {"a": [1]}},
    }


@pytest.mark.parametrize("path", ["/v1/jobs/{id}", "/v1/jobs/{id}/events"])
def test_a_foreign_job_a_job_outside_the_scope_and_none_look_the_same(door: Door, path: str) -> None:
    job = a_job(door)
    unknown = door.ask("GET", path.replace("{id}", "unknown"))
    foreign = door.ask("GET", path.replace("{id}", job), token=OTHER_TOKEN)
    assert (unknown.status, foreign.status) == (404, 404)
    assert unknown.body == foreign.body
    assert unknown.error()["code"] == "job_not_found"


def test_a_key_whose_scope_excludes_jobs_sees_none(door: Door) -> None:
    assert door.ask("GET", "/v1/jobs", token=NARROW_TOKEN).status == 403
    assert door.ask("GET", f"/v1/jobs/{a_job(door)}", token=NARROW_TOKEN).status == 403


def test_a_key_for_some_models_sees_their_jobs_only(door: Door) -> None:
    mine, other = (str(submit(door, model=model).json()["id"]) for model in MODELS)
    assert door.ask("GET", f"/v1/jobs/{mine}", token=MODEL_TOKEN).status == 200
    assert door.ask("GET", f"/v1/jobs/{other}", token=MODEL_TOKEN).status == 404
    assert door.ask("DELETE", f"/v1/jobs/{other}", token=MODEL_TOKEN).status == 404
    for path in ("/v1/jobs", f"/v1/jobs?model={MODELS[0]}", f"/v1/jobs?model={MODELS[1]}"):
        assert door.ask("GET", path, token=MODEL_TOKEN).status == 200
    assert [query.models for query in door.shelf.queries] == [("chat-small",), ("chat-small",), ()]


@pytest.mark.parametrize("wait", ["61s", "2m", "-1s", "soon", "1e3", "", "99999999999999999999"])
def test_a_wait_out_of_bounds_is_refused_with_the_bounds(door: Door, wait: str) -> None:
    answer = door.ask("GET", f"/v1/jobs/{a_job(door)}?wait={wait}")
    assert answer.status == 400
    assert "0s to 60s" in str(answer.error()["message"])


@pytest.mark.parametrize("wait", ["0", "0s", "50ms"])
def test_a_wait_that_passes_shows_the_job_as_it_stands(door: Door, wait: str) -> None:
    assert door.ask("GET", f"/v1/jobs/{a_job(door)}?wait={wait}").json()["status"] == "queued"


def test_an_unknown_parameter_is_refused(door: Door) -> None:
    assert door.ask("GET", f"/v1/jobs/{a_job(door)}?waits=1").status == 400
    assert door.ask("GET", "/v1/jobs?status=queued").status == 400


@pytest.mark.parametrize(("last", "events"), [("", ["1", "3"]), ("1", ["3"]), ("bad", ["1", "3"]), ("²", ["1", "3"])])
def test_events_begin_after_the_last_one_seen(door: Door, last: str, events: list[str]) -> None:
    job = a_job(door)
    door.shelf.end(job)
    answer = door.ask("GET", f"/v1/jobs/{job}/events", headers=(("last-event-id", last),))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    blocks = [
        dict(line.split(": ", 1) for line in block.split("\n")) for block in answer.body.decode().split("\n\n")[:-1]
    ]
    assert [block["id"] for block in blocks] == events
    assert json.loads(blocks[-1]["data"])["status"] == blocks[-1]["event"] == "succeeded"


def test_a_client_that_has_seen_the_end_is_told_not_to_come_again(door: Door) -> None:
    job = a_job(door)
    door.shelf.end(job)
    assert door.ask("GET", f"/v1/jobs/{job}/events", headers=(("last-event-id", "3"),)).status == 204


# --- lists -------------------------------------------------------------------------------------------------------


def test_pages_follow_by_their_cursor(door: Door) -> None:
    jobs = [a_job(door) for _ in range(5)]
    seen: list[str] = []
    path = "/v1/jobs?limit=2"
    while True:
        page: Any = door.ask("GET", path).json()
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        path = f"/v1/jobs?limit=2&cursor={page['next_cursor']}"
    assert seen == jobs[::-1]
    assert page["next_cursor"] is None
    assert "result" not in page["data"][0]


def test_filters_reach_the_database(door: Door) -> None:
    door.ask("GET", "/v1/jobs?state=failed&model=m&created_after=2025-11-01&created_before=1762000000")
    (query,) = door.shelf.queries
    assert (query.organisation, query.state, query.models) == ("acme", JobState.FAILED, ("m",))
    assert (query.created_from_ms, query.created_before_ms, query.count_max) == (1761955200000, 1762000000000, 21)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("state=done", "state"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("created_after=yesterday", "created_after"),
        ("cursor=%21", "cursor"),
        ("cursor=AAAA", "cursor"),
        ("cursor=YWJjLmQ", "cursor"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused_with_its_name(door: Door, query: str, param: str) -> None:
    answer = door.ask("GET", f"/v1/jobs?{query}")
    assert (answer.status, answer.error()["param"]) == (400, param)


# --- cancelling --------------------------------------------------------------------------------------------------


def test_a_waiting_job_is_cancelled_at_once_and_then_never_again(door: Door) -> None:
    job = a_job(door)
    answer = door.ask("DELETE", f"/v1/jobs/{job}")
    assert (answer.status, answer.json()["status"]) == (200, "cancelled")
    again = door.ask("DELETE", f"/v1/jobs/{job}")
    assert (again.status, again.error()["code"]) == (409, "job_finished")
    assert door.ask("DELETE", f"/v1/jobs/{job}", token=OTHER_TOKEN).status == 404
