"""Bodies of requests, and whole requests, changed at random: refused in words, or understood; never our own fault."""

from __future__ import annotations

import json
import socket
from random import Random

import msgspec
import pytest

from penstock.api.bodies import READERS, decode
from penstock.api.failures import failure
from penstock.api.responses import read_response
from penstock.api.services import Bounds
from penstock.errors import RequestError
from tests.api.door import NARROW_TOKEN, TOKEN, Door, open_door, read_answer
from tests.counts import count
from tests.fuzzing.mutating import Kept, found, inputs, mutated

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hé 😀"}]}]
BODIES = [
    json.dumps(body).encode()
    for body in (
        {"model": "chat-small", "messages": MESSAGES, "max_tokens": 10, "n": 2, "temperature": 0.5, "stop": ["a", "b"]},
        {"model": "chat-small", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}},
        {"model": "chat-small", "messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"model": "chat-small", "prompt": ["a", "b"], "best_of": 2, "max_tokens": 5, "logit_bias": {"5": -100}},
        {"model": "chat-small", "prompt": [[1, 2, 3], [4]], "stream": False},
        {"model": "chat-small", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8},
        {"model": "chat-small", "input": "a", "instructions": "b", "max_output_tokens": 9, "store": False},
        {"model": "chat-small", "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]},
        {
            "model": "chat-small",
            "messages": MESSAGES,
            "metadata": {"a": "b"},
            "response_format": {"type": "json_object"},
        },
    )
]
_READERS = {**READERS, "responses": read_response}


def check_words(error: RequestError) -> None:
    """It blames the request, and shows."""
    assert 400 <= error.status < 500
    told = json.loads(failure(error).body)["error"]
    assert all(each is None or each.isprintable() for each in told.values())


def read_everywhere(raw: bytes) -> None:
    """As each endpoint reads it; what is understood can be written again, and bounds what it may cost."""
    for reader in _READERS.values():
        try:
            body = decode(raw, depth_max=64)
            shape = reader(body, prompts_max=2048)
        except RequestError as error:
            check_words(error)
        else:
            assert 0 <= shape.outputs <= 2048 * 128
            assert shape.max_tokens is None or shape.max_tokens > 0
            msgspec.json.encode(body)


@pytest.mark.torture
def test_no_body_is_our_fault(seed: int) -> None:
    for raw in found("bodies"):
        read_everywhere(raw)
    for number, raw in inputs(seed, BODIES, count(540_000, short=4_000)):
        with Kept("bodies", number, raw):
            read_everywhere(raw)


PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/async/chat/completions",
    "/v1/usage?start=2025-01-01&group_by=day,model", "/v1/jobs?limit=2&after=x", "/v1/models/chat-small", "/v1/quota",
    "/v1/jobs/0123456789abcdef0123456789abcdef", "/openapi.json", "/health",
)  # fmt: skip


def requests() -> list[bytes]:
    """Whole requests, with and without bodies, under keys that may do all and little."""
    made = []
    for at, path in enumerate(PATHS):
        body = BODIES[at % len(BODIES)] if at < 5 else b""
        for token in (TOKEN, NARROW_TOKEN):
            head = [
                f"{'POST' if body else 'GET'} {path} HTTP/1.1", "host: x", f"authorization: Bearer {token}",
                "x-request-id: mine-1", "prefer: wait=1", 'idempotency-key: "k"', "accept: */*",
                *(["content-type: application/json", f"content-length: {len(body)}"] if body else []),
            ]  # fmt: skip
            made.append("\r\n".join([*head, "", ""]).encode() + body)
    return made


def answer_to(door: Door, raw: bytes) -> int | None:
    """The status; None if the connection was closed without one, which is right for what is no request."""
    with door.connect() as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        try:
            answer = read_answer(connection)
        except (IndexError, ConnectionResetError):
            return None
    assert all(character.isprintable() for value in answer.headers.values() for character in value)
    if answer.status >= 400 and answer.body:
        assert (answer.error()["message"] or "").isprintable()
    return answer.status


@pytest.mark.torture
@pytest.mark.slow
def test_no_request_is_our_fault(seed: int) -> None:
    corpus = requests()
    with open_door(Door(bounds=Bounds(body_s=0.2)), head_s=0.2) as door:
        door.lane.words = ["one"]
        for raw in (*found("requests"), *corpus):
            assert (answer_to(door, raw) or 0) < 500, raw
        for number, raw in inputs(seed, corpus, count(40_000, short=400)):
            with Kept("requests", number, raw):
                assert (answer_to(door, raw) or 0) < 500
        assert door.chat().status == 200
    assert not [hold for hold in door.store.inspected().holds if hold.lane == "realtime"]


def test_the_same_number_makes_the_same_input() -> None:
    random = Random(1)
    for number in random.sample(range(10**9), 100):
        assert mutated(number, BODIES) == mutated(number, BODIES)
