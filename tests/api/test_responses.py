"""``/v1/responses``: what is read of a request, what the model gets of it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.api.responding import Responding
from penstock.api.responses import read_response
from penstock.errors import InvalidRequest
from penstock.lanes.requests import Reply
from tests.api.door import NARROW_TOKEN, Door

CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1}'}
TOOL = {"type": "function", "name": "add", "description": "adds", "parameters": {"type": "object"}, "strict": True}


def read(**asked: Any) -> dict[str, Any]:
    body = {"model": "chat-small", **asked}
    read_response(body, prompts_max=1)
    return body


def test_text_becomes_one_message_after_the_instructions() -> None:
    assert read(input="hi", instructions="be kind", max_output_tokens=9, store=False) == {
        "model": "chat-small",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        "max_tokens": 9,
    }


def test_a_conversation_with_a_function_call_becomes_a_chat() -> None:
    items = [
        {"role": "developer", "content": "count"},
        {"role": "user", "content": [{"type": "input_text", "text": "1 and "}, {"type": "input_text", "text": "2?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait"}]},
        CALL,
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ]
    body = read(input=items, tools=[TOOL], tool_choice={"type": "function", "name": "add"})
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    assert body["messages"] == [
        {"role": "system", "content": "count"},
        {"role": "user", "content": "1 and 2?"},
        {"role": "assistant", "content": "wait", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    assert body["tools"] == [{"type": "function", "function": {k: v for k, v in TOOL.items() if k != "type"}}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}


def test_a_call_without_words_before_it_is_a_message_of_its_own() -> None:
    assert read(input=[CALL])["messages"][0]["content"] is None


def test_an_image_reserves_the_whole_context_and_must_be_sent_along() -> None:
    part = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
    body = {"model": "chat-small", "input": [{"role": "user", "content": [part]}]}
    assert read_response(body, prompts_max=1).bytes_bound is False
    with pytest.raises(InvalidRequest) as refused:
        read(input=[{"role": "user", "content": [{**part, "image_url": "https://example.com/a.png"}]}])
    assert (refused.value.param, refused.value.code) == ("input", "reference_refused")


def test_the_model_s_body_is_what_bounds_the_prompt_where_it_is_longer() -> None:
    body: dict[str, Any] = {"model": "chat-small", "input": "hi", "tools": [TOOL] * 50}
    shape = read_response(body, prompts_max=1)
    assert shape.bytes_least > 50 * len(str(TOOL))


def test_the_answer_s_form_and_effort_go_along() -> None:
    wanted = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    body = read(input="hi", text={"format": wanted, "verbosity": "low"}, reasoning={"effort": "low"}, temperature=0)
    assert body["response_format"]["json_schema"] == {k: v for k, v in wanted.items() if k != "type"}
    assert (body["reasoning_effort"], body["verbosity"], body["temperature"]) == ("low", "low", 0)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"n": 5}, "n"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": 1}, "tools"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "yaml"}}}, "text"),
        ({"reasoning": "much"}, "reasoning"),
        ({"instructions": ["x"]}, "instructions"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": 5}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input"),
        ({"input": [{**CALL, "arguments": {}}]}, "input"),
    ],
)
def test_what_cannot_be_bounded_or_understood_is_refused_by_its_name(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(**{"input": "hi", **asked})
    assert refused.value.param == param


def test_a_key_for_chats_alone_makes_no_responses(door: Door) -> None:
    body = {"model": "chat-small", "input": "hi"}
    assert door.ask("POST", "/v1/responses", body, token=NARROW_TOKEN).status == 403


def test_an_error_is_made_no_response() -> None:
    error = Reply(502, b'{"error":{"message":"broke off"}}')
    assert Responding({"model": "m", "input": "hi"})(error, reservation="r", model="m", now_s=1) == error
