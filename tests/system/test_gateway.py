"""The Bento gateway with a real Redis and RabbitMQ: 202 only for what is queued, and the API service's answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.rabbitmq.topology import shard_name
from penstock.api.bodies import READERS, decode
from penstock.api.deferring import stream_refused
from penstock.api.failures import failure
from penstock.errors import PenstockError
from penstock.lanes.accepting import job_prefix
from penstock.lanes.credentials import Credential, Credentials
from penstock.lanes.jobs import read_job
from penstock.quota.definitions import Kind, Metric
from penstock.quota.events import Usage
from penstock.quota.operations import Settle, Void
from tests.counts import TORTURE
from tests.system.bento import CHAT, PEPPER, Answer, Cluster, Gateway, send
from tests.system.gateway_bodies import CASES, MEASURED, Sent, forwarded, spoilt_words

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("streams")]

QUEUE = shard_name("m", 0)
DAY = (Metric.TOKENS, Kind.WINDOW, 86_400_000, 1_000_000)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def gateway(cluster: Cluster) -> Iterator[Gateway]:
    started = Gateway(cluster.folder, cluster)
    started.start()
    yield started
    started.stop()


def jobs_taken(cluster: Cluster, queue: str = QUEUE) -> list[dict[str, Any]]:
    return [json.loads(taken["payload"]) for taken in cluster.take(queue)]


def void(cluster: Cluster, organisation: str, job: str) -> None:
    cluster.apply(Void(organisation=organisation, caller_now_ms=time.time_ns() // 1_000_000, reservation=job))


def test_an_accepted_job_is_held_queued_and_named(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("happy", DAY)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = gateway.post(key, x_request_id="mine-1", traceparent=trace)
    assert answer.status == 202, answer.raw
    job = answer.body["id"]
    assert answer.headers["location"] == f"/v1/jobs/{job}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000000"
    (taken,) = cluster.take(QUEUE)
    message = read_job(taken["payload"].encode())
    assert message.job == job
    assert message.request == {**json.loads(CHAT), "max_tokens": 50}
    assert message.reserve.body_bytes == len(CHAT)
    assert message.reserve.outputs_bound == 50
    assert message.request_id == "mine-1"
    assert taken["properties"]["message_id"] == job
    headers = {"traceparent": trace, "x-request-id": "mine-1"}
    assert taken["properties"]["headers"] == {**headers, "x-delivery-count": 0}  # the broker's own
    assert taken["properties"]["delivery_mode"] == 2
    (hold,) = cluster.inspect("happy").holds
    assert (hold.reservation, hold.lane) == (job, "queue")
    void(cluster, "happy", job)


def test_the_api_services_word_for_a_verified_subject_is_taken_and_a_forged_or_late_one_is_not(
    cluster: Cluster, gateway: Gateway
) -> None:
    cluster.define("people")
    subject = Credential("people", "jwt.corp~" + "0" * 20, ("",))
    soon_ms = time.time_ns() // 1_000_000 + 30_000
    forged = Credentials((b"a pepper of somebody else",)).vouch(subject, expires_at_ms=soon_ms)
    late = Credentials((PEPPER.encode(),)).vouch(subject, expires_at_ms=soon_ms - 60_000)
    for word in (forged, late):
        assert gateway.post(word).status == 401
    answer = gateway.post(Credentials((PEPPER.encode(),)).vouch(subject, expires_at_ms=soon_ms))
    assert answer.status == 202, answer.raw
    (job,) = jobs_taken(cluster)
    assert (job["reserve"]["key"], job["reserve"]["key_mac"]) == (subject.key, "")
    assert "authorization" not in json.dumps(job)
    void(cluster, "people", job["job"])


def test_a_model_with_a_slash_has_a_queue_of_its_own(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("slash")
    answer = gateway.post(key, CHAT.replace(b'"m"', b'"org/m"'))
    assert answer.status == 202, answer.raw
    (job,) = jobs_taken(cluster, shard_name("org/m", 0))
    assert job["model"] == "org/m"
    assert job["reserve"]["outputs_bound"] == 8


def test_numbers_and_unknown_fields_of_a_body_arrive_as_they_were_sent(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("exact")
    body = CHAT[:-1] + b',"seed":12345678901234567890,"temperature":0.10,"x":{"b":1e2,"a":"<&>\xf0\x9f\x98\x80"}}'
    assert gateway.post(key, body).status == 202
    (taken,) = cluster.take(QUEUE)
    assert '"seed":12345678901234567890' in taken["payload"]
    assert '"temperature":0.10' in taken["payload"]
    assert json.loads(taken["payload"])["request"] == {**json.loads(body), "max_tokens": 50}


def test_bodies_are_judged_and_measured_as_by_the_api_service(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("judged")
    for route, path, body in CASES:
        answer = gateway.post(key, body, path)
        try:
            shape = READERS[route](decode(body, depth_max=64), prompts_max=2048)
            if shape.stream:
                raise stream_refused()
        except PenstockError as error:
            expected = failure(error)
            assert (answer.status, answer.body) == (expected.status, json.loads(expected.body)), body[:200]
            continue
        assert answer.status == 202, (body[:200], answer.raw)
        (job,) = jobs_taken(cluster)
        reserve = job["reserve"]
        most = 50 if shape.max_tokens is None else min(shape.max_tokens, 4096)
        if route != "embeddings":
            written = {job["request"]["max_tokens"], job["request"].get("max_completion_tokens", most)}
            assert written == {most}, body
        measured = (reserve["prompts"], reserve["outputs_bound"], reserve["body_bytes"])
        assert measured == (shape.prompts, shape.outputs * most, len(body) if shape.bytes_bound else 2**31 - 1), body


@pytest.mark.parametrize("sent", MEASURED, ids=lambda sent: f"{sent.route} {sent.held}")
def test_what_the_api_service_measured_is_reserved_and_queued_as_it_was_sent(
    cluster: Cluster, gateway: Gateway, sent: Sent
) -> None:
    key = cluster.define("measured", DAY)
    accepted = forwarded(gateway, key, sent)
    (taken,) = cluster.take(shard_name(sent.model, 0))
    job = read_job(taken["payload"].encode())
    assert (job.job, job.route, job.model) == (accepted, sent.route, sent.model)
    assert (job.request, job.received_bytes) == (json.loads(sent.body), sent.received_bytes)
    assert '"exact":0.10' in taken["payload"]
    reserve = job.reserve
    assert (reserve.body_bytes, reserve.prompt_tokens, reserve.outputs_bound) == sent.measured
    assert reserve.fingerprint == sent.fingerprint
    assert set(taken["properties"]["headers"]) == {"x-request-id", "x-delivery-count"}
    (hold,) = cluster.inspect("measured").holds
    assert (hold.reservation, hold.tokens_held) == (accepted, sent.held)
    void(cluster, "measured", accepted)


def test_a_size_that_the_api_service_did_not_tell_of_this_body_is_refused(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("unmeasured", DAY)
    for path, body, word in spoilt_words(time.time_ns() // 1_000_000):
        headers = {"x_penstock_measured": word} if word else {}
        answer = gateway.post(key, body, path, **headers)
        assert (answer.status, answer.body["error"]["code"]) == (400, "not_measured"), (path, word)
    assert cluster.inspect("unmeasured").holds == ()


@pytest.mark.parametrize(
    ("status", "code", "change"),
    [
        (404, "not_found", {"path": "models"}),
        (405, "method_not_allowed", {"method": "PUT"}),
        (400, "query_refused", {"path": "embeddings?Authorization=Bearer%20psk_x"}),
        (401, "invalid_api_key", {"authorization": ""}),
        (401, "invalid_api_key", {"authorization": "Bearer psk_acme_k1_" + "0" * 72}),
        (401, "invalid_api_key", {"authorization": "", "cookie": "Authorization=Bearer"}),
        (415, None, {"content_type": "text/plain"}),
        (415, None, {"content_type": "multipart/form-data; boundary=x"}),
        (413, "body_too_large", {"body": b"[" + b" " * 8_000_000 + b"]"}),
        (400, "invalid_json", {"body": b'{"model":"\xff"}'}),
        (404, "model_not_found", {"body": CHAT.replace(b'"m"', b'"none.of/ours"')}),
        (400, None, {"body": CHAT.replace(b'"m"', b'"g"')}),
        (400, None, {"idempotency_key": "k" * 256}),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused_before_anything_is_held(
    cluster: Cluster, gateway: Gateway, status: int, code: str | None, change: dict[str, Any]
) -> None:
    key = cluster.define("refused")
    asked: dict[str, Any] = {
        "path": "chat/completions", "body": CHAT, "method": "POST", "authorization": f"Bearer {key}",
        "content_type": "application/json", **change,
    }  # fmt: skip
    path, body, method = asked.pop("path"), asked.pop("body"), asked.pop("method")
    answer = send(gateway.url(path), body, method, **asked)
    assert (answer.status, answer.body["error"]["code"]) == (status, code), answer.raw
    assert answer.headers["x-request-id"]
    assert cluster.inspect("refused").holds == ()


def test_a_key_of_the_older_pepper_still_passes(cluster: Cluster, tmp_path: Path) -> None:
    key = cluster.define("rotated")
    newer = Gateway(tmp_path, cluster, PENSTOCK_PEPPER="p" * 40, PENSTOCK_PEPPER_PREVIOUS=PEPPER)
    newer.start()
    try:
        assert newer.post(key).status == 202
        assert newer.post(key[:-73] + "1" + key[-72:]).status == 401
    finally:
        newer.stop()
    jobs_taken(cluster)


def test_the_quotas_refusals_are_the_api_services_answers(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("small", (Metric.TOKENS, Kind.WINDOW, 86_400_000, 200))
    first = gateway.post(key)
    assert first.status == 202
    held = gateway.post(key)
    assert (held.status, held.body["error"]["type"]) == (429, "tokens")
    assert held.body["error"]["code"] == "rate_limit_exceeded"
    assert (held.headers["retry-after-ms"], held.headers["retry-after"]) == ("1000", "1")
    assert "more is held by requests in flight" in held.body["error"]["message"]
    now_ms = time.time_ns() // 1_000_000
    job = first.body["id"]
    cluster.apply(Settle(organisation="small", caller_now_ms=now_ms, reservation=job, usage=Usage(60, 47)))
    used_up = gateway.post(key)
    assert (used_up.status, used_up.body["error"]["code"]) == (429, "insufficient_quota")
    assert used_up.headers["x-should-retry"] == "false"
    assert used_up.headers["ratelimit-policy"] == '"tpd";q=200;w=86400'
    never = gateway.post(key, CHAT[:-1] + b',"n":4}')
    assert (never.status, never.body["error"]["code"]) == (400, "larger_than_limit")
    assert (len(jobs_taken(cluster)), cluster.inspect("small").holds) == (1, ())


def test_scopes_and_keys_are_the_quotas_to_judge(cluster: Cluster, gateway: Gateway) -> None:
    scoped = cluster.define("scoped", models=frozenset({"other"}))
    assert gateway.post(scoped).body["error"]["code"] == "out_of_scope"
    revoked = cluster.define("revoked", revoked=True)
    assert gateway.post(revoked).status == 401
    undefined = cluster.define("undefined").replace("undefined", "undefinee")
    assert gateway.post(undefined).status == 401


def test_one_idempotency_key_is_one_job(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("once", DAY)
    first = gateway.post(key, idempotency_key='"order-7"')
    job = first.body["id"]
    assert (first.status, job) == (202, job_prefix("once", "order-7") + "-1")
    again = gateway.post(key, idempotency_key="order-7")
    assert (again.status, again.body["error"]["code"]) == (409, "request_under_way")
    assert again.headers["location"] == f"/v1/jobs/{job}"
    other = gateway.post(key, CHAT.replace(b"hi", b"ho"), idempotency_key="order-7")
    assert (other.status, other.body["error"]["code"]) == (422, "idempotency_mismatch")
    void(cluster, "once", job)
    second = gateway.post(key, idempotency_key="order-7")
    assert (second.status, second.body["id"]) == (202, job_prefix("once", "order-7") + "-2")
    now_ms = time.time_ns() // 1_000_000
    cluster.apply(Settle(organisation="once", caller_now_ms=now_ms, reservation=second.body["id"], usage=Usage(1, 1)))
    ended = gateway.post(key, idempotency_key="order-7")
    assert (ended.status, ended.body["error"]["code"]) == (409, "request_ended")
    assert ended.headers["location"] == f"/v1/jobs/{second.body['id']}"
    assert len(jobs_taken(cluster)) == 2


def test_a_full_queue_voids_the_hold_and_says_503(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("full", DAY)
    policy = {"pattern": "^jobs\\.m\\.", "apply-to": "queues", "priority": 99,
              "definition": {"max-length": 1, "overflow": "reject-publish"}}  # fmt: skip
    cluster.manage("PUT", "policies", "penstock", "full", body=policy)
    try:
        answers = [gateway.post(key) for _ in range(8)]
    finally:
        cluster.manage("DELETE", "policies", "penstock", "full")
    refused = [answer for answer in answers if answer.status == 503]
    assert refused
    assert refused[-1].headers["retry-after"] == "1"
    accepted = [answer.body["id"] for answer in answers if answer.status == 202]
    assert [job["job"] for job in jobs_taken(cluster)] == accepted
    assert sorted(hold.reservation for hold in cluster.inspect("full").holds) == sorted(accepted)


def test_a_broker_that_freezes_then_dies_leaves_no_hold(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("broken", DAY)
    cluster.broker.freeze()
    unknown = gateway.post(key)
    cluster.broker.thaw()
    cluster.broker.kill()
    began_s = time.monotonic()
    down = gateway.post(key)
    assert (unknown.status, down.status) == (503, 503)
    assert time.monotonic() - began_s < 1
    cluster.broker.start()
    assert cluster.inspect("broken").holds == ()
    while gateway.post(key).status != 202:
        assert time.monotonic() - began_s < 60
    jobs_taken(cluster)


ALARMS = (("set_vm_memory_high_watermark", "0.0000001", "0.4"), ("set_disk_free_limit", "900000GB", "50MB"))


@pytest.mark.torture
def test_a_broker_that_blocks_and_a_queue_that_is_gone_leave_no_hold(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("blocked", DAY)
    answers = [gateway.post(key)]
    for alarm, blocked, free in ALARMS if TORTURE else ALARMS[-1:]:
        cluster.broker.control(alarm, blocked)
        began_s = time.monotonic()
        while answers[-1].status == 202:  # until the broker's next look at what it has
            assert time.monotonic() - began_s < 60
            answers.append(gateway.post(key))
        cluster.broker.control(alarm, free)
        while answers[-1].status != 202:
            assert time.monotonic() - began_s < 120
            answers.append(gateway.post(key))
    cluster.manage("DELETE", "queues", "penstock", shard_name("org/m", 0))
    answers.append(gateway.post(key, CHAT.replace(b'"m"', b'"org/m"')))
    refused = [answer.body["error"]["code"] for answer in answers if answer.status == 503]
    assert all(answer.headers["retry-after"] for answer in answers if answer.status == 503)
    assert len(refused) >= 2
    assert set(refused) == {"queue_unavailable"}
    accepted = {answer.body["id"] for answer in answers if answer.status == 202}
    assert {hold.reservation for hold in cluster.inspect("blocked").holds} == accepted
    assert {job["job"] for job in jobs_taken(cluster)} >= accepted  # one of unknown outcome may be there, and is voided


def test_without_redis_no_job_is_taken(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("storeless", DAY)
    cluster.redis.kill()
    down = gateway.post(key)
    cluster.redis.start()
    assert (down.status, down.body["error"]["code"]) == (503, "quota_unavailable")
    assert jobs_taken(cluster) == []
    assert gateway.post(key).status == 202
    (job,) = jobs_taken(cluster)
    void(cluster, "storeless", job["job"])
    assert cluster.inspect("storeless").holds == ()


def test_a_gateway_that_is_told_to_stop_answers_what_it_began(cluster: Cluster, tmp_path: Path) -> None:
    key = cluster.define("stopping", DAY)
    stopping = Gateway(tmp_path, cluster)
    stopping.start()

    def until_gone() -> list[Answer]:
        answers = []
        try:
            while True:
                answers.append(stopping.post(key))
        except OSError:  # nobody listens any more, so nothing was begun: see below
            return answers

    with ThreadPoolExecutor(8) as clients:
        begun = [clients.submit(until_gone) for _ in range(8)]
        while len(cluster.inspect("stopping").holds) < 20:
            assert not any(client.done() for client in begun)
        stopping.stop()
        answers = [answer for client in begun for answer in client.result()]
    assert {answer.status for answer in answers} <= {202, 503}
    accepted = {answer.body["id"] for answer in answers if answer.status == 202}
    assert {job["job"] for job in jobs_taken(cluster)} == accepted
    assert {hold.reservation for hold in cluster.inspect("stopping").holds} == accepted


def test_prompts_and_secrets_are_in_no_log(cluster: Cluster, gateway: Gateway) -> None:
    key = cluster.define("canary")
    bodies = (
        CHAT.replace(b"hi", b"canary-in-a-prompt"),
        b'{"canary-in-a-prompt"',
        CHAT.replace(b'"m"', b'"canary-in-a-name"'),
    )
    for body in bodies:
        gateway.post(key, body, idempotency_key="canary-in-a-key")
    (taken,) = cluster.take(QUEUE)
    assert json.loads(taken["payload"])["organisation"] == "canary"
    assert "canary" not in json.dumps(taken["properties"])
    assert key[-72:] not in json.dumps(taken)
    log = gateway.log.read_text()
    assert "canary-in" not in log
    assert key[-72:] not in log
    assert PEPPER not in log
