"""What goes to the queue's gateway, and what comes back from it, over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.http import HttpClient
from penstock.errors import StoreUnavailable
from penstock.lanes.accepting import Acceptance, Accepted, AsyncRequest, Relayed, Replayed
from penstock.lanes.forwarding import GatewayAcceptor
from penstock.lanes.requests import InferenceRequest
from penstock.ports import RequestRecord
from tests.adapters.http.servers import Handler, answering, read_request, serving

JOB = "018bcfe56800000000000000000000ff"


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


def accept(handler: Handler, request: AsyncRequest | None = None) -> Acceptance:
    """Forward one request to a gateway that behaves like ``handler``."""

    async def main() -> Acceptance:
        async with serving(handler) as server:
            client = HttpClient()
            try:
                return await GatewayAcceptor(client, f"http://127.0.0.1:{server.port}/").accept(request or asked())
            finally:
                await client.close()

    return asyncio.run(main())


def answer(status: str, body: bytes = b"{}", *headers: str) -> Handler:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return answering("\r\n".join(lines).encode() + body, close=True)


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
    seen: list[tuple[str, bytes]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(f"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nlocation: /v1/jobs/{JOB}\r\n\r\n".encode())
        await writer.drain()

    accept(handle, asked(route, key="order-7", traceparent="00-a-b-01"))
    ((head, body),) = seen
    lines = head.split("\r\n")
    named = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in lines[1:] if line}
    assert (lines[0], body) == (f"POST {path} HTTP/1.1", b'{"as":"sent"}')
    assert {name: named[name] for name in named.keys() - {"host", "content-length", "connection"}} == {
        "authorization": "Bearer psk_secret",
        "content-type": "application/json",
        "idempotency-key": "order-7",
        "x-request-id": "r1",
        "traceparent": "00-a-b-01",
    }


def test_a_stored_answer_is_passed_on_with_its_job() -> None:
    replayed = accept(answer("200 OK", b'{"id":"x"}', f"location: /v1/jobs/{'0' * 32}-2"))
    assert replayed == Replayed(f"{'0' * 32}-2", 200, b'{"id":"x"}')


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


def test_a_gateway_that_is_away_is_a_503_at_once_which_says_that_nothing_was_accepted(tmp_path: Path) -> None:
    async def main() -> Any:
        async with serving(answering(b"")) as server:
            port = server.port
        client = HttpClient()
        try:
            return await GatewayAcceptor(client, f"http://127.0.0.1:{port}").accept(asked())
        finally:
            await client.close()

    with pytest.raises(StoreUnavailable, match="nothing was accepted"):
        asyncio.run(main())
