"""Bodies that the gateway gets: those that it judges by itself, and those that come with the API service's word."""

from __future__ import annotations

import asyncio
import json
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from penstock.adapters.http import HttpClient
from penstock.api.generic import read_inference_request
from penstock.api.responses import read_response
from penstock.lanes.accepting import Accepted, AsyncRequest
from penstock.lanes.credentials import Credentials
from penstock.lanes.forwarding import GatewayAcceptor
from penstock.lanes.generic import Per, Units
from penstock.lanes.models import ServedModel, Upstream
from penstock.lanes.requests import InferenceRequest
from penstock.ports import RequestRecord
from penstock.quota.estimate import BODY_UNBOUNDED
from penstock.wiring.clock import SystemClock
from tests.system.bento import CHAT, PEPPER, Cluster, Gateway


def raw(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def message(**fields: Any) -> bytes:
    return raw(messages=[{"role": "user", **fields}])


CHATS: list[bytes] = [
    CHAT,
    b"",
    b"{",
    b"[]",
    b"null",
    CHAT + CHAT,
    CHAT + b'},"organisation":"other"',
    b'{"a":' * 70 + b"1" + b"}" * 70,
    message(content=[{"type": "text", "text": "a"}, {"type": "thinking", "text": "[" * 100}]),
    message(content=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]),
    message(content=[{"type": "image_url", "image_url": {"url": "https://elsewhere.example/a.png"}}]),
    message(content=[{"type": "file", "file": {"file_id": "f"}}]),
    message(content=[{"type": "image_url", "image_url": "elsewhere"}]),
    message(content=[{"text": "no type"}]),
    message(content=3),
    message(content=None),
    raw(messages=[]),
    raw(messages="hi"),
    raw(messages=[{"content": "no role"}]),
    raw(),
    CHAT.replace(b'"m"', b"3"),
    CHAT.replace(b'"m"', b'""'),
    CHAT.replace(b'"m"', json.dumps("x" * 257).encode()),
    *(CHAT[:-1] + b"," + more + b"}" for more in (
        b'"n":3', b'"n":0', b'"n":129', b'"n":1.0', b'"n":true', b'"n":"3"', b'"n":null',
        b'"n":2,"best_of":1', b'"n":2,"best_of":5', b'"max_tokens":7', b'"max_tokens":7000',
        b'"max_tokens":99999999999999999999', b'"max_tokens":1e1', b'"max_completion_tokens":9',
        b'"max_tokens":1,"max_completion_tokens":1', b'"stream_options":{}', b'"stream":false',
        b'"stream":true', b'"stream":1', b'"stream":true,"stream_options":{"include_usage":true}',
        b'"api_base":"http://x"', b'"chat_template":"x"', b'"kv_transfer_params":{}', b'"api_key":1,"base_url":2',
    )),
]  # fmt: skip
COMPLETIONS = [
    raw(prompt="a"), raw(prompt=["a", "b"], n=2), raw(prompt=[1, 2]), raw(prompt=[[1], [2], [3]], max_tokens=4),
    raw(prompt=[]), raw(prompt=[1.5]), raw(prompt=["a", 1]), raw(prompt=[[]]), raw(prompt=["a"] * 2049), raw(),
    raw(prompt=[2**31]), raw(prompt=[-1]),
]  # fmt: skip
EMBEDDINGS = [
    raw(input="a"), raw(input=["a", "b"], encoding_format="base64"), raw(input="a", encoding_format="hex"),
    raw(input="a", dimensions=0), raw(input="a", dimensions=64, n=3, max_tokens=-1), raw(),
    raw(input="a", stream=True), raw(input="a", stream=False),
]  # fmt: skip
CASES = [
    *(("chat.completions", "chat/completions", body) for body in CHATS),
    *(("completions", "completions", body) for body in COMPLETIONS),
    *(("embeddings", "embeddings", body) for body in EMBEDDINGS),
]


RESPONSE: Final = b'{ "model":"m", "input":"hi", "max_output_tokens":7, "metadata":{"exact":0.10} }'
CHAT_OF_IT: Final = b'{"model":"m","metadata":{"exact":0.1},"messages":[{"role":"user","content":"hi"}],"max_tokens":7}'
TENSORS: Final = b'{"inputs":[{"name":"x","shape":[3],"data":[1,2,3]}], "exact":0.10}'


