"""One whole answer of a streamed one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.lanes.assembling import Assembly, may_stream
from penstock.quota.events import Usage


def whole(route: str, *events: Any, usage: Usage = Usage(7, 2)) -> Any:  # noqa: B008 - frozen
    assembly = Assembly(route)
    for event in events:
        assembly.add(event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + b"\n\n")
    return json.loads(assembly.whole(usage))


def part(choice: Any, **more: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "chat", "choices": [choice], **more}


def test_reasoning_and_refusals_are_joined_like_content() -> None:
    answer = whole(
        "chat.completions",
        part({"index": 0, "delta": {"role": "assistant", "content": None, "reasoning_content": "hm"}}),
        part({"index": 0, "delta": {"reasoning_content": ", yes"}}),
        part({"index": 0, "delta": {"content": "No"}, "finish_reason": None}),
        part({"index": 0, "delta": {"content": ".", "refusal": "x"}, "finish_reason": "stop", "stop_reason": 2}),
    )
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "No.", "reasoning_content": "hm, yes", "refusal": "x"}
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 2)


def test_completion_without_any_text_has_a_null_message() -> None:
    answer = whole("chat.completions", part({"index": 0, "delta": {}, "finish_reason": "length"}))
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": None}


def test_text_completions_have_text_and_no_message() -> None:
    answer = whole("completions", part({"index": 0, "text": "a", "logprobs": None}), part({"index": 0, "text": "b"}))
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "ab", "logprobs": None}]


def test_fields_of_the_answer_are_those_of_its_events_and_the_usage_is_what_is_charged() -> None:
    first = part({"index": 0, "text": "a"}, system_fingerprint=None, usage={"prompt_tokens": 999})
    answer = whole("completions", first, part({"index": 0}, system_fingerprint="f"), usage=Usage(7, 2, 5))
    assert (answer["id"], answer["model"], answer["system_fingerprint"]) == ("c", "chat", "f")
    assert answer["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 5},
    }  # fmt: skip


def test_comments_and_parts_that_are_no_choice_add_nothing() -> None:
    answer = whole("completions", b": alive\n\n", part(7), part({"index": "0", "text": "x"}), part({"text": "a"}))
    assert answer["choices"] == [{"index": 0, "text": "a"}]


@pytest.mark.parametrize("name", ["tools", "functions", "best_of", "logprobs", "echo", "audio"])
def test_what_streams_differently_between_servers_is_not_streamed(name: str) -> None:
    assert may_stream({"messages": [], name: None})
    assert not may_stream({"messages": [], name: 1})
