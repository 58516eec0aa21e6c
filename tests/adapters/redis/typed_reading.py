"""What a text means as a call: the types of ``penstock.quota.operations``, read without the library's help.

The oracle of which arguments the function library must take. It is as lenient as the library's parser where that harms
nobody: a control character within a text, ``1.`` and ``-.5`` for numbers, and ``{}`` for ``[]`` when empty.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from penstock.quota import Call, Event, operations

DEPTH_MAX = 32
EXACT = 1 << 53
_OPTIONAL_FIELDS = {"prompt_tokens", "team", "model", "models", "routes", "cost_nanos_max", "already_charged"}
_OPTIONAL_FIELDS |= {"holds_max", "after_ms", "after", "restored"}
CALLS: dict[str, type[Call[Any]]] = {
    name.lower(): each
    for name, each in vars(operations).items()
    if isinstance(each, type) and issubclass(each, Call) and each not in (Call, operations.ReserveArguments)
}


class NoCall(Exception):
    """It is none."""


def read_call(function: str, text: bytes) -> Call[Any]:
    """The call.

    Raises:
        NoCall: The text is no JSON, or not of this call's type.
    """
    value = _parsed(text)
    if not isinstance(value, dict):
        raise NoCall("no object")
    call: Call[Any] = _converted(value, CALLS[function])
    return call


def _refuse(text: str) -> Any:
    raise NoCall(text)


def _parsed(text: bytes) -> Any:
    try:
        whole = text.decode()
        if "\0" in whole or r"\u0000" in whole:
            raise NoCall("a NUL")
        try:
            value = _loads(whole)
        except ValueError:
            value = _loads(re.sub(r"(?<=\d)\.(?=[\s,}\]eE]|$)", ".0", re.sub(r"(?<=[:,\[\s])-\.(?=\d)", "-0.", whole)))
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # a UnicodeError is a ValueError
        raise NoCall(str(error)) from error
    if _depth(value) > DEPTH_MAX:
        raise NoCall("too deep")
    return value


def _loads(text: str) -> Any:
    return json.loads(text, strict=False, parse_constant=_refuse)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


@cache
def _fields(of: Any) -> Mapping[str, Any]:
    hints = get_type_hints(of)
    return {each.name: hints[each.name] for each in dataclasses.fields(of)}


def _converted(value: Any, hint: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _converted(value, inner[0])
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _record(value, hint)
    if hint is int:
        return _whole(value)
    if hint in (str, bool):
        return value if type(value) is hint else _refuse(f"{value!r} is no {hint}")
    if isinstance(hint, type) and issubclass(hint, Enum):
        known = isinstance(value, str) and value in {each.value for each in hint}
        return hint(value) if known else _refuse(f"{value!r} is no {hint}")
    if value in ([], {}) and origin in (tuple, frozenset, Mapping):
        value = origin() if origin in (tuple, frozenset) else {}
    if origin is Mapping and isinstance(value, dict):
        return {name: _converted(each, inner[1]) for name, each in value.items()}
    if origin is frozenset and isinstance(value, list | frozenset):
        return frozenset(_converted(each, inner[0]) for each in value)
    if origin is tuple and isinstance(value, list | tuple):
        if inner[-1] is Ellipsis:
            return tuple([_converted(each, inner[0]) for each in value])
        if len(value) == len(inner):
            return tuple(map(_converted, value, inner))
    return _refuse(f"{value!r} is no {hint}")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -EXACT < value < EXACT:
        raise NoCall(f"{value!r} is no number that a double carries exactly")
    if value != int(value):
        raise NoCall(f"{value!r} is no integer")
    return int(value)


def _record(value: Any, of: Any) -> Any:
    if not isinstance(value, dict):
        raise NoCall(f"{value!r} is no {of.__name__}")
    found = {}
    for name, hint in _fields(of).items():
        if name not in value and name not in _OPTIONAL_FIELDS:
            raise NoCall(f"{name} is missing")
        found[name] = _converted(value.get(name), hint)
    record = of(**found)
    if isinstance(record, Event) and not _is_event(record):
        raise NoCall("has numbers that no event has")
    return record


def _is_event(event: Event) -> bool:
    tokens, exact = range((1 << 31) + 1), range((1 << 52) + 1)
    price = event.price
    return (
        event.occurred_at_ms in exact
        and event.job_deadline_ms in exact
        and all(
            each in tokens
            for each in (event.tokens_held, event.charge.tokens, event.usage.prompt, event.usage.completion)
        )
        and event.charge.requests in (0, 1)
        and event.charge.cost_nanos in exact
        and all(
            each in range((1 << 30) + 1) for each in (price.prompt_picos, price.cached_picos, price.completion_picos)
        )
        and price.request_picos in range((1 << 40) + 1)
    )
