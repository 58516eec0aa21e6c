"""Writes what ``/v1/responses`` answers, of the chat that the model answered (``penstock.api.responses`` made it).

The events of a streamed one follow the chat's as they come; the last one (``response.completed``,
``response.incomplete``, ``response.failed``) comes after the settle, as ``[DONE]`` does, and carries the usage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from penstock.lanes.event_stream import EventSplitter, event_data
from penstock.lanes.requests import Reply, StreamReply

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
_ECHOED: Final = (
    "instructions", "max_output_tokens", "metadata", "temperature", "top_p", "reasoning", "user", "safety_identifier",
    "prompt_cache_key", "service_tier",
)  # fmt: skip
_REASONS: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}

Json = dict[str, Any]


class Responding:
    """Turns the answers of one request into responses.

    Args:
        asked: The request's body as the client sent it, which a response repeats in part.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self._asked = asked

    def __call__(self, reply: Reply | StreamReply, *, reservation: str, model: str, now_s: int) -> Reply | StreamReply:
        """The answer that the client sees: an error, or what is a response already, is left as it is.

        Args:
            reservation: Names the response.
            model: As the client called it.
            now_s: Unix seconds.
        """
        blank = self._blank(f"resp_{reservation}", model, now_s)
        if isinstance(reply, StreamReply):
            return StreamReply(ResponseStream(reply.events, blank, reservation), reply.readings)
        if reply.status != 200:
            return reply
        answered = _decode(reply.body)
        if answered.get("object") == "response":  # the stored answer of a job
            return reply
        return replace(reply, body=_encode(_whole(blank, answered, reservation)))

    def _blank(self, identity: str, model: str, now_s: int) -> Json:
        asked = self._asked
        return {
            "id": identity,
            "object": "response",
            "created_at": now_s,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            **{name: asked.get(name) for name in _ECHOED},
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "store": False,
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "truncation": "disabled",
            "usage": None,
        }


def _whole(response: Json, chat: Json, reservation: str) -> Json:
    """One whole response."""
    choice = next(_objects(chat.get("choices")), {})
    message = _object(choice.get("message"))
    output = response["output"]
    reason = _text(message, "reasoning_content") or _text(message, "reasoning")
    if reason:
        output.append(_reasoning(reservation, reason))
    parts = [_part(text) for text in [_text(message, "content")] if text]
    if _text(message, "refusal"):
        parts.append({"type": "refusal", "refusal": message["refusal"]})
    calls = list(_objects(message.get("tool_calls")))
    if parts or not calls:
        output.append(_message(reservation, parts or [_part("")]))
    for index, call in enumerate(calls):
        function = _object(call.get("function"))
        output.append(_call(reservation, index, call.get("id"), function.get("name"), function.get("arguments")))
    return _ended(response, choice.get("finish_reason"), chat.get("usage"))


def _ended(response: Json, finish_reason: Any, usage: Any) -> Json:
    """``response`` at its end; changed in place."""
    reason = _REASONS.get(str(finish_reason))
    response["status"] = "completed" if reason is None else "incomplete"
    if reason is not None:
        response["incomplete_details"] = {"reason": reason}
        if response["output"]:
            response["output"][-1]["status"] = "incomplete"
    response["usage"] = shown_usage(usage)
    return response


def shown_usage(chat_usage: Any) -> Json:
    """A chat's usage by the names that a response has for it.

    Example:
        >>> shown_usage({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9})["output_tokens"]
        2
    """
    found = _object(chat_usage)
    details, more = _object(found.get("prompt_tokens_details")), _object(found.get("completion_tokens_details"))
    return {
        "input_tokens": found.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": details.get("cached_tokens") or 0},
        "output_tokens": found.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": more.get("reasoning_tokens") or 0},
        "total_tokens": found.get("total_tokens", 0),
    }


