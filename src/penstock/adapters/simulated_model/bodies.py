"""The JSON that the simulated model reads and writes."""

from __future__ import annotations

import functools
import time
from typing import Any

import msgspec

from penstock.adapters.simulated_model import counting
from penstock.adapters.simulated_model.instructions import NOTHING_SPECIAL, Instructions, parse

HUGE = 10**18


class Part(msgspec.Struct):
    """A piece of a message's content; only text counts."""

    text: str = ""


class Message(msgspec.Struct):
    """One message of a chat."""

    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    """``continuous_usage_stats`` is vLLM's: a running count in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


Text = str | list[str | int | list[int]]


class Metadata(msgspec.Struct):
    """Where instructions are."""

    simulate: str = ""


class Ask(msgspec.Struct):
    """What is read of a request; everything else in it is ignored."""

    model: str = ""
    messages: list[Message] | None = None
    prompt: Text | None = None
    input: Text | None = None
    content: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    encoding_format: str | None = None
    metadata: Metadata | None = None

    def instructions(self) -> Instructions:
        """The wishes in ``metadata.simulate``; raises ValueError like ``instructions.parse``."""
        return parse(self.metadata.simulate) if self.metadata and self.metadata.simulate else NOTHING_SPECIAL

    def prompts(self) -> list[str | list[int]]:
        """The texts or token lists of a completion or an embedding."""
        given = self.prompt if self.prompt is not None else self.input
        if given is None:
            return []
        if isinstance(given, str):
            return [given]
        if given and isinstance(given[0], int):
            return [[token for token in given if isinstance(token, int)]]
        return [one for one in given if not isinstance(one, int)]

    def prompt_tokens(self) -> int:
        """Count the prompt by the rule of ``counting``."""
        if self.messages is None:
            return sum(counting.text_tokens(one) if isinstance(one, str) else len(one) for one in self.prompts())
        tokens = 0
        for message in self.messages:
            tokens += counting.TOKENS_PER_MESSAGE
            if isinstance(message.content, str):
                tokens += counting.text_tokens(message.content)
            elif message.content is not None:
                tokens += sum(counting.text_tokens(part.text) for part in message.content)
        return tokens


class Tensor(msgspec.Struct):
    """An input of a generic model."""

    name: str
    data: list[Any]


class InferenceParameters(msgspec.Struct):
    """Where a generic model's instructions are."""

    simulate: str = ""


class InferenceAsk(msgspec.Struct):
    """What is read of a request to a generic model."""

    inputs: list[Tensor]
    parameters: InferenceParameters | None = None

    def instructions(self) -> Instructions:
        """The wishes in ``parameters.simulate``; raises ValueError like ``instructions.parse``."""
        asked = self.parameters.simulate if self.parameters else ""
        return parse(asked) if asked else NOTHING_SPECIAL

    def elements(self) -> int:
        """Of all inputs."""
        return sum(_elements(tensor.data) for tensor in self.inputs)


def _elements(data: Any) -> int:
    return sum(map(_elements, data)) if isinstance(data, list) else 1


def inferred(model: str, ask: InferenceAsk, wishes: Instructions) -> bytes:
    """The answer to it: how many elements each input has."""
    if wishes.garbage_body:
        return b"<html>It works!</html>"
    counts = [_elements(tensor.data) for tensor in ask.inputs]
    outputs = [{"name": "elements", "shape": [len(counts)], "datatype": "INT64", "data": counts}]
    answer: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": outputs}
    if not wishes.no_usage:
        answer["parameters"] = {"units": -1 if wishes.absurd_usage else sum(counts)}
    return msgspec.json.encode(answer)


def usage(prompt: int, cached: int, completion: int | None, absurd: str = "") -> dict[str, Any]:
    """The usage object; ``absurd`` names a way of being wrong about the completion (or prompt, of an embedding)."""
    shown: dict[str, Any] = {"prompt_tokens": prompt}
    if completion is not None:
        shown["completion_tokens"] = completion
    shown["total_tokens"] = prompt + (completion or 0)
    if cached:
        shown["prompt_tokens_details"] = {"cached_tokens": cached}
    if absurd:
        counted = "prompt_tokens" if completion is None else "completion_tokens"
        shown[counted] = {"negative": -7, "string": "many", "huge": HUGE, "float": shown[counted] + 0.5}[absurd]
    return shown


def error(message: str, status: int) -> bytes:
    """An error as model servers write it."""
    kind = "BadRequestError" if status < 500 else "InternalServerError"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": status}})


@functools.lru_cache(maxsize=1024)
def _choices(route: str, outputs: int, tokens: int, finish: str) -> bytes:
    text = counting.text_of_tokens(tokens)
    content: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text}} if route == "chat.completions" else {"text": text}
    )
    return msgspec.json.encode(
        [{"index": index, **content, "logprobs": None, "finish_reason": finish} for index in range(outputs)]
    )


def whole(route: str, model: str, identity: str, choices: tuple[int, int, str], usage_shown: Any) -> bytes:
    """A whole answer, ``choices`` being (outputs, tokens of each, finish reason); its long part is made once."""
    head = msgspec.json.encode(
        {
            "id": identity,
            "object": "chat.completion" if route == "chat.completions" else "text_completion",
            "created": int(time.time()),
            "model": model,
        }
    )
    tail = b"" if usage_shown is None else b',"usage":' + msgspec.json.encode(usage_shown)
    return head[:-1] + b',"choices":' + _choices(route, *choices) + tail + b"}"


class Chunks:
    """Writes one stream's events; everything but the word is made once."""

    def __init__(self, route: str, model: str, identity: str, *, include_usage: bool) -> None:
        self._chat = route == "chat.completions"
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        head = {"id": identity, "object": kind, "created": int(time.time()), "model": model}
        self._head = msgspec.json.encode(head)[:-1] + b',"choices":['
        self._null = b',"usage":null}' if include_usage else b"}"
        self._words: dict[tuple[int, str], bytes] = {}

    def _event(self, index: int, content: dict[str, Any], finish: str | None) -> bytes:
        shown = {"delta": content} if self._chat else {"text": content.get("content", "")}
        choice = {"index": index, **shown, "logprobs": None, "finish_reason": finish}
        return self._head + msgspec.json.encode(choice) + b"]"

    def _end(self, usage_shown: Any) -> bytes:
        return self._null if usage_shown is None else b',"usage":' + msgspec.json.encode(usage_shown) + b"}"

    def role(self, index: int) -> bytes:
        """The first chunk of a chat's output."""
        return self._event(index, {"role": "assistant", "content": ""}, None) + self._null

    def token(self, index: int, text: str, usage_shown: Any = None) -> bytes:
        """A chunk with one token."""
        event = self._words.get((index, text))
        if event is None:
            event = self._words[index, text] = self._event(index, {"content": text}, None)
        return event + self._end(usage_shown)

    def finish(self, index: int, reason: str, usage_shown: Any = None) -> bytes:
        """An output's last chunk."""
        return self._event(index, {}, reason) + self._end(usage_shown)

    def usage(self, usage_shown: Any) -> bytes:
        """The chunk without choices that carries the usage."""
        return self._head + b"]" + self._end(usage_shown)
