"""Request bodies: what must hold of one before anything is reserved for it, and how large it may become.

A body is forwarded as the client wrote it, apart from what the lane sets, so only what routing and accounting rest
on is checked here; the model server judges the rest. Messages never quote a client's text: they reach logs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from penstock.errors import InvalidRequest
from penstock.lanes.requests import Reply, StreamReply

OUTPUTS_MAX = 128
MODEL_CHARACTERS_MAX = 256
TOKENS_MAX = 2**31
UNBOUNDED_BYTES = 2**31 - 1
"""Declared as the body's length where bytes do not bound the prompt, so that the whole context is reserved."""

REFUSED = {
    "api_base": "a request cannot name a backend",
    "base_url": "a request cannot name a backend",
    "api_key": "a request cannot carry a credential in its body; send `Authorization: Bearer psk_...`",
    "extra_headers": "a request cannot set headers of the model server",
    "kv_transfer_params": "a request cannot name a backend",
    "chat_template": "a request cannot bring a template: a few bytes of it could make any number of tokens",
}
_TEXT_PARTS = frozenset({"text", "refusal", "input_text", "output_text", "thinking"})

_decode = msgspec.json.Decoder().decode


class Shape(NamedTuple):
    """What accounting must know of a body.

    Args:
        outputs: max(n, best_of) x prompts; 0 for embeddings.
        bytes_bound: The prompt has no more tokens than the body has bytes.
        bytes_least: The body's length as the model server gets it, where it may be longer than the client's.
        answering: Makes the client's answer of the model's, where the two differ.
    """

    model: str
    prompts: int
    outputs: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    bytes_bound: bool
    bytes_least: int = 0
    answering: Callable[..., Reply | StreamReply] | None = None


