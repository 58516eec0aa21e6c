"""Requests that are answered later, as their clients meet them: the same promises in every mode."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.system.canaries import ANSWER, log_lines, publish, secrets_of, told_everywhere
from tests.system.clusters import Cluster
from tests.system.deferred_routes import ASK, GENERIC, REFUSED, ROUTES, Route, answered_alike, defer, repeated_alike
from tests.system.deployments import Client, Deployment, Embedded, until
from tests.system.traces import Receiver
from tests.system.whole_traces import whole_in_each_lane

pytestmark = pytest.mark.slow

SLOW = "tokens=60 fault=slow_chunks:500"  # half a minute
HELLO: Any = [{"role": "user", "content": "Say something."}]
PLACES = 4  # jobs at once, in either mode


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Takes the spans of everything that is done here."""
    receiver = Receiver()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # ms between two batches of each process
        yield receiver
    receiver.close()


@pytest.fixture(scope="module", params=[Embedded, Cluster])
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver
) -> Iterator[Deployment]:
    deployed: Any
    folder = tmp_path_factory.mktemp(request.param.__name__)
    if request.param is Embedded:
        tracing = f"endpoint: '{receiver.url}', ratio: 1"
        deployed = Embedded(folder, tracing=tracing, traces=receiver.url, generic=GENERIC)
    else:
        traced = {"endpoint": receiver.url, "ratio": 1}
        deployed = Cluster(folder, "--traces", receiver.url, tracing=traced, generic=GENERIC)
    try:
        deployed.start()
        yield deployed
        deployed.audited()
        charges = deployed.charges()
        assert {job: rows for job, rows in charges.items() if len(rows) != 1} == {}
    finally:
        deployed.stop()


@pytest.fixture
def acme(deployment: Deployment) -> Iterator[Client]:
    with Client(deployment) as client:
        yield client


@pytest.fixture
def busy(acme: Client) -> Iterator[list[str]]:
    """Every place is taken by a slow job, so that the next one waits."""
    jobs = [acme.accepted(simulate=SLOW) for _ in range(PLACES)]
    for job in jobs:
        acme.running(job)
    yield jobs
    for job in jobs:
        acme.http.delete(f"/v1/jobs/{job}")
    for job in jobs:
        acme.ended(job)


def openai_client(deployment: Deployment) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{deployment.url}/v1", api_key=deployment.key(), max_retries=0)


def test_the_openai_client_hands_a_job_in_and_its_answer_is_what_it_would_have_been(
    deployment: Deployment, acme: Client
) -> None:
    with openai_client(deployment) as penstock:
        handed_in = penstock.chat.completions.with_raw_response.create(
            model="m", messages=HELLO, max_tokens=9, extra_headers={"Prefer": "respond-async"}
        )
    assert handed_in.status_code == 202
    assert handed_in.headers["preference-applied"] == "respond-async"
    location = handed_in.headers["location"]
    job = acme.ended(location.removeprefix("/v1/jobs/"))
    answer = openai.types.chat.ChatCompletion.model_validate(job["result"]["body"])
    assert answer.usage is not None
    assert job["status"] == "succeeded"
    assert job["result"]["status_code"] == 200
    assert (answer.model, answer.usage.completion_tokens) == ("m", 9)
    assert job["usage"]["total_tokens"] == answer.usage.total_tokens
    assert job["cost_nanos"] == 1000 * answer.usage.prompt_tokens + 2000 * answer.usage.completion_tokens
    assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["expires_at"]


