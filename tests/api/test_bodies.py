"""What a body must be before anything is reserved, and how it is sized."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.bodies import REFUSED, Shape, chat, completions, decode, embeddings
from penstock.errors import InvalidRequest

CONTENTS: tuple[Any, ...] = (1, {}, ["hi"], [{}], [{"type": 1}])
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def read_chat(**more: Any) -> Shape:
    return chat(CHAT | more, prompts_max=2048)


def read_prompt(prompt: Any, **more: Any) -> Shape:
    return completions({"model": "m", "prompt": prompt} | more, prompts_max=2048)


def read_input(value: Any, **more: Any) -> Shape:
    return embeddings({"model": "m", "input": value} | more, prompts_max=2048)


def test_a_plain_chat_is_one_prompt_and_one_output() -> None:
    assert read_chat() == Shape("m", 1, 1, None, False, False, True)


@pytest.mark.parametrize("raw", [b"", b"{", b"nonsense", b"\xff", b'{"a": NaN}', b"{} {}", b'{"a":"\\ud800"}'])
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        decode(raw, depth_max=64)


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"text"', b"null"])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not an object"):
        decode(raw, depth_max=64)


@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_depth_is_bounded_exactly(opening: bytes, closing: bytes) -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' + opening * (levels - 1) + b"1" + closing * (levels - 1) + b"}"

    assert decode(nested(64), depth_max=64)
    for levels in (65, 1_000, 1_000_000):
        with pytest.raises(InvalidRequest, match="deeper than 64"):
            decode(nested(levels), depth_max=64)


def test_a_wide_body_is_not_a_deep_one() -> None:
    assert decode(b'{"a":[' + b"{}," * 1000 + b"{}]}", depth_max=64)


@pytest.mark.parametrize("name", REFUSED)
def test_a_body_cannot_name_a_backend_or_bring_a_template(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(b'{"%s":"x"}' % name.encode(), depth_max=64)
    assert (refused.value.param, refused.value.code) == (name, "field_refused")


@pytest.mark.parametrize("name", ["n", "best_of", "max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1, True, False, 1.0, "1", [], {}, 2**31 + 1, 2**64, 10**30])
def test_counts_are_integers_from_one(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: must be an integer from 1 to") as refused:
        read_chat(**{name: value})
    assert refused.value.param == name


@pytest.mark.parametrize("name", ["n", "best_of"])
def test_outputs_are_bounded(name: str) -> None:
    assert read_chat(**{name: 128}).outputs == 128
    with pytest.raises(InvalidRequest):
        read_chat(**{name: 129})


def test_a_number_that_json_cannot_hold_exactly_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        chat(decode(b'{"model":"m","messages":[{"role":"user"}],"max_tokens":1e2}', depth_max=64), prompts_max=1)


def test_null_is_as_good_as_absent() -> None:
    nulls = dict.fromkeys(("n", "best_of", "max_tokens", "max_completion_tokens", "stream", "stream_options"))
    assert read_chat(**nulls) == read_chat()


def test_either_name_bounds_the_output_and_both_are_refused() -> None:
    assert read_chat(max_tokens=5).max_tokens == 5
    assert read_chat(max_completion_tokens=6).max_tokens == 6
    with pytest.raises(InvalidRequest, match="cannot be given together"):
        read_chat(max_tokens=5, max_completion_tokens=5)


def test_best_of_below_n_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"best_of: must be at least n \(3\), not 2"):
        read_prompt("a", n=3, best_of=2)


@given(prompts=st.integers(1, 50), n=st.integers(1, 128), more=st.integers(0, 50))
def test_outputs_are_the_larger_of_n_and_best_of_for_each_prompt(prompts: int, n: int, more: int) -> None:
    best_of = min(n + more, 128)
    assert read_prompt(["a"] * prompts, n=n, best_of=best_of).outputs == best_of * prompts


@pytest.mark.parametrize("value", ["true", 1, 0, []])
def test_stream_is_a_boolean(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="stream: must be true or false"):
        read_chat(stream=value)


def test_usage_is_included_only_if_it_was_asked_for() -> None:
    assert not read_chat(stream=True).include_usage
    assert not read_chat(stream=True, stream_options={}).include_usage
    assert read_chat(stream=True, stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize("options", [[], "x", {"include_usage": 1}, {"include_usage": None}])
def test_stream_options_that_are_none_are_refused(options: Any) -> None:
    with pytest.raises(InvalidRequest, match="stream_options"):
        read_chat(stream=True, stream_options=options)


def test_stream_options_need_a_stream() -> None:
    with pytest.raises(InvalidRequest, match="only allowed with stream"):
        read_chat(stream_options={"include_usage": True})


@pytest.mark.parametrize("model", [None, "", 1, "m" * 257, ["m"]])
def test_a_model_is_a_name(model: Any) -> None:
    with pytest.raises(InvalidRequest, match="model: must be a model's name"):
        read_chat(model=model)


@pytest.mark.parametrize(
    "messages",
    [
        *(None, [], {}, "hi", ["hi"], [{}], [{"role": 1}]),
        *([{"role": "user", "content": value}] for value in CONTENTS),
    ],
)
def test_messages_have_a_role_and_a_readable_content(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_chat(messages=messages)
    assert refused.value.param == "messages"


def content(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_parts_of_text_are_bounded_by_their_bytes_whatever_they_say() -> None:
    assert read_chat(messages=content({"type": "text", "text": "see https://example.com"})).bytes_bound


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "image_url", "image_url": "data:image/png;base64,AA"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        {"type": "something_new", "content": "AA"},
    ],
)
def test_what_bytes_do_not_bound_is_said_so(part: dict[str, Any]) -> None:
    assert not read_chat(messages=content({"type": "text", "text": "look"}, part)).bytes_bound


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": "https://example.com/a.png"},
        {"type": "image_url", "image_url": {"url": " http://example.com"}},
        {"type": "image_url", "image_url": {"url": "file:/etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "//internal/a.png"}},
        {"type": "video_url", "video_url": {"url": "ftp://example.com"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file_id": "file-1"},
        {"type": "something_new", "nested": [{"deeper": "http://internal"}]},
    ],
)
def test_no_part_may_send_the_model_server_elsewhere(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_chat(messages=content(part))
    assert refused.value.code == "reference_refused"


@pytest.mark.parametrize(
    ("prompt", "prompts"), [("a", 1), ("", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2), ([0], 1)]
)
def test_prompts_are_counted(prompt: Any, prompts: int) -> None:
    assert read_prompt(prompt).prompts == read_input(prompt).prompts == prompts


@pytest.mark.parametrize(
    "prompt",
    [None, [], {}, 1, [None], ["a", 1], [1, "a"], [[1], "a"], [[]], [[1], []], [True], [1.0], [[1, -1]], [-1], [2**31]],
)
def test_other_prompts_are_refused(prompt: Any) -> None:
    for read, name in ((read_prompt, "prompt"), (read_input, "input")):
        with pytest.raises(InvalidRequest) as refused:
            read(prompt)
        assert refused.value.param == name


def test_prompts_are_bounded() -> None:
    assert read_prompt(["a"] * 2048).prompts == 2048
    with pytest.raises(InvalidRequest, match="2049 prompts; 2048 are the most"):
        read_prompt(["a"] * 2049)


def test_embeddings_produce_no_output_tokens() -> None:
    assert read_input("a").outputs == 0


@pytest.mark.parametrize("more", [{"encoding_format": "hex"}, {"dimensions": 0}, {"dimensions": 1.5}, {"stream": True}])
def test_embeddings_refuse_what_they_cannot_do(more: dict[str, Any]) -> None:
    assert read_input("a", encoding_format="base64", dimensions=256)
    with pytest.raises(InvalidRequest):
        read_input("a", **more)


@given(text=st.text(min_size=8, max_size=40))
def test_messages_never_quote_the_client(text: str) -> None:
    secret = f"\N{SNOWMAN}{text}\N{SNOWMAN}"
    bodies: tuple[dict[str, Any], ...] = (
        {"model": secret * 300},
        {"n": secret},
        {"stream": secret},
        {"messages": secret},
        {"messages": content({"type": "x", "url": secret})},
        {"stream_options": {"include_usage": secret}, "stream": True},
    )
    for more in bodies:
        with pytest.raises(InvalidRequest) as refused:
            read_chat(**more)
        assert "\N{SNOWMAN}" not in refused.value.message
