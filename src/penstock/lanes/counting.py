"""Counts tokens where the model server's own count is missing or absurd, and says when it is absurd.

Counting here is an estimate by design: it charges what arrived, and every such answer is marked
``usage_source=local`` so that somebody looks at the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, Final

from penstock.quota.events import Usage, UsageSource
from penstock.quota.records import record

MESSAGE_TOKENS: Final = 4  # what a chat template puts around one message, as a rule
_NOT_TEXT: Final = frozenset({"role", "id", "type", "index"})  # of a streamed delta: no model wrote these


@record(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one request can have used at most.

    Args:
        prompt: Context x prompts.
        completion: Outputs x max_tokens.
        prompt_bytes: The body's length as received.
    """

    prompt: int
    completion: int
    prompt_bytes: int


def reported_usage(found: Any, bounds: Bounds) -> Usage | None:
    """The server's own count; None if it is missing, negative, not an integer, or above a bound.

    Example:
        >>> bounds = Bounds(prompt=100, completion=10, prompt_bytes=400)
        >>> reported_usage({"prompt_tokens": 7, "completion_tokens": 3}, bounds)
        Usage(prompt=7, completion=3, cached=0, source=<UsageSource.UPSTREAM: 'upstream'>)
        >>> reported_usage({"prompt_tokens": 7, "completion_tokens": 11}, bounds) is None
        True
    """
    if not isinstance(found, dict):
        return None
    prompt = found.get("prompt_tokens")
    completion = found.get("completion_tokens", 0)  # embeddings have none
    details = found.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    if cached is None:
        cached = 0
    if type(prompt) is not int or type(completion) is not int or type(cached) is not int:
        return None
    if not (0 <= prompt <= bounds.prompt and 0 <= completion <= bounds.completion and 0 <= cached <= prompt):
        return None
    return Usage(prompt, completion, cached)


def local_usage(body: Mapping[str, Any], completion: int, bounds: Bounds, bytes_per_token: float) -> Usage:
    """What is charged instead: the prompt's estimate, and what was counted of the completion."""
    prompt = min(estimate_prompt(body, bytes_per_token), bounds.prompt, max(1, bounds.prompt_bytes))
    return Usage(prompt, min(completion, bounds.completion), 0, UsageSource.LOCAL)


def estimate_prompt(body: Mapping[str, Any], bytes_per_token: float) -> int:
    """Tokens of a request's prompt, from the length of its text; token lists are counted exactly.

    Example:
        >>> estimate_prompt({"messages": [{"role": "user", "content": "twelve bytes"}]}, 4.0)
        7
        >>> estimate_prompt({"input": [[1, 2, 3], [4]]}, 4.0)
        4
    """
    prompt = body.get("prompt", body.get("input"))
    if prompt is not None:
        return _estimate_texts(prompt, bytes_per_token)
    tokens = 0
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            text_bytes = _message_bytes(message)
            tokens += MESSAGE_TOKENS + ceil(text_bytes / bytes_per_token) + (text_bytes == 0)
    if "tools" in body:
        tokens += ceil(_text_bytes(body["tools"]) / bytes_per_token)
    return tokens


def event_tokens(text_bytes: int, bytes_per_token: float) -> int:
    """Tokens of one streamed event's text: servers send one at a time, and a long event is taken by its length.

    Example:
        >>> event_tokens(0, 4.0), event_tokens(11, 4.0), event_tokens(40, 4.0)
        (0, 1, 10)
    """
    if text_bytes <= 4 * bytes_per_token:
        return 1 if text_bytes else 0
    return ceil(text_bytes / bytes_per_token)


def choice_tokens(choice: Any, bytes_per_token: float, *, streamed: bool) -> int:
    """Tokens of one choice of an answer: its log-probabilities' number if it has any, else by its text."""
    if not isinstance(choice, dict):
        return 0
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        listed = logprobs.get("content") or logprobs.get("tokens")
        if isinstance(listed, list):
            return len(listed)
    text_bytes = sum(_text_bytes(choice.get(part)) for part in ("delta", "message", "text"))
    return event_tokens(text_bytes, bytes_per_token) if streamed else ceil(text_bytes / bytes_per_token)


def _estimate_texts(prompt: Any, bytes_per_token: float) -> int:
    if isinstance(prompt, str):
        return ceil(len(prompt.encode()) / bytes_per_token)
    if isinstance(prompt, list):
        if all(type(token) is int for token in prompt):
            return len(prompt)
        return sum(_estimate_texts(part, bytes_per_token) for part in prompt)
    return 0


def _message_bytes(message: Mapping[str, Any]) -> int:
    """Bytes of text in a message; images and sound, which are no text, count nothing here."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        text_bytes = sum(len(part.encode()) for part in parts if isinstance(part, str))
    else:
        text_bytes = _text_bytes(content)
    return text_bytes + _text_bytes(message.get("tool_calls"))


def _text_bytes(found: Any) -> int:
    """Bytes of all text below ``found``, but for names that no model wrote."""
    if isinstance(found, str):
        return len(found) if found.isascii() else len(found.encode("utf-8", "surrogatepass"))
    if isinstance(found, dict):
        return sum(_text_bytes(value) for name, value in found.items() if name not in _NOT_TEXT)
    if isinstance(found, list):
        return sum(_text_bytes(value) for value in found)
    return 0
