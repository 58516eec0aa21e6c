"""The quick way through a streamed answer gives what reading every event gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UpstreamBroken
from penstock.lanes.chunks import Chunks, RefusedInStream
from penstock.lanes.event_stream import EventSplitter

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", " the", " cat", '"', "\\", "\n\n", '"},"finish_reason":"stop"', "m", "é", "\u2028", "x" * 90]),
)


def chunk(text: str, kind: str, **more: Any) -> dict[str, Any]:
    """One event of an answer, as one of several servers would write it."""
    head: dict[str, Any] = {"id": "c", "created": 1, "model": "up/m"}
    if kind == "completion":
        return head | {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": None}]} | more
    if kind == "reasoning":
        return head | {"choices": [{"index": 0, "delta": {"reasoning_content": text}, "finish_reason": None}]} | more
    if kind == "tool":
        call = {"index": 0, "id": "t", "function": {"arguments": text}}
        return head | {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]} | more
    if kind == "end":
        return head | {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]} | more
    if kind == "pair":
        return head | {"choices": [{"index": n, "delta": {"content": text}} for n in range(2)]} | more
    return head | {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} | more


EVENTS = st.builds(
    lambda text, kind, more: chunk(text, kind, **more),
    TEXTS,
    st.sampled_from(["chat", "chat", "chat", "completion", "reasoning", "tool", "end", "pair"]),
    st.sampled_from([{}, {}, {}, {"usage": None}, {"usage": USAGE}, {"created": 2}]),
)
STYLES = st.sampled_from([(",", ":"), (", ", ": ")])


def expected_tokens(event: dict[str, Any]) -> int:
    """One for each choice with text, or its length in fours if that is long."""
    total = 0
    for choice in event["choices"]:
        delta = choice.get("delta", {})
        calls = "".join(call["function"]["arguments"] for call in delta.get("tool_calls", ()))
        text = choice.get("text", "") + delta.get("content", "") + delta.get("reasoning_content", "") + calls
        size = len(text.encode())
        total += 0 if not size else 1 if size <= 16 else -(-size // 4)
    return total


@given(st.lists(EVENTS, max_size=12), STYLES, st.booleans(), st.booleans(), st.booleans())
def test_what_is_shown_and_counted_is_the_same_on_the_quick_way(
    sent: list[dict[str, Any]], separators: tuple[str, str], ascii_only: bool, include_usage: bool, same_name: bool
) -> None:
    chunks = Chunks(name="up/m" if same_name else "chat", include_usage=include_usage, bytes_per_token=4.0)
    data = b"".join(
        b"data: " + json.dumps(event, separators=separators, ensure_ascii=ascii_only).encode() + b"\n\n"
        for event in sent
    )
    shown = chunks.feed(EventSplitter().feed(data))
    expected = []
    for event in sent:
        wanted = dict(event) | {"model": "up/m" if same_name else "chat"}
        if "usage" in wanted:
            if include_usage:
                wanted["usage"] = None
            else:
                del wanted["usage"]
        expected.append(wanted)
    assert [json.loads(part[6:]) for part in shown.decode().split("\n\n") if part] == expected
    assert chunks.tokens == sum(expected_tokens(event) for event in sent)
    assert chunks.events == sum(expected_tokens(event) > 0 for event in sent)
    reports = [event["usage"] for event in sent if event.get("usage")]
    assert chunks.usage == (reports[-1] if reports else None)


def test_events_of_a_learned_form_pass_unchanged() -> None:
    chunks = Chunks(name="up/m", include_usage=False, bytes_per_token=4.0)
    events = [b"data: " + json.dumps(chunk(f" t{n}", "chat")).encode() + b"\n\n" for n in range(5)]
    for event in events:
        assert chunks.feed([event]) is event
    assert chunks.tokens == 5


@pytest.mark.parametrize(
    "event",
    [
        b"data: not json\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"choices": [1]\n\n',
        b"data: \xff\n\n",
    ],
)
def test_an_event_that_is_no_object_is_garbage(event: bytes) -> None:
    chunks = Chunks(name="m", include_usage=False, bytes_per_token=4.0)
    assert chunks.feed([event]) == b""
    assert type(chunks.failure) is UpstreamBroken


def test_an_event_that_is_an_error_is_told_apart_and_what_came_before_it_is_shown() -> None:
    chunks = Chunks(name="up/m", include_usage=False, bytes_per_token=4.0)
    good = b"data: " + json.dumps(chunk("hi", "chat")).encode() + b"\n\n"
    assert json.loads(chunks.feed([good, b'data: {"error": {"message": "x"}}\n\n', good])[6:])
    assert isinstance(chunks.failure, RefusedInStream)
    assert chunks.tokens == 1


def encoded(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def test_an_event_that_fits_the_form_and_has_a_second_text_inside_is_read() -> None:
    chunks = Chunks(name="up/m", include_usage=False, bytes_per_token=40.0)
    one = {"index": 0, "delta": {"content": "hi"}}
    head = {"id": "c", "created": 1, "model": "up/m"}
    chunks.feed([encoded(head | {"choices": [one]})])
    chunks.feed([encoded(head | {"choices": [one, {"index": 1, "delta": {"content": "ho"}}]})])
    assert chunks.tokens == 3


def test_a_long_event_of_a_learned_form_is_counted_by_its_length() -> None:
    chunks = Chunks(name="up/m", include_usage=False, bytes_per_token=4.0)
    chunks.feed([encoded(chunk("hi", "chat")), encoded(chunk("x" * 400, "chat"))])
    assert chunks.tokens == 101


def test_comments_are_dropped_and_nothing_after_done_is_shown() -> None:
    chunks = Chunks(name="m", include_usage=False, bytes_per_token=4.0)
    assert chunks.feed([b": ping\n\n", b"data: [DONE]\n\n", b'data: {"choices": []}\n\n']) == b""
    assert chunks.is_done


def test_log_probabilities_say_how_many_tokens_an_event_has() -> None:
    chunks = Chunks(name="m", include_usage=False, bytes_per_token=4.0)
    event = chunk("two tokens", "chat")
    event["choices"][0]["logprobs"] = {"content": [{"token": "two"}, {"token": " tokens"}]}
    for _ in range(3):
        chunks.feed([encoded(event)])
    assert chunks.tokens == 6
