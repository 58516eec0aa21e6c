"""Makes one whole answer of a streamed one.

A job's client gets a whole answer, yet its model is asked to stream: so it is known at every moment what was
produced, for progress, for cancelling and for charging. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from penstock.lanes.chunks import shown_usage
from penstock.lanes.event_stream import event_data
from penstock.quota.events import Usage

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
_OBJECTS: Final = {
    "chat.completions": "chat.completion",
    "completions": "text_completion",
    "responses": "chat.completion",
}
_NOT_OF_THE_WHOLE: Final = frozenset({"choices", "object", "usage"})
_JOINED: Final = frozenset({"content", "reasoning", "reasoning_content", "refusal", "text"})
_WHOLE_ONLY: Final = frozenset(
    {"audio", "best_of", "echo", "functions", "logprobs", "modalities", "prompt_logprobs", "tools", "top_logprobs"}
)


def may_stream(request: Mapping[str, Any]) -> bool:
    """Whether a streamed answer to this chat or completion has nothing but text to put together.

    With some fields, servers stream an answer that differs from a whole one in more than its text.

    Example:
        >>> may_stream({"messages": []}), may_stream({"messages": [], "tools": [{}]}), may_stream({"logprobs": None})
        (True, False, True)
    """
    return not any(request.get(name) for name in _WHOLE_ONLY)


class Assembly:
    """What has arrived of one answer.

    Args:
        route: "chat.completions", "completions", or "responses", whose model answers a chat.

    Example:
        >>> assembly = Assembly("completions")
        >>> assembly.add(b'data: {"id":"c","choices":[{"index":0,"text":"to"}]}\\n\\n')
        >>> assembly.add(b'data: {"id":"c","choices":[{"index":0,"text":"day","finish_reason":"stop"}]}\\n\\n')
        >>> whole = _decode(assembly.whole(Usage(2, 1)))
        >>> whole["choices"], whole["usage"]["total_tokens"]
        ([{'index': 0, 'finish_reason': 'stop', 'text': 'today'}], 3)
    """

    def __init__(self, route: str) -> None:
        self._fields: dict[str, Any] = {"object": _OBJECTS[route]}
        self._choices: dict[int, _Parts] = {}
        self._messages: dict[int, _Parts] = {}

    def add(self, events: bytes) -> None:
        """Take events as ``penstock.lanes.chunks.Chunks`` shows them: checked, the model by the client's name."""
        for event in events.split(b"\n\n"):
            data = event_data(event)
            if data is None:
                continue
            fields = _decode(data)
            for name, value in fields.items():
                if name not in _NOT_OF_THE_WHOLE and value is not None:
                    self._fields.setdefault(name, value)
            for choice in fields.get("choices", ()):
                if isinstance(choice, dict):
                    self._add_choice(choice)

    def whole(self, usage: Usage) -> bytes:
        """The answer, as the model server would have given it whole; ``usage`` is what is charged."""
        choices = []
        for index in sorted(self._choices):
            choice = {"index": index, **self._choices[index].joined()}
            if index in self._messages:
                choice["message"] = {"role": "assistant", "content": None, **self._messages[index].joined()}
            choices.append(choice)
        shown = shown_usage(usage.prompt, usage.cached, usage.completion)
        return _encode({**self._fields, "choices": choices, "usage": shown})

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = choice.pop("index", 0)
        if type(index) is not int:
            return
        delta = choice.pop("delta", None)
        self._choices.setdefault(index, _Parts()).add(choice)
        if isinstance(delta, dict):
            self._messages.setdefault(index, _Parts()).add(delta)


class _Parts:
    """Fields that arrive in pieces: text is joined, of anything else the last counts."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._fields: dict[str, Any] = {}

    def add(self, part: dict[str, Any]) -> None:
        for name, value in part.items():
            if name in _JOINED and isinstance(value, str):
                self._texts.setdefault(name, []).append(value)
            elif value is not None or name not in self._fields:
                self._fields[name] = value

    def joined(self) -> dict[str, Any]:
        return self._fields | {name: "".join(texts) for name, texts in self._texts.items()}
