"""Reads the events of a streamed answer: counts their tokens, and makes of each what the client is to see.

Most events of an answer differ in one short text only. So the first of them is read as JSON, and from it a form is
learned: the bytes before the text and the bytes after it. An event of that form is then counted as one token and
passed on without being decoded. Whatever has another form (a role, an end, usage, quotation marks) is read again.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from penstock.errors import UpstreamBroken
from penstock.lanes.counting import choice_tokens
from penstock.lanes.event_stream import event_data

_NULL: Final = msgspec.Raw(b"null")
_decode_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
_PLAIN: Final = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
_STRING: Final = re.compile(rb'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}))*').fullmatch


class RefusedInStream(UpstreamBroken):
    """The model server reported an error as an event of its answer."""


class Chunks:
    """What has arrived of one streamed answer.

    Args:
        name: What the client calls the model; written into every event.
        include_usage: The client asked for usage: ``null`` in every event, and the count at the end.

    Attributes:
        tokens: Completion tokens counted here so far.
        events: Events with text so far.
        usage: The server's last report, unchecked; None if there was none.
        is_finished: Some choice has a finish_reason.
        is_done: ``[DONE]`` has arrived.
        failure: An event was no JSON object, or an error; nothing after it is read.
    """

    __slots__ = (
        "_after", "_after_out", "_bare", "_before", "_before_out", "_bytes_per_token", "_include_usage", "_name",
        "_short_bytes", "events", "failure", "is_done", "is_finished", "tokens", "usage",
    )  # fmt: skip

    def __init__(self, *, name: str, include_usage: bool, bytes_per_token: float) -> None:
        self._name = msgspec.Raw(_encode(name))
        self._include_usage = include_usage
        self._bytes_per_token = bytes_per_token
        self._short_bytes = int(4 * bytes_per_token)
        self._before = self._after = b""  # the form, as it arrives, and as it goes out
        self._before_out = self._after_out = b""
        self._bare: dict[str, msgspec.Raw] = {}
        self.tokens = self.events = 0
        self.usage: Any = None
        self.is_finished = self.is_done = False
        self.failure: UpstreamBroken | None = None

    def feed(self, events: list[bytes]) -> bytes:
        """Take whole events; give what the client sees of them, possibly nothing. Look at ``failure`` after it."""
        before = self._before
        shown = []
        for event in events:
            if before and event.startswith(before) and event.endswith(self._after):
                start, stop = len(before), len(event) - len(self._after)
                if 0 < stop - start <= self._short_bytes and _is_sound(event[start:stop]):
                    self.tokens += 1
                    self.events += 1
                    if before is self._before_out:
                        shown.append(event)
                    else:
                        shown.append(self._before_out + event[start:stop] + self._after_out)
                    continue
            try:
                shown.append(self._read(event))
            except UpstreamBroken as error:
                self.failure = error
            if self.is_done or self.failure is not None:
                break
            before = self._before
        return shown[0] if len(shown) == 1 else b"".join(shown)

    def end(self, rest: bytes) -> bytes:
        """The body ended, with ``rest`` after its last whole event; give what the client sees of that.

        Raises:
            UpstreamBroken: The server did not say in any way that this is the end.
        """
        shown = self.feed([rest + b"\n\n"]) if rest and self.failure is None else b""
        if self.failure is not None or not (self.is_done or self.is_finished):
            raise self.failure or UpstreamBroken("the model server ended its answer in the middle")
        return shown

    def ending(self, reason: str, outputs: int, *, is_chat: bool) -> bytes:
        """An event that ends every choice for ``reason``, where the model server did not."""
        empty: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        choices = [{"index": index, **empty, "finish_reason": reason} for index in range(max(1, outputs))]
        return b"data: " + _encode({**self._bare, "choices": choices}) + b"\n\n"

    def usage_event(self, prompt: int, cached: int, completion: int) -> bytes:
        """The last event before ``[DONE]``, for a client that asked for usage."""
        usage = shown_usage(prompt, cached, completion)
        return b"data: " + _encode({**self._bare, "choices": [], "usage": usage}) + b"\n\n"

    def _read(self, event: bytes) -> bytes:
        data = event_data(event)
        if data is None:
            return b""
        if data.strip() == b"[DONE]":
            self.is_done = True
            return b""
        try:
            if not _is_text(data):
                raise UpstreamBroken("an event of the model server's answer is not UTF-8")
            fields = _decode_fields(data)
            choices = _decode(fields["choices"]) if "choices" in fields else []
            usage = _decode(fields["usage"]) if "usage" in fields else None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamBroken("an event of the model server's answer is not a JSON object") from error
        if "error" in fields and not choices:
            raise RefusedInStream("the model server reported an error in the middle of its answer")
        if not isinstance(choices, list):
            raise UpstreamBroken("an event of the model server's answer has choices that are no list")
        self._count(choices)
        if usage is not None:
            self.usage = usage
            if not choices:
                return b""  # shown at the end, with what is really charged
        return self._rewrite(event, data, fields, choices, learn=usage is None)

    def _count(self, choices: list[Any]) -> None:
        tokens = sum(choice_tokens(choice, self._bytes_per_token, streamed=True) for choice in choices)
        self.tokens += tokens
        self.events += tokens > 0
        if any(isinstance(choice, dict) and choice.get("finish_reason") for choice in choices):
            self.is_finished = True

    def _rewrite(
        self, event: bytes, data: bytes, fields: dict[str, msgspec.Raw], choices: list[Any], *, learn: bool
    ) -> bytes:
        if not self._bare:
            self._bare = {name: fields[name].copy() for name in ("id", "object", "created") if name in fields}
            self._bare["model"] = self._name
        changed = False
        if "model" in fields and bytes(fields["model"]) != bytes(self._name):
            fields["model"] = self._name
            changed = True
        if "usage" in fields and not (self._include_usage and bytes(fields["usage"]) == b"null"):
            if self._include_usage:
                fields["usage"] = _NULL
            else:
                del fields["usage"]
            changed = True
        shown = b"data: " + (_encode(fields) if changed else data.replace(b"\n", b" ")) + b"\n\n"
        if shown == event:
            shown = event
        if learn:
            self._learn(event, shown, choices)
        return shown

    def _learn(self, event: bytes, shown: bytes, choices: list[Any]) -> None:
        """Take the event's form, if it is one text among constants."""
        text = _only_text(choices)
        if text is None:
            return
        quoted = b'"' + text.encode() + b'"'
        if event.count(quoted) != 1 or shown.count(quoted) != 1 or not event.startswith(b"data: {"):
            return
        at = event.index(quoted)
        self._before, self._after = event[: at + 1], event[at + len(quoted) - 1 :]
        if shown is event:
            self._before_out, self._after_out = self._before, self._after
        else:
            at = shown.index(quoted)
            self._before_out, self._after_out = shown[: at + 1], shown[at + len(quoted) - 1 :]


def _is_sound(text: bytes) -> bool:
    """Whether this is the inside of a JSON string, to the letter: what is passed on unread must not end or break it."""
    return not text.strip(_PLAIN) or (_STRING(text) is not None and _is_text(text))


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def shown_usage(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    """A generation's usage, as clients read it."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return usage


def _only_text(choices: list[Any]) -> str | None:
    """The text of the only choice, if it says nothing else and goes on."""
    if len(choices) != 1 or not isinstance(choices[0], dict):
        return None
    choice = choices[0]
    if choice.get("finish_reason") is not None or choice.get("logprobs") is not None:
        return None
    delta = choice.get("delta", choice)
    if not isinstance(delta, dict):
        return None
    texts = [delta[name] for name in ("content", "text", "reasoning_content") if delta.get(name)]
    if len(texts) != 1 or not isinstance(texts[0], str) or delta.get("tool_calls"):
        return None
    text = texts[0]
    return text if text.isprintable() and '"' not in text and "\\" not in text else None