class Sent(NamedTuple):
    """A request of a route that the API service measures, and what must come of it.

    Args:
        units: Of its model, if it is a generic one.
        measured: The reserve's body_bytes, prompt_tokens and outputs_bound.
        held: Tokens or units.
    """

    route: str
    model: str
    body: bytes
    units: Units | None
    measured: tuple[int, int | None, int]
    held: int
    received_bytes: int = 0

    @property
    def fingerprint(self) -> str:
        return blake2b(self.body if self.units is None else b"g\n" + self.body, digest_size=16).hexdigest()


MEASURED: Final = (
    Sent("responses", "m", RESPONSE, None, (len(CHAT_OF_IT), None, 7), len(CHAT_OF_IT) + 7),
    Sent("infer", "g", TENSORS, Units(Per.ELEMENT, "x"), (len(TENSORS), 3, 0), 3),
    Sent("infer", "g", TENSORS, Units(Per.USAGE), (BODY_UNBOUNDED, None, 0), 500, received_bytes=len(TENSORS)),
)


def forwarded(gateway: Gateway, token: str, sent: Sent) -> str:
    """Hand a request in as the API service does; its job's id."""
    body = json.loads(sent.body)
    reader: Any = read_response if sent.units is None else read_inference_request
    options: Any = {"prompts_max": 1} if sent.units is None else {"model": sent.model}
    shape = reader(body, **options)
    request = InferenceRequest(
        organisation="measured", key="k1", key_mac="", route=sent.route, model=shape.model, body=body,
        fingerprint=sent.fingerprint, body_bytes=max(len(sent.body), shape.bytes_least), prompts=shape.prompts,
        outputs=shape.outputs, max_tokens=shape.max_tokens, stream=False, include_usage=False,
        record=RequestRecord(request_id="r1"),
    )  # fmt: skip
    asked = AsyncRequest(
        request=request, raw=sent.body, key_macs=("",), idempotency_key=None, authorization=f"Bearer {token}",
        traceparent=None,
    )  # fmt: skip
    bounds = Cluster.MODELS[sent.model]
    served = ServedModel(
        name=sent.model, upstreams=(Upstream(url="http://model.test"),), upstream_model=sent.model,
        units=sent.units, context=bounds["context"], max_tokens=bounds["max_tokens"],
    )  # fmt: skip

    async def main() -> str:
        client = HttpClient()
        nobody: Any = None  # neither database nor quota is asked without an idempotency key
        acceptor = GatewayAcceptor(
            client, gateway.url("")[: -len("/v1/async/")], nobody, nobody, SystemClock(), {sent.model: served},
            attest=Credentials((PEPPER.encode(),)).attest,
        )  # fmt: skip
        accepted = await acceptor.accept(asked)
        await client.close()
        assert isinstance(accepted, Accepted), accepted
        return accepted.job

    return asyncio.run(main())


def spoilt_words(now_ms: int) -> list[tuple[str, bytes, str]]:
    """Path, body, and a word that says nothing of them."""

    def word(pepper: str = PEPPER, **changed: Any) -> str:
        measures = {"body_bytes": 1, "prompts": 1, "prompt_tokens": None, "outputs_bound": 1, "received_bytes": 0}
        told = {"route": "responses", "model": "m", "fingerprint": MEASURED[0].fingerprint, **measures}
        facts = told | {"expires_at_ms": now_ms + 30_000} | changed
        return Credentials((pepper.encode(),)).attest(json.dumps(facts).encode())

    return [
        ("responses", RESPONSE, ""),
        ("infer", TENSORS, ""),
        ("responses", RESPONSE, "pms_e30=_" + "0" * 64),
        ("responses", RESPONSE, word("a pepper of somebody else")),
        ("responses", RESPONSE, word(expires_at_ms=now_ms - 60_000)),
        ("responses", RESPONSE.replace(b"hi", b"ho"), word()),
        ("responses", RESPONSE, word(route="infer")),
        ("infer", RESPONSE, word()),
        ("infer", TENSORS, word(route="infer", model="m", fingerprint=MEASURED[1].fingerprint)),
    ]
