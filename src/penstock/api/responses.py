"""Reads requests to ``/v1/responses``, and makes chat requests of them: one way to a model, accounted in one place.

Every OpenAI-compatible server answers chats, few answer responses, and none of these bounds what an earlier response
adds to a prompt. So a response here has no memory: what refers to one (``previous_response_id``, ``conversation``,
``store: true``, ``background: true``) is refused, and so are tools that a server would run by itself. What is not
known is refused too, since it could cost tokens that nobody reserved. ``penstock.api.responding`` writes the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from penstock.api.bodies import Shape, chat
from penstock.api.responding import Responding
from penstock.errors import InvalidRequest

_SAME: Final = (
    "model", "temperature", "top_p", "stream", "parallel_tool_calls", "metadata", "user", "seed", "stop", "top_k",
    "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "service_tier",
)  # fmt: skip
"""Called the same in a chat."""
_ELSEWHERE: Final = frozenset(
    {"input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning", "store", "truncation",
     "include", "background"}
)  # fmt: skip
_PASSED_OVER: Final = frozenset({"stream_options", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"})
"""Hints that change no answer."""
_STATE: Final = "this service keeps no responses; send the whole conversation in input"
_REFUSED: Final = {"previous_response_id": _STATE, "conversation": _STATE, "prompt": "this service keeps no prompts"}
_INCLUDABLE: Final = frozenset(
    {"reasoning.encrypted_content"}
)  # asked for by clients that keep no state; there is none

Json = dict[str, Any]


def read_response(body: Json, *, prompts_max: int) -> Shape:
    """Check a request for a response, and turn ``body`` into the chat request that the model gets.

    Raises:
        InvalidRequest: With the parameter's name.
    """
    asked = dict(body)
    _refuse_state(asked)
    chat_body: Json = {name: asked[name] for name in _SAME if asked.get(name) is not None}
    chat_body["messages"] = _messages(asked)
    if asked.get("max_output_tokens") is not None:
        chat_body["max_tokens"] = asked["max_output_tokens"]
    _tools(asked, chat_body)
    _form(asked, chat_body)
    if asked.get("stream") is True:
        chat_body["stream_options"] = {"include_usage": True}
    try:
        shape = chat(chat_body, prompts_max=prompts_max)
    except InvalidRequest as error:
        raise _in_our_words(error) from None
    body.clear()
    body.update(chat_body)
    return shape._replace(bytes_least=len(msgspec.json.encode(chat_body)), answering=Responding(asked))


def _translated(asked: Json) -> tuple[Json, Responding]:
    """The chat request of a request for a response that was accepted as a job, and what answers it."""
    body = dict(asked)
    read_response(body, prompts_max=1)
    return body, Responding(asked)


TRANSLATIONS: Final = {"responses": _translated}
"""What `penstock.lanes.executing` needs to run jobs of routes that are answered by a chat."""


def _refuse_state(asked: Mapping[str, Any]) -> None:
    for name, why in _REFUSED.items():
        if asked.get(name) is not None:
            raise InvalidRequest(f"{name}: {why}, and leave it out", param=name, code="stateless")
    for name in ("store", "background"):
        if asked.get(name) not in (None, False):
            raise InvalidRequest(f"{name}: {_STATE}, with {name}: false", param=name, code="stateless")
    if asked.get("truncation") not in (None, "disabled"):
        raise _wrong("truncation", 'must be "disabled": nothing is cut from a conversation here')
    include = asked.get("include")
    if include is not None and not (type(include) is list and set(map(str, include)) <= _INCLUDABLE):
        raise _wrong("include", "names what is not known here; leave it out")
    unknown = sorted(asked.keys() - _ELSEWHERE - _PASSED_OVER - _REFUSED.keys() - set(_SAME))
    if unknown:
        raise InvalidRequest(f"{unknown[0][:64]}: not known here; leave it out", param=unknown[0][:64])


# --- the conversation -----------------------------------------------------------------------------------------


def _messages(asked: Mapping[str, Any]) -> list[Json]:
    messages: list[Json] = []
    instructions = asked.get("instructions")
    if instructions is not None:
        if type(instructions) is not str:
            raise _wrong("instructions", "must be text")
        messages.append({"role": "system", "content": instructions})
    given = asked.get("input")
    if type(given) is str:
        messages.append({"role": "user", "content": given})
        return messages
    if type(given) is not list or not given:
        raise _wrong("input", "must be text, or a list of at least one item")
    for item in given:
        if type(item) is not dict:
            raise _wrong("input", "each item must be an object")
        _add(messages, item)
    return messages


def _add(messages: list[Json], item: Json) -> None:
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if role not in ("user", "assistant", "system", "developer"):
                raise _wrong("input", "a message's role must be user, assistant, system or developer")
            content = _content(item.get("content"))
            messages.append({"role": "system" if role == "developer" else role, "content": content})
        case "function_call":
            call_id, name, arguments = _texts(item, "call_id", "name", "arguments")
            call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        case "function_call_output":
            (call_id,) = _texts(item, "call_id")
            messages.append({"role": "tool", "tool_call_id": call_id, "content": _content(item.get("output"))})
        case "reasoning":
            pass  # a model is not shown what it thought before
        case _:
            raise _wrong("input", "items are message, function_call, function_call_output and reasoning")


def _content(found: Any) -> str | list[Json]:
    """Text, or parts as a chat has them."""
    if type(found) is str:
        return found
    if type(found) is not list:
        raise _wrong("input", "content must be text or a list of parts")
    parts = [_part(part) for part in found]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: Any) -> Json:
    kind = part.get("type") if type(part) is dict else None
    match kind:
        case "input_text" | "output_text" | "text":
            (text,) = _texts(part, "text")
            return {"type": "text", "text": text}
        case "refusal":
            (text,) = _texts(part, "refusal")
            return {"type": "text", "text": text}
        case "input_image":
            if part.get("file_id") is not None:
                raise _wrong("input", "this service keeps no files; send an image as a data: URL")
            (url,) = _texts(part, "image_url")
            detail = {"detail": part["detail"]} if type(part.get("detail")) is str else {}
            return {"type": "image_url", "image_url": {"url": url, **detail}}
        case "input_audio" if type(part.get("input_audio")) is dict:
            return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise _wrong("input", "parts are input_text, output_text, refusal, input_image and input_audio")


# --- tools and the answer's form ------------------------------------------------------------------------------


def _tools(asked: Mapping[str, Any], chat_body: Json) -> None:
    tools = asked.get("tools")
    if tools is not None:
        if type(tools) is not list:
            raise _wrong("tools", "must be a list")
        if tools:
            chat_body["tools"] = [_tool(tool) for tool in tools]
    choice = asked.get("tool_choice")
    if type(choice) is str:
        chat_body["tool_choice"] = choice
    elif type(choice) is dict and choice.get("type") == "function":
        (name,) = _texts(choice, "name", where="tool_choice")
        chat_body["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif choice is not None:
        raise _wrong("tool_choice", "must be none, auto, required, or a function by its name")
    if not tools:
        chat_body.pop("tool_choice", None)
        chat_body.pop("parallel_tool_calls", None)


def _tool(tool: Any) -> Json:
    if type(tool) is not dict or tool.get("type") != "function":
        raise _wrong("tools", "only functions are known: what a server runs by itself would cost without bound")
    _texts(tool, "name", where="tools")
    known = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in known if tool.get(name) is not None}}


def _form(asked: Mapping[str, Any], chat_body: Json) -> None:
    text = asked.get("text")
    if text is not None:
        if type(text) is not dict:
            raise _wrong("text", "must be an object")
        wanted = text.get("format")
        kind = wanted.get("type") if type(wanted) is dict else None
        if type(wanted) is dict and kind == "json_schema":
            fields = {name: value for name, value in wanted.items() if name != "type"}
            chat_body["response_format"] = {"type": "json_schema", "json_schema": fields}
        elif kind == "json_object":
            chat_body["response_format"] = {"type": "json_object"}
        elif kind != "text" and wanted is not None:
            raise _wrong("text", "format's type must be text, json_object or json_schema")
        if type(text.get("verbosity")) is str:
            chat_body["verbosity"] = text["verbosity"]
    reasoning = asked.get("reasoning")
    if reasoning is not None:
        if type(reasoning) is not dict:
            raise _wrong("reasoning", "must be an object")
        if type(reasoning.get("effort")) is str:
            chat_body["reasoning_effort"] = reasoning["effort"]


# --- errors ---------------------------------------------------------------------------------------------------


def _texts(item: Mapping[str, Any], *names: str, where: str = "input") -> list[str]:
    for name in names:
        if type(item.get(name)) is not str:
            raise _wrong(where, f"{name} must be text")
    return [item[name] for name in names]


def _wrong(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {what}", param=name)


_NAMES: Final = {"messages": "input", "max_tokens": "max_output_tokens"}


def _in_our_words(error: InvalidRequest) -> InvalidRequest:
    """The chat's complaint, by the name that the client used."""
    name = _NAMES.get(error.param or "")
    if name is None:
        return error
    message = error.message.replace(f"{error.param}:", f"{name}:", 1)
    return InvalidRequest(message, param=name, code=error.code)
