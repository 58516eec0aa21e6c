"""What goes to the queue's gateway, and what comes back from it, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from penstock.adapters.http import HttpClient
from penstock.adapters.sql.job_store import Watches
from penstock.errors import Conflict, Mismatched, RequestError, StoreUnavailable
from penstock.lanes.accepting import Acceptance, Accepted, AsyncRequest, Relayed, Replayed, job_prefix
from penstock.lanes.credentials import Credentials, mac
from penstock.lanes.forwarding import GatewayAcceptor
from penstock.lanes.generic import Per, Units
from penstock.lanes.models import ServedModel, Upstream
from penstock.lanes.requests import InferenceRequest
from penstock.ports import Attempt, JobQuery, JobState, RequestRecord, StoredJob
from penstock.quota.events import EventKind
from penstock.quota.operations import Void
from tests.adapters.http.servers import Handler, answering, read_request, serving
from tests.lanes.stage import NOW_MS, ModelStore, ready_store

JOB = "018bcfe56800000000000000000000ff"


def served(name: str, units: Units | None = None) -> ServedModel:
    upstreams = (Upstream(url="http://model.test"),)
    return ServedModel(name=name, upstreams=upstreams, upstream_model=name, context=100, max_tokens=20, units=units)


MODELS = {
    "m": served("m"),
    "counted": served("counted", Units(Per.ELEMENT, "pixels")),
    "told": served("told", Units(Per.USAGE)),
}


def asked(route: str = "chat.completions", *, key: str | None = None, traceparent: str | None = None) -> AsyncRequest:
    request = InferenceRequest(
        organisation="acme", key="k1", key_mac="", route=route, model="m", body={"model": "m", "changed": True},
        fingerprint="f", body_bytes=2, prompts=1, outputs=1, max_tokens=None, stream=False, include_usage=False,
        record=RequestRecord(request_id="r1"),
    )  # fmt: skip
    return AsyncRequest(
        request=request, raw=b'{"as":"sent"}', key_macs=("aa",), idempotency_key=key,
        authorization="Bearer psk_secret", traceparent=traceparent,
    )  # fmt: skip


class Remembered:
    """A database that knows one thing of any idempotency key."""

    def __init__(self, last: Attempt | None) -> None:
        self.last = last
        self.watch = Watches().watch

    async def get(self, organisation: str, job: str) -> StoredJob | None:
        return None

    async def list(self, query: JobQuery) -> list[StoredJob]:
        return []

    async def last_attempt(self, organisation: str, prefix: str) -> Attempt | None:
        return self.last


def acceptor(client: HttpClient, port: int, last: Attempt | None, store: ModelStore) -> GatewayAcceptor:
    attest = Credentials((b"pepper",)).attest
    gateway = f"http://127.0.0.1:{port}/"
    return GatewayAcceptor(client, gateway, Remembered(last), store, store.clock, MODELS, attest=attest)


def accept(
    handler: Handler,
    request: AsyncRequest | None = None,
    *,
    last: Attempt | None = None,
    store: ModelStore | None = None,
) -> Acceptance:
    """Forward one request to a gateway that behaves like ``handler``."""

    async def main() -> Acceptance:
        async with serving(handler) as server:
            client = HttpClient()
            try:
                forwarding = acceptor(client, server.port, last, store or ready_store())
                return await forwarding.accept(request or asked())
            finally:
                await client.close()

    return asyncio.run(main())


def answer(status: str, body: bytes = b"{}", *headers: str) -> Handler:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return answering("\r\n".join(lines).encode() + body, close=True)


def forwarded(request: AsyncRequest) -> tuple[str, bytes]:
    """Head and body of the one request that a gateway gets which accepts it."""
    seen: list[tuple[str, bytes]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(f"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nlocation: /v1/jobs/{JOB}\r\n\r\n".encode())
        await writer.drain()

    accept(handle, request)
    (one,) = seen
    return one


def test_an_accepted_job_is_known_by_its_location_and_its_limits_are_passed_on() -> None:
    accepted = accept(
        answer(
            "202 Accepted", b"{}", f"Location: /v1/jobs/{JOB}", "x-ratelimit-limit-tokens: 5", "server: bento",
            "set-cookie: a=b",
        )
    )  # fmt: skip
    assert accepted == Accepted(JOB, headers=(("x-ratelimit-limit-tokens", "5"),))


@pytest.mark.parametrize(
    ("route", "path"),
    [
        ("chat.completions", "/v1/async/chat/completions"),
        ("completions", "/v1/async/completions"),
        ("embeddings", "/v1/async/embeddings"),
    ],
)
def test_the_gateway_gets_the_body_as_it_was_sent_and_five_headers_of_the_clients_at_most(
    route: str, path: str
) -> None:
    head, body = forwarded(asked(route, key="order-7", traceparent="00-a-b-01"))
    lines = head.split("\r\n")
    named = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in lines[1:] if line}
    assert (lines[0], body) == (f"POST {path} HTTP/1.1", b'{"as":"sent"}')
    assert {name: named[name] for name in named.keys() - {"host", "content-length", "connection"}} == {
        "authorization": "Bearer psk_secret",
        "content-type": "application/json",
        "idempotency-key": '"order-7"',
        "x-request-id": "r1",
        "traceparent": "00-a-b-01",
    }


@pytest.mark.parametrize(
    ("route", "model", "measured"),
    [
        ("responses", "m", {"body_bytes": 2, "prompt_tokens": None, "outputs_bound": 20, "received_bytes": 0}),
        ("infer", "counted", {"body_bytes": 2, "prompt_tokens": 3, "outputs_bound": 0, "received_bytes": 0}),
        ("infer", "told", {"body_bytes": 2**31 - 1, "prompt_tokens": None, "outputs_bound": 0, "received_bytes": 2}),
    ],
)
def test_what_the_gateway_cannot_measure_comes_with_our_word_of_it(
    route: str, model: str, measured: dict[str, Any]
) -> None:
    request = asked(route)
    request.request.model = model
    request.request.outputs = 1 if route == "responses" else 0
    request.request.body = {"inputs": [{"name": "pixels", "data": [[1, 2], 3]}]}
    head, body = forwarded(request)
    (word,) = [line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("x-penstock-measured")]
    prefix, facts, signature = word.split("_")
    assert signature == mac(f"{prefix}_{facts}", b"pepper")
    assert (head.split()[1], body) == (f"/v1/async/{route}", b'{"as":"sent"}')
    assert json.loads(base64.urlsafe_b64decode(facts)) == measured | {
        "route": route, "model": model, "fingerprint": "f", "prompts": 1, "expires_at_ms": NOW_MS + 30_000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("route", "model", "inputs", "error"),
    [
        ("chat.completions", "none", [], "does not exist"),
        ("chat.completions", "counted", [], "the model does not answer this endpoint"),
        ("infer", "m", [], "the model does not answer this endpoint"),
        ("infer", "counted", [{"name": "other", "data": [1]}], "inputs: pixels is missing"),
        ("infer", "counted", [{"name": "pixels", "data": [1] * 101}], "has 101 units, and this model takes 100"),
    ],
)
def test_what_a_model_does_not_take_is_refused_before_the_gateway_is_asked(
    route: str, model: str, inputs: list[Any], error: str
) -> None:
    request = asked(route)
    request.request.model = model
    request.request.body = {"inputs": inputs}
    with pytest.raises(RequestError, match=error):
        accept(answer("202 Accepted", b"{}", f"Location: /v1/jobs/{JOB}"), request)


PREFIX = job_prefix("acme", "order-7")
ENDED = StoredJob(
    id=f"{PREFIX}-1", organisation="acme", team=None, key="k1", model="m", state=JobState.SUCCEEDED, created_at_ms=1,
    deadline_ms=2, http_status=200, body='{"id":"x"}',
)  # fmt: skip
LAST = Attempt(number=1, ended=EventKind.POSTED, job=ENDED, fingerprint="f")


def test_an_ended_jobs_answer_comes_from_the_database_and_the_gateway_is_not_asked() -> None:
    seen: list[object] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))

    assert accept(handle, asked(key="order-7"), last=LAST) == Replayed(f"{PREFIX}-1", 200, b'{"id":"x"}')
    with pytest.raises(Mismatched):
        accept(handle, asked(key="order-7"), last=replace(LAST, fingerprint="other"))
    assert seen == []


@pytest.mark.parametrize(
    "last",
    [replace(LAST, ended=EventKind.VOIDED), replace(LAST, job=None)],
    ids=["cancelled", "answer deleted"],
)
def test_a_key_that_only_the_ledger_remembers_is_not_used_for_another_job(last: Attempt) -> None:
    with pytest.raises(Conflict) as caught:
        accept(answer("202 Accepted"), asked(key="order-7"), last=last)
    assert caught.value.code == "idempotency_key_used"
    store = ready_store()
    store.now(Void(organisation="acme", caller_now_ms=NOW_MS, reservation=f"{PREFIX}-1"))
    gateway = answer("202 Accepted", b"{}", f"location: /v1/jobs/{PREFIX}-2")
    assert accept(gateway, asked(key="order-7"), last=last, store=store) == Accepted(f"{PREFIX}-2")


@pytest.mark.parametrize("status", ["409 Conflict", "429 Too Many Requests", "503 Service Unavailable"])
def test_an_error_is_passed_on_with_when_to_come_again(status: str) -> None:
    body = b'{"error":{"message":"no"}}'
    relayed = accept(answer(status, body, "Retry-After: 3", "retry-after-ms: 2500", "x-internal: secret"))
    assert relayed == Relayed(int(status[:3]), body, (("retry-after", "3"), ("retry-after-ms", "2500")))


@pytest.mark.parametrize(
    "handler",
    [
        answer("202 Accepted"),
        answer("202 Accepted", b"{}", "location: https://elsewhere.test/v1/jobs/1"),
        answer("404 Not Found", b"404 page not found"),
        answer("502 Bad Gateway", b'"amqp: connection to 10.0.0.7 refused"'),
        answer("302 Found", b"{}", f"location: /v1/jobs/{JOB}"),
        answering(b"HTTP/1.1 202 Accepted\r\ncontent-length: 10\r\n\r\n{}", close=True),
        answering(b"", close=True),
    ],
    ids=["no location", "foreign location", "no JSON", "no error", "a redirect", "broken off", "nothing"],
)
def test_whatever_else_it_says_is_a_503_that_shows_none_of_it(handler: Handler) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        accept(handler)
    assert caught.value.code == "queue_unavailable"
    assert "10.0.0.7" not in caught.value.message


def test_a_gateway_that_is_away_is_a_503_at_once_which_says_that_nothing_was_accepted() -> None:
    async def main() -> Any:
        async with serving(answering(b"")) as server:
            port = server.port
        client = HttpClient()
        try:
            return await acceptor(client, port, None, ready_store()).accept(asked())
        finally:
            await client.close()

    with pytest.raises(StoreUnavailable, match="nothing was accepted"):
        asyncio.run(main())