def decode(raw: bytes, *, depth_max: int) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidRequest: Not JSON, not an object, nested deeper than ``depth_max``, or naming what no client may.
    """
    try:
        body = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("the body is not valid JSON; send one JSON object in UTF-8", code="invalid_json") from None
    except RecursionError:
        raise _too_deep(depth_max) from None
    if type(body) is not dict:
        raise InvalidRequest("the body is JSON, but not an object; send {...}", code="invalid_json")
    if raw.count(b"{") + raw.count(b"[") > depth_max and _nests_deeper(body, depth_max):
        raise _too_deep(depth_max)
    for name in sorted(REFUSED.keys() & body.keys()):
        raise InvalidRequest(f"{name}: {REFUSED[name]}; leave it out", param=name, code="field_refused")
    return body


def _too_deep(depth_max: int) -> InvalidRequest:
    return InvalidRequest(f"the body nests deeper than {depth_max} levels; flatten it", code="invalid_json")


def _nests_deeper(value: dict[str, Any] | list[Any], depth_max: int) -> bool:
    level: list[dict[str, Any] | list[Any]] = [value]
    for _ in range(depth_max):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def chat(body: dict[str, Any], *, prompts_max: int) -> Shape:
    """Check a chat request.

    Raises:
        InvalidRequest: With the parameter's name.
    """
    messages = body.get("messages")
    if type(messages) is not list or not messages:
        raise _wrong("messages", "must be a list of at least one message")
    bytes_bound = True
    for message in messages:
        if type(message) is not dict or type(message.get("role")) is not str:
            raise _wrong("messages", "each message must be an object with a role")
        content = message.get("content")
        if type(content) is list:
            bytes_bound &= _parts_are_text(content)
        elif content is not None and type(content) is not str:
            raise _wrong("messages", "content must be text, a list of parts, or null")
    return _shape(body, prompts=1, bytes_bound=bytes_bound)


def _parts_are_text(parts: list[Any]) -> bool:
    are_text = True
    for part in parts:
        kind = part.get("type") if type(part) is dict else None
        if type(kind) is not str:
            raise _wrong("messages", "each part of a content must be an object with a type")
        if kind not in _TEXT_PARTS:
            are_text = False
            if _refers(part):
                raise InvalidRequest(
                    "messages: a part refers to something outside the request, which the model server would have to "
                    "fetch; send it as a data: URL",
                    param="messages",
                    code="reference_refused",
                )
    return are_text


def _refers(value: Any) -> bool:
    """Some text within is an address other than a ``data:`` URL, or names a stored file."""
    if type(value) is str:
        return "://" in value and not value.startswith("data:")
    if type(value) is list:
        return any(map(_refers, value))
    if type(value) is dict:
        return "file_id" in value or any(
            _refers(child) or (name.endswith("url") and type(child) is str and not child.startswith("data:"))
            for name, child in value.items()
        )
    return False


def completions(body: dict[str, Any], *, prompts_max: int) -> Shape:
    """Check a text completion request. Raises like ``chat``."""
    return _shape(body, prompts=_count(body.get("prompt"), "prompt", prompts_max), bytes_bound=True)


def embeddings(body: dict[str, Any], *, prompts_max: int) -> Shape:
    """Check an embeddings request. Raises like ``chat``."""
    prompts = _count(body.get("input"), "input", prompts_max)
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise _wrong("encoding_format", 'must be "float" or "base64"')
    _integer(body, "dimensions", TOKENS_MAX)
    if body.get("stream"):
        raise _wrong("stream", "embeddings are not streamed; leave it out")
    return Shape(_model(body), prompts, 0, None, False, False, True)


READERS: dict[str, Callable[..., Shape]] = {
    "chat.completions": chat,
    "completions": completions,
    "embeddings": embeddings,
}


def _shape(body: dict[str, Any], *, prompts: int, bytes_bound: bool) -> Shape:
    n = _integer(body, "n", OUTPUTS_MAX) or 1
    best_of = _integer(body, "best_of", OUTPUTS_MAX) or n
    if best_of < n:
        raise _wrong("best_of", f"must be at least n ({n}), not {best_of}")
    max_tokens = _integer(body, "max_tokens", TOKENS_MAX)
    max_completion_tokens = _integer(body, "max_completion_tokens", TOKENS_MAX)
    if max_tokens is not None and max_completion_tokens is not None:
        raise _wrong("max_tokens", "cannot be given together with max_completion_tokens; leave one out")
    stream = body.get("stream")
    if stream is not None and type(stream) is not bool:
        raise _wrong("stream", "must be true or false")
    options = body.get("stream_options")
    include_usage: Any = False
    if options is not None:
        if not stream:
            raise _wrong("stream_options", "is only allowed with stream: true")
        include_usage = options.get("include_usage", False) if type(options) is dict else None
        if type(include_usage) is not bool:
            raise _wrong("stream_options", "must be an object whose include_usage is true or false")
    return Shape(
        _model(body),
        prompts,
        max(n, best_of) * prompts,
        max_completion_tokens if max_tokens is None else max_tokens,
        bool(stream),
        include_usage,
        bytes_bound,
    )


def _model(body: dict[str, Any]) -> str:
    model = body.get("model")
    if type(model) is not str or not 0 < len(model) <= MODEL_CHARACTERS_MAX:
        raise _wrong("model", f"must be a model's name, 1 to {MODEL_CHARACTERS_MAX} characters; /v1/models lists them")
    return model


def _integer(body: dict[str, Any], name: str, maximum: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= maximum:
        raise _wrong(name, f"must be an integer from 1 to {maximum}")
    return value


def _count(value: Any, name: str, prompts_max: int) -> int:
    """How many prompts: a text, a list of texts, a list of token ids, or a list of such lists."""
    if type(value) is str:
        return 1
    if type(value) is list and value:
        first = type(value[0])
        if first is int and _are_tokens(value):
            return 1
        if (first is str and all(type(one) is str for one in value)) or (
            first is list and all(map(_are_tokens, value))
        ):
            if len(value) > prompts_max:
                raise _wrong(name, f"has {len(value)} prompts; {prompts_max} are the most in one request")
            return len(value)
    raise _wrong(name, "must be a text, a list of texts, a list of token ids, or a list of lists of token ids")


def _are_tokens(value: Any) -> bool:
    return type(value) is list and len(value) > 0 and all(type(one) is int and 0 <= one < TOKENS_MAX for one in value)


def _wrong(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {what}", param=name)