class ResponseStream(AsyncGenerator[bytes, None]):
    """The events of one response. Closing it closes the chat's, which cancels and settles.

    Args:
        events: The chat's, usage included.
        response: As it begins.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], response: Json, reservation: str) -> None:
        self._events = events
        self._splitter = EventSplitter()
        self._response = response
        self._reservation = reservation
        self._count = 0
        self._open: _Item | None = None
        self._calls = 0
        self._finish_reason: Any = None
        self._usage: Any = None

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._advance()

    async def asend(self, value: None) -> bytes:
        """See ``AsyncGenerator``; the value is not used."""
        return await self._advance()

    async def athrow(self, *error: Any) -> bytes:
        """See ``AsyncGenerator``: closes, then raises."""
        await self.aclose()
        raise error[0]

    async def aclose(self) -> None:
        """The client wants no more."""
        await self._events.aclose()

    async def _advance(self) -> bytes:
        while True:
            piece = await anext(self._events)
            shown = b"".join(self._read(event_data(event) or b"") for event in self._splitter.feed(piece))
            if shown:
                return shown

    def _read(self, data: bytes) -> bytes:
        """One event of the chat, as events of the response."""
        shown = b"" if self._count else self._tell("response.created") + self._tell("response.in_progress")
        if data == b"[DONE]":
            return shown + self._end()
        chunk = _decode(data)
        if "error" in chunk:
            return shown + self._fail(chunk["error"])
        self._usage = chunk.get("usage") or self._usage
        for choice in _objects(chunk.get("choices")):
            delta = _object(choice.get("delta"))
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            text = _text(delta, "reasoning_content") or _text(delta, "reasoning")
            if text:
                shown += self._add(_Reasoning, text)
            if _text(delta, "content"):
                shown += self._add(_Message, delta["content"])
            if _text(delta, "refusal"):
                shown += self._add(_Refusal, delta["refusal"])
            for call in _objects(delta.get("tool_calls")):
                shown += self._add_call(call)
        return shown

    def _add(self, kind: type[_Text], text: str) -> bytes:
        shown = b""
        if type(self._open) is not kind:
            shown = self._close() + self._begin(kind(self._reservation, len(self._response["output"])))
        assert self._open is not None
        return shown + self._open.add(text, self._event)

    def _add_call(self, call: Json) -> bytes:
        function = _object(call.get("function"))
        shown = b""
        if not isinstance(self._open, _Call) or call.get("index", self._open.index) != self._open.index:
            place = len(self._response["output"])
            shown = self._close()
            item = _Call(self._reservation, place, call.get("index", self._calls), call.get("id"), function.get("name"))
            shown += self._begin(item)
            self._calls += 1
        assert self._open is not None
        arguments = _text(function, "arguments")
        return shown + (self._open.add(arguments, self._event) if arguments else b"")

    def _begin(self, item: _Item) -> bytes:
        self._open = item
        return item.begin(self._event)

    def _close(self) -> bytes:
        item, self._open = self._open, None
        if item is None:
            return b""
        shown = item.end(self._event)
        self._response["output"].append(item.shown("completed"))
        return shown

    def _end(self) -> bytes:
        shown = b""
        if self._open is None and not self._response["output"]:
            shown = self._begin(_Message(self._reservation, 0))
        shown += self._close()
        _ended(self._response, self._finish_reason, self._usage)
        return shown + self._tell(f"response.{self._response['status']}")

    def _fail(self, error: Any) -> bytes:
        shown = self._close()
        found = _object(error)
        self._response["status"] = "failed"
        self._response["error"] = {"code": "server_error", "message": found.get("message") or "it failed"}
        return shown + self._tell("response.failed")

    def _tell(self, kind: str) -> bytes:
        return self._event(kind, {"response": self._response})

    def _event(self, kind: str, fields: Json) -> bytes:
        data = _encode({"type": kind, "sequence_number": self._count, **fields})
        self._count += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)


Write = Callable[[str, Json], bytes]


class _Item(ABC):
    """One item of the output while it grows."""

    def __init__(self, identity: str, place: int) -> None:
        self.id = identity
        self.place = place
        self.text = ""

    @abstractmethod
    def shown(self, status: str) -> Json:
        """The item as it stands."""

    def begin(self, write: Write) -> bytes:
        """Its first events."""
        return write("response.output_item.added", {"output_index": self.place, "item": self.shown("in_progress")})

    @abstractmethod
    def add(self, text: str, write: Write) -> bytes:
        """More of it."""

    def end(self, write: Write) -> bytes:
        """Its last events."""
        return write("response.output_item.done", {"output_index": self.place, "item": self.shown("completed")})


class _Text(_Item):
    """An item whose one part is text."""

    prefix = ""
    kind = ""
    field = "text"

    def __init__(self, reservation: str, place: int) -> None:
        super().__init__(f"{self.prefix}_{reservation}_{place}", place)

    def _at(self) -> Json:
        return {"item_id": self.id, "output_index": self.place, "content_index": 0}

    def _part(self) -> Json:
        return _part(self.text)

    def shown(self, status: str) -> Json:
        parts = [] if status == "in_progress" else [self._part()]
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": parts}

    def begin(self, write: Write) -> bytes:
        return super().begin(write) + write("response.content_part.added", {**self._at(), "part": self._part()})

    def add(self, text: str, write: Write) -> bytes:
        self.text += text
        more: Json = {"logprobs": []} if self.kind == "response.output_text" else {}
        return write(f"{self.kind}.delta", {**self._at(), "delta": text, **more})

    def end(self, write: Write) -> bytes:
        more: Json = {"logprobs": []} if self.kind == "response.output_text" else {}
        done = write(f"{self.kind}.done", {**self._at(), self.field: self.text, **more})
        return done + write("response.content_part.done", {**self._at(), "part": self._part()}) + super().end(write)


class _Message(_Text):
    prefix = "msg"
    kind = "response.output_text"


class _Refusal(_Text):
    prefix = "msg"
    kind = "response.refusal"
    field = "refusal"

    def _part(self) -> Json:
        return {"type": "refusal", "refusal": self.text}


class _Reasoning(_Text):
    prefix = "rs"
    kind = "response.reasoning_text"

    def _part(self) -> Json:
        return {"type": "reasoning_text", "text": self.text}

    def shown(self, status: str) -> Json:
        parts = [] if status == "in_progress" else [self._part()]
        return {"id": self.id, "type": "reasoning", "status": status, "summary": [], "content": parts}


class _Call(_Item):
    """A function call; ``index`` is the chat's number of it."""

    def __init__(self, reservation: str, place: int, index: int, call_id: Any, name: Any) -> None:
        super().__init__(f"fc_{reservation}_{place}", place)
        self.index = index
        self._call_id = call_id or f"call_{reservation}_{place}"
        self._name = name or ""

    def shown(self, status: str) -> Json:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": self.text,
        }

    def add(self, text: str, write: Write) -> bytes:
        self.text += text
        at = {"item_id": self.id, "output_index": self.place, "delta": text}
        return write("response.function_call_arguments.delta", at)

    def end(self, write: Write) -> bytes:
        at = {"item_id": self.id, "output_index": self.place, "arguments": self.text, "name": self._name}
        return write("response.function_call_arguments.done", at) + super().end(write)


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(reservation: str, parts: list[Json]) -> Json:
    identity = f"msg_{reservation}_0"
    return {"id": identity, "type": "message", "role": "assistant", "status": "completed", "content": parts}


def _reasoning(reservation: str, text: str) -> Json:
    part = {"type": "reasoning_text", "text": text}
    return {"id": f"rs_{reservation}_0", "type": "reasoning", "status": "completed", "summary": [], "content": [part]}


def _call(reservation: str, index: int, call_id: Any, name: Any, arguments: Any) -> Json:
    return {
        "id": f"fc_{reservation}_{index}",
        "type": "function_call",
        "status": "completed",
        "call_id": call_id or f"call_{reservation}_{index}",
        "name": name or "",
        "arguments": arguments or "",
    }


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    return value if isinstance(value, str) else ""


def _object(found: Any) -> Json:
    """What a model server sent where an object is due."""
    return found if isinstance(found, dict) else {}


def _objects(found: Any) -> Iterator[Json]:
    return (each for each in found if isinstance(each, dict)) if isinstance(found, list) else iter(())
