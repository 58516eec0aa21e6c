"""Counting what the model server did not count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.lanes.counting import Bounds, choice_tokens, estimate_prompt, local_usage, reported_usage

BOUNDS = Bounds(prompt=1000, completion=50, prompt_bytes=10)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "x" * 40}]}, 14),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}]}]}, 14),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:" + "x" * 9000}}]}]}, 5),
        ({"messages": [{"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "xyz"}}]}]}, 5),
        ({"messages": [{"content": "x"}], "tools": [{"function": {"description": "x" * 40}}]}, 15),
        ({"prompt": "x" * 41}, 11),
        ({"prompt": ["xxxx", "xxxx"]}, 2),
        ({"prompt": [1, 2, 3]}, 3),
        ({"input": [[1, 2], [3]]}, 3),
        ({"prompt": "\u00e9\u00e9"}, 1),
        ({"prompt": 7}, 0),
        ({"messages": "no list"}, 0),
        ({}, 0),
    ],
)
def test_prompts_are_estimated_from_their_text_alone(body: dict[str, Any], tokens: int) -> None:
    assert estimate_prompt(body, 4.0) == tokens


def test_an_estimate_is_never_above_the_bytes_that_were_sent_nor_the_context() -> None:
    many = {"messages": [{"content": "x"}] * 500}
    assert local_usage(many, 0, BOUNDS, 4.0).prompt == 10
    long = {"prompt": "x" * 90_000}
    assert local_usage(long, 0, Bounds(prompt=1000, completion=50, prompt_bytes=90_013), 4.0).prompt == 1000


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "prompt_tokens_details"]), JSON)
    | st.fixed_dictionaries({"prompt_tokens": st.integers(), "completion_tokens": st.integers()})
    | JSON
)
def test_a_report_is_taken_only_within_its_bounds(report: Any) -> None:
    usage = reported_usage(report, BOUNDS)
    if usage is not None:
        assert 0 <= usage.cached <= usage.prompt <= BOUNDS.prompt
        assert 0 <= usage.completion <= BOUNDS.completion


@given(JSON)
def test_no_answer_breaks_the_count(found: Any) -> None:
    for streamed in (False, True):
        assert choice_tokens({"delta": found, "message": found, "logprobs": found}, 4.0, streamed=streamed) >= 0
        assert choice_tokens(found, 4.0, streamed=streamed) >= 0
    assert estimate_prompt({"prompt": found}, 4.0) >= 0
    assert estimate_prompt({"messages": found, "tools": found}, 4.0) >= 0
