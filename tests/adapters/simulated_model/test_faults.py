"""Each fault is seen on the wire as its name says, and is in the log as it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.adapters.simulated_model.conftest import Simulated


def wire(simulated: Simulated, faults: str, *, stream: bool = True) -> bytes:
    """Everything that a request got, up to the closing of the connection."""
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "four"}],
        "max_tokens": 6,
        "stream": stream,
        "stream_options": {"include_usage": True},
        "metadata": {"simulate": faults},
    }
    parts = []
    with simulated.connect("/v1/chat/completions", body) as connection:
        while part := connection.recv(65536):
            parts.append(part)
            if part.endswith((b"0\r\n\r\n", b"}")):
                break
    return b"".join(parts)


def body_of(raw: bytes) -> Any:
    return json.loads(raw.partition(b"\r\n\r\n")[2])


def test_without_a_fault_the_stream_ends_as_http_and_openai_ask(simulated: Simulated) -> None:
    raw = wire(simulated, "")
    assert raw.count(b'"content":"') - 1 == 6
    assert raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_break_before_closes_without_a_byte(simulated: Simulated) -> None:
    assert wire(simulated, "fault=break_before") == b""
    assert simulated.lines()[0]["outcome"] == "broken"
    assert simulated.lines()[0]["prompt"] == 0


def test_break_after_hands_over_so_many_tokens_and_closes(simulated: Simulated) -> None:
    raw = wire(simulated, "fault=break_after:4")
    assert raw.count(b'"content":"') - 1 == 4
    assert not raw.endswith(b"0\r\n\r\n")
    assert (simulated.lines()[0]["completion"], simulated.lines()[0]["outcome"]) == (4, "broken")


def test_break_after_the_last_token_still_breaks(simulated: Simulated) -> None:
    raw = wire(simulated, "fault=break_after:6")
    assert raw.count(b'"content":"') - 1 == 6
    assert b'finish_reason":"' not in raw


def test_break_after_cuts_a_whole_answer_in_the_middle(simulated: Simulated) -> None:
    head, _, body = wire(simulated, "fault=break_after:0", stream=False).partition(b"\r\n\r\n")
    promised = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    assert 0 < len(body) < int(promised.split()[1])


def test_refuse_answers_the_status_and_produces_nothing(simulated: Simulated) -> None:
    raw = wire(simulated, "fault=refuse:503")
    assert raw.startswith(b"HTTP/1.1 503")
    assert simulated.lines()[0] == {
        "request_id": "", "route": "chat.completions", "model": "chat",
        "prompt": 0, "cached": 0, "completion": 0, "outcome": "refused",
    }  # fmt: skip


def test_garbage_body_is_not_json(simulated: Simulated) -> None:
    raw = wire(simulated, "fault=garbage_body", stream=False)
    assert raw.startswith(b"HTTP/1.1 200")
    with pytest.raises(ValueError, match="Expecting value"):
        body_of(raw)


def test_garbage_stream_turns_to_what_is_not_json_and_has_no_end(simulated: Simulated) -> None:
    raw = wire(simulated, "fault=garbage_stream")
    assert b"data: {]" in raw
    assert b"[DONE]" not in raw
    assert simulated.lines()[0]["completion"] == 2


def test_error_after_sends_an_error_event(simulated: Simulated) -> None:
    raw = wire(simulated, "fault=error_after:3")
    assert b'data: {"error":' in raw
    assert b"[DONE]" not in raw
    assert simulated.lines()[0]["completion"] == 3


@pytest.mark.parametrize("stream", [True, False])
def test_no_usage_leaves_the_usage_out(simulated: Simulated, stream: bool) -> None:
    assert b"total_tokens" not in wire(simulated, "fault=no_usage", stream=stream)
    assert simulated.lines()[0]["completion"] == 6


def test_no_done_leaves_the_end_mark_out(simulated: Simulated) -> None:
    raw = wire(simulated, "fault=no_done")
    assert b"total_tokens" in raw
    assert b"[DONE]" not in raw


@pytest.mark.parametrize(("kind", "shown"), [("negative", -7), ("string", "many"), ("huge", 10**18), ("float", 6.5)])
def test_absurd_usage_is_reported_and_the_truth_is_logged(simulated: Simulated, kind: str, shown: Any) -> None:
    raw = wire(simulated, f"fault=absurd_usage:{kind}", stream=False)
    assert body_of(raw)["usage"]["completion_tokens"] == shown
    assert simulated.lines()[0]["completion"] == 6


def test_hang_never_answers(simulated: Simulated) -> None:
    body = {"model": "chat", "prompt": "four", "metadata": {"simulate": "fault=hang"}}
    with simulated.connect("/v1/completions", body) as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize("faults", ["fault=slow_first_byte:200", "fault=slow_chunks:40"])
def test_slow_faults_take_the_time_that_they_name(simulated: Simulated, faults: str) -> None:
    started_s = time.monotonic()
    assert wire(simulated, faults).endswith(b"0\r\n\r\n")
    assert time.monotonic() - started_s >= 0.2


def test_faults_combine(simulate: Callable[..., Simulated]) -> None:
    raw = wire(simulate(), "tokens=3 fault=no_usage fault=no_done")
    assert raw.count(b'"content":"') - 1 == 3
    assert b"total_tokens" not in raw
    assert b"[DONE]" not in raw
