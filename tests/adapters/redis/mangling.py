"""Arguments that are wrong in every way that somebody thought of, made from right ones.

``mangled`` gives what is sent: a function's name, keys and the argument's text. Nothing here knows what is right.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from penstock.adapters.redis.translating import keys_of
from tests.quota.histories import ORGANISATIONS

FUNCTIONS = (
    "reserve", "settle", "void", "touch", "acquire", "published", "cancel", "extend", "sweep", "define", "ready",
    "reassert", "post", "inspect", "look", "restore",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 7, 1.5, -0.0, 2**31, 2**31 + 1, 2**52, 2**52 + 1, 2**53, 2**53 + 1, -(2**53), -(2**63), 2**64, 10**30,
    1e15, 1e16, 1e300, -1e300, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS = (
    "", "a", "acme", "zeta", "acme:team:search", "acme/tokens/day", "realtime", "queue", "posted", "learned", "window",
    "rate", "tokens", "0", "1e3", "null", "\0", "a\0b", '"', "\\", "\r\n+OK", "%d%s", "{q40}:acme", "_epoch", "_clk",
    "~", "k1~x", "\u20ac", "\U0001f4b0", "\x7f", "x" * 3_000, "/", "//", ":",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], [None], {"": None}, [0, 1], {"0": 0}, {"a": {"b": {}}}, [{}], ["a"], [["a", 0]],
)  # fmt: skip
TOKENS = (
    b"NaN", b"nan", b"Infinity", b"-Infinity", b"inf", b"0x10", b"01", b"+1", b"-", b"1.", b".5", b"1e999", b"-1e999",
    b"1E+2", b"null", b"true", b'""', b"[]", b"{}", b"9" * 40, b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b'"\\ud800"',
    b'"\\u0000"', b'"\\x"', b"\0", b"[" * 40, b"[" * 3_000, b'{"a":' * 40, b",", b":", b'"', b"}", b"]", b"\n", b"//",
)  # fmt: skip

Mangled = tuple[str, tuple[bytes, ...], bytes]


def places(value: Any, *path: Any) -> list[tuple[Any, ...]]:
    """The path of everything inside a value of JSON."""
    found = []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        found.append((*path, name))
        found += places(each, *path, name)
    return found


def _reach(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def _replace_one(random: Random, argument: Any) -> None:
    path = random.choice(places(argument))
    value = random.choice(random.choice((NUMBERS, TEXTS, OTHERS)))
    _reach(argument, path[:-1])[path[-1]] = json.loads(json.dumps(value))  # a copy of its own


def _remove_one(random: Random, argument: Any) -> None:
    path = random.choice(places(argument))
    del _reach(argument, path[:-1])[path[-1]]


def _swap_two(random: Random, argument: Any) -> None:
    one, other = (random.choice(places(argument)) for _ in range(2))
    if one[: len(other)] == other or other[: len(one)] == one:
        return
    here, there = _reach(argument, one[:-1]), _reach(argument, other[:-1])
    here[one[-1]], there[other[-1]] = there[other[-1]], here[one[-1]]


def _deepen_one(random: Random, argument: Any) -> None:
    path = random.choice(places(argument))
    within = _reach(argument, path[:-1])
    for _ in range(random.choice((1, 3, 40))):
        within[path[-1]] = random.choice(([within[path[-1]]], {"a": within[path[-1]]}))


def _rename_one(random: Random, argument: Any) -> None:
    named = [path for path in places(argument) if isinstance(path[-1], str)]
    path = random.choice(named)
    within = _reach(argument, path[:-1])
    within[random.choice((random.choice(TEXTS), random.choice(named)[-1]))] = within.pop(path[-1])


CHANGES: tuple[Callable[[Random, Any], None], ...] = (
    _replace_one, _replace_one, _replace_one, _remove_one, _swap_two, _deepen_one, _rename_one,
)  # fmt: skip


def _scratch(random: Random, text: bytes) -> bytes:
    """Change the text itself, wherever that is."""
    at = random.randrange(len(text) + 1)
    what = random.randrange(5)
    if what == 0:
        return text[:at]
    if what == 1:
        return text[:at] + random.choice(TOKENS) + text[at:]
    if what == 2:
        return text[:at] + random.choice(TOKENS) + text[at + random.randrange(1, 9) :]
    if what == 3:
        return text[:at] + bytes([random.randrange(256)]) + text[at + 1 :]
    colon = text.find(b":", at)
    ends = [end for end in (text.find(b",", colon), text.find(b"}", colon)) if end > 0]
    return text[: colon + 1] + random.choice(TOKENS) + text[min(ends) :] if colon > 0 and ends else text + text


def _wrong_keys(random: Random, keys: tuple[bytes, ...]) -> tuple[bytes, ...]:
    found = list(keys)
    what = random.randrange(4)
    if what == 0:
        found[random.randrange(5)] = random.choice(keys_of(random.choice(ORGANISATIONS)))
    elif what == 1:
        del found[random.randrange(5) :]
    elif what == 2:
        found.append(random.choice(found))
    else:
        random.shuffle(found)
    return tuple(found)


def mangled(random: Random, function: str, argument: dict[str, Any]) -> Mangled:
    """A call as it is, or with one to three things wrong."""
    keys = keys_of(str(argument["organisation"]))
    kind = random.random()
    if kind < 0.15:
        return function, keys, json.dumps(argument).encode()
    if kind < 0.20:
        return function, _wrong_keys(random, keys), json.dumps(argument).encode()
    if kind < 0.24:
        return random.choice(FUNCTIONS), keys, json.dumps(argument).encode()
    if kind < 0.26:
        keys = keys_of(random.choice((*ORGANISATIONS, "nobody", "")))
        return function, keys, json.dumps(argument).encode()
    if kind < 0.75:
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            if places(argument):
                random.choice(CHANGES)(random, argument)
        return function, keys, json.dumps(argument, ensure_ascii=random.random() < 0.5).encode()
    text = json.dumps(argument).encode()
    for _ in range(random.choice((1, 1, 2))):
        text = _scratch(random, text)
    return function, keys, text