def test_whoever_waits_a_little_gets_the_answer_itself(deployment: Deployment) -> None:
    with openai_client(deployment) as penstock:
        answer = penstock.chat.completions.create(
            model="m", messages=HELLO, max_tokens=4, extra_headers={"Prefer": "respond-async, wait=30"}
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_whoever_waits_too_little_gets_the_job(acme: Client) -> None:
    answer = acme.submit({"prefer": "respond-async, wait=1"}, simulate=SLOW)
    assert answer.status_code == 202
    assert acme.http.delete(answer.headers["location"]).status_code in (200, 202)
    assert acme.ended(answer.json()["id"])["status"] == "cancelled"


@pytest.mark.parametrize(
    ("endpoint", "asked"),
    [
        ("chat/completions", {"messages": HELLO, "max_tokens": 3}),
        ("completions", {"prompt": "Once", "max_tokens": 3}),
        ("embeddings", {"input": ["one", "two"]}),
        ("responses", {"input": "Once", "max_output_tokens": 3}),
    ],
)
def test_every_endpoint_has_its_path_for_jobs(acme: Client, endpoint: str, asked: dict[str, Any]) -> None:
    handed_in = acme.http.post(f"/v1/async/{endpoint}", json={"model": "m"} | asked)
    assert handed_in.status_code == 202
    job = acme.ended(handed_in.json()["id"])
    assert (job["status"], job["endpoint"]) == ("succeeded", f"/v1/{endpoint}")
    assert job["result"]["body"]["usage"]["total_tokens"] == job["usage"]["total_tokens"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_response_and_an_inference_are_the_realtime_lanes_answers_charged_once(
    deployment: Deployment, acme: Client, route: Route
) -> None:
    answered_alike(deployment, acme, route)


@pytest.mark.parametrize("number", [0, 2])
def test_a_key_of_a_response_or_an_inference_is_one_request_in_both_lanes(
    deployment: Deployment, acme: Client, number: int
) -> None:
    repeated_alike(deployment, acme, ROUTES[number], f"deferred-{number}")


def test_what_the_realtime_lane_refuses_of_these_routes_is_refused_alike_as_a_job(acme: Client) -> None:
    for path, body in REFUSED:
        at_once, later = acme.http.post(path, json=body), defer(acme, path, body)
        assert 400 <= later.status_code < 500, (path, body)
        assert (later.status_code, later.json()) == (at_once.status_code, at_once.json()), (path, body)
    stream = defer(acme, "/v1/responses", ASK | {"stream": True})
    assert (stream.status_code, stream.json()["error"]["code"]) == (400, "stream_refused")


def test_the_openai_client_hands_a_response_in_and_its_result_is_one(deployment: Deployment, acme: Client) -> None:
    with openai_client(deployment) as penstock:
        handed_in = penstock.responses.create(
            model="m", input="Say something.", max_output_tokens=9, extra_headers={"Prefer": "respond-async"}
        )
        waited = penstock.responses.create(model="m", input="Once", extra_headers={"Prefer": "respond-async, wait=30"})
    assert handed_in.status == "queued"
    response = openai.types.responses.Response.construct(**acme.ended(handed_in.id)["result"]["body"])
    assert response.usage is not None
    assert (response.status, response.usage.output_tokens) == ("incomplete", 9)
    assert (waited.status, bool(waited.output_text)) == ("completed", True)


def test_a_stream_is_refused_with_the_fix(acme: Client) -> None:
    answer = acme.submit(stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "stream_refused")
    assert "/v1/jobs/{id}/events" in answer.json()["error"]["message"]


def test_what_the_model_server_refuses_is_a_failed_job_that_costs_nothing(acme: Client) -> None:
    job = acme.ended(acme.accepted(simulate="fault=refuse:400"))
    assert (job["status"], job["result"]["status_code"], job["usage"]) == ("failed", 400, None)
    assert job["reason"]
    assert job["result"]["body"]["error"]["message"]


# --- looking -----------------------------------------------------------------------------------------------------


def events(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append({"id": lines["id"], "event": lines["event"], "job": json.loads(lines["data"])})
    return found


def test_a_jobs_events_follow_it_to_its_end_and_go_on_where_they_were_left(acme: Client) -> None:
    job = acme.accepted(simulate="tokens=4 fault=slow_chunks:200")
    told = acme.http.get(f"/v1/jobs/{job}/events")
    assert told.headers["content-type"].startswith("text/event-stream")
    assert [(each["id"], each["event"]) for each in events(told.text)] == [
        ("1", "queued"),
        ("2", "running"),
        ("3", "succeeded"),
    ]
    assert events(told.text)[-1]["job"]["result"]["status_code"] == 200
    left = acme.http.get(f"/v1/jobs/{job}/events", headers={"last-event-id": "2"})
    assert [each["event"] for each in events(left.text)] == ["succeeded"]
    assert acme.http.get(f"/v1/jobs/{job}/events", headers={"last-event-id": "3"}).status_code == 204


def test_a_look_that_waits_ends_with_the_job_or_with_its_time(acme: Client) -> None:
    job = acme.accepted(simulate="tokens=2 fault=slow_first_byte:3000")
    began_s = time.monotonic()
    assert acme.job(job, wait="500ms")["status"] in ("queued", "running")
    assert 0.4 < time.monotonic() - began_s < 2.5
    assert acme.job(job, wait="30s")["status"] == "succeeded"
    assert time.monotonic() - began_s < 20


def test_a_foreign_job_is_not_there(deployment: Deployment, acme: Client) -> None:
    job = acme.accepted()
    with Client(deployment, "other") as client:
        other = client.http
        for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/events"):
            answer = other.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
        assert other.delete(f"/v1/jobs/{job}").status_code == 404
        assert other.get("/v1/jobs").json()["data"] == []
    assert acme.ended(job)["status"] == "succeeded"


def test_a_list_is_paged_and_narrowed(acme: Client) -> None:
    jobs = [acme.accepted() for _ in range(5)]
    refused = acme.accepted(simulate="fault=refuse:400")
    for job in (*jobs, refused):
        acme.ended(job)

    def listed() -> list[str]:
        found: list[str] = []
        query = {"limit": "2"}
        while True:
            page = acme.http.get("/v1/jobs", params=query).json()
            found += [each["id"] for each in page["data"]]
            if not page["has_more"] or len(found) >= 6:
                return found[:6]
            query["cursor"] = page["next_cursor"]

    until(lambda: listed() == [refused, *reversed(jobs)])
    failed = acme.http.get("/v1/jobs", params={"state": "failed", "limit": "1"}).json()["data"]
    assert [each["id"] for each in failed] == [refused]
    assert "result" not in failed[0]
    assert acme.http.get("/v1/jobs", params={"model": "none"}).json()["data"] == []
    assert acme.http.get("/v1/jobs", params={"created_before": "2020-01-01"}).json()["data"] == []


# --- cancelling --------------------------------------------------------------------------------------------------


def test_a_job_that_waits_is_cancelled_at_once_and_never_reaches_the_model(
    deployment: Deployment, acme: Client, busy: list[str]
) -> None:
    waiting = acme.accepted()
    assert acme.job(waiting)["status"] == "queued"
    answer = acme.http.delete(f"/v1/jobs/{waiting}")
    assert (answer.status_code, answer.json()["status"], answer.json()["usage"]) == (200, "cancelled", None)
    assert acme.job(waiting)["status"] == "cancelled"
    assert waiting not in {line["request_id"] for line in deployment.model.produced()}


def test_a_job_that_runs_stops_within_5_seconds_and_pays_for_what_was_produced(
    deployment: Deployment, acme: Client
) -> None:
    job = acme.accepted(simulate="tokens=60 fault=slow_chunks:200")
    acme.running(job)
    until(lambda: acme.job(job, wait="1s")["status"] == "running")

    def line() -> dict[str, Any] | None:
        return next((line for line in deployment.model.produced() if line["request_id"] == job), None)

    cancelled_s = time.monotonic()
    assert acme.http.delete(f"/v1/jobs/{job}").status_code == 202
    until(lambda: line() is not None, bound_s=5 - (time.monotonic() - cancelled_s))
    ended = acme.ended(job)
    produced = line()
    assert produced is not None
    assert produced["outcome"] == "aborted"
    assert ended["status"] == "cancelled"
    assert 0 < ended["usage"]["completion_tokens"] <= produced["completion"] < 60
    again = acme.http.delete(f"/v1/jobs/{job}")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "job_finished")


# --- idempotency keys --------------------------------------------------------------------------------------------


def keyed(acme: Client, key: str, **body: Any) -> Any:
    return acme.submit({"idempotency-key": key}, **body)


def test_a_key_answers_a_second_time_with_what_it_answered_first(acme: Client) -> None:
    first = keyed(acme, "order-1", simulate="tokens=3")
    assert first.status_code == 202
    job = acme.ended(first.json()["id"])
    again = keyed(acme, '"order-1"', simulate="tokens=3")
    assert (again.status_code, again.json()) == (200, job["result"]["body"])
    assert again.headers["location"] == first.headers["location"]
    other = keyed(acme, "order-1", simulate="tokens=4")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")


def test_a_key_whose_job_is_under_way_is_a_conflict_that_names_the_job(acme: Client) -> None:
    first = keyed(acme, "order-2", simulate=SLOW)
    again = keyed(acme, "order-2", simulate=SLOW)
    assert (first.status_code, again.status_code) == (202, 409)
    assert first.json()["id"] in again.json()["error"]["message"]
    acme.http.delete(first.headers["location"])
    acme.ended(first.json()["id"])


def test_a_key_whose_job_was_voided_begins_another(acme: Client, busy: list[str]) -> None:
    first = keyed(acme, "order-3")
    assert acme.http.delete(first.headers["location"]).json()["status"] == "cancelled"
    second = keyed(acme, "order-3")
    assert second.status_code == 202
    assert [each.json()["id"].rpartition("-")[2] for each in (first, second)] == ["1", "2"]
    acme.http.delete(second.headers["location"])


def test_two_organisations_may_use_the_same_key(deployment: Deployment, acme: Client) -> None:
    mine = keyed(acme, "order-4")
    with Client(deployment, "other") as theirs:
        assert keyed(theirs, "order-4").status_code == 202
    assert mine.status_code == 202


def test_one_trace_follows_a_request_and_a_job_through_every_process(
    deployment: Deployment, receiver: Receiver
) -> None:
    whole_in_each_lane(deployment, receiver)


def job_services(deployment: Deployment) -> set[str]:
    """Which processes have a line about each job."""
    is_alone = isinstance(deployment, Embedded)
    return {"api"} if is_alone else {"api", "gateway", "worker", "executor", "collector"}


def test_every_process_logs_a_jobs_request_and_its_reservation_in_one_format(
    deployment: Deployment, acme: Client
) -> None:
    request = f"mine-{secrets.token_hex(8)}"
    job = acme.submit({"x-request-id": request}).json()["id"]
    acme.ended(job)
    refused = acme.submit({"x-request-id": f"{request}-refused"}, best_of=-1)
    assert refused.status_code == 400

    def services(name: str, value: str) -> set[str]:
        return {line["service"] for line in log_lines(deployment) if line.get(name) == value}

    until(lambda: services("reservation", job) == job_services(deployment))
    assert services("request_id", request) == job_services(deployment)
    for line in log_lines(deployment):
        assert {"time", "level", "service", "event"} <= line.keys()
        assert line["level"] in ("info", "warning", "error")
        if line.get("request_id") == f"{request}-refused":
            assert line["level"] == "info"


def plant(deployment: Any, acme: Client, canary: str) -> None:
    """Send it as every part of a request, to every end that a request can come to."""
    asked = acme.ask(content=canary, user=canary)
    for fault in ("tokens=20", "fault=refuse:400", "fault=garbage_body"):
        answer = acme.http.post("/v1/chat/completions", json=asked | {"metadata": {"simulate": fault}})
        assert canary not in answer.text
    for wrong in ({"messages": canary}, {"n": canary}, {"api_key": canary}, {"stream": canary}):
        for headers in ({}, {"prefer": "respond-async"}):
            answer = acme.http.post("/v1/chat/completions", json=asked | wrong, headers=headers)
            assert 400 <= answer.status_code < 500
            assert canary not in answer.text
    acme.submit(model=canary, content=canary)
    acme.http.post("/v1/chat/completions", content=json.dumps(asked)[:-1])
    acme.http.get("/v1/usage", headers={"authorization": f"Bearer {deployment.key()[:-1]}x", "cookie": canary})
    for path in ("/v1/chat/completions", "/v1/async/chat/completions"):
        token = f"eyJhbGciOiJSUzI1NiJ9.{canary}.{canary}"
        assert acme.http.post(path, json=asked, headers={"authorization": f"Bearer {token}"}).status_code == 401
    for fault in ("tokens=20", "fault=refuse:400", "fault=garbage_body"):
        acme.ended(acme.accepted(content=canary, user=canary, simulate=fault))
    if isinstance(deployment, Cluster):
        publish(deployment, "penstock.jobs", "jobs.m.standard.0", f"no job: {canary}")
        publish(deployment, "penstock.results", "results", json.dumps({"job": canary, "body": canary}))
        until(lambda: sum("dead letter" in line["event"] for line in log_lines(deployment)) >= 2)


def test_prompts_answers_keys_tokens_and_peppers_are_found_nowhere_once_both_lanes_are_done_with_them(
    deployment: Deployment, acme: Client, receiver: Receiver
) -> None:
    canary = f"canary-{secrets.token_hex(12)}"
    plant(deployment, acme, canary)
    until(lambda: len(receiver.spans) > 20)
    found = told_everywhere(deployment, receiver)
    assert len(found) > 10
    for name, secret in {"canary": canary.encode(), **secrets_of(deployment)}.items():
        assert (name, sorted(at for at, told in found.items() if secret in told)) == (name, [])
    assert {at.split()[0] for at, told in found.items() if ANSWER.encode() in told} == {"results"}
