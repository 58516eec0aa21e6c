"""Where a request has room for a hostile text, and what must hold of each answer to one, whoever the route is for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.api.door import Answer


def within(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Where a body has values (``body``), and where it has names (``name``)."""
    if value is None:
        return
    yield "body", at
    if isinstance(value, dict):
        for name, below in value.items():
            yield "name", (*at, name)
            yield from within(below, (*at, name))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from within(below, (*at, index))


def put(value: Any, at: tuple[Any, ...], text: str, *, is_name: bool) -> Any:
    """The body with the text in that place."""
    if not at:
        return text
    first, *rest = at
    if isinstance(value, list):
        return [put(each, tuple(rest), text, is_name=is_name) if i == first else each for i, each in enumerate(value)]
    if is_name and not rest:
        return {text if name == first else name: each for name, each in value.items()}
    return {n: put(each, tuple(rest), text, is_name=is_name) if n == first else each for n, each in value.items()}


def written(
    method: str,
    path: str,
    body: Any,
    *,
    token: str,
    header: tuple[str, str] | None = None,
    more: Mapping[str, str] | None = None,
) -> bytes:
    """A request, to the byte: ``header`` replaces the one of its name, and may hold anything."""
    content = b"" if body is None else json.dumps(body).encode()
    headers = {"host": "x", "authorization": f"Bearer {token}", **(more or {})}
    if content:
        headers |= {"content-type": "application/json", "content-length": str(len(content))}
    headers |= dict([header] if header else [])
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "connection: close", "", ""]).encode() + content


def assert_harmless(answer: Answer, token: str) -> None:
    """No error of ours, nothing that a terminal would obey, and no secret."""
    assert answer.status < 500, answer.body
    assert all(character.isprintable() for value in answer.headers.values() for character in value)
    assert not {byte for byte in answer.body if byte < 0x20 and byte != 0x0A}
    if answer.status >= 400:
        shown = [each for each in answer.error().values() if each is not None]
        assert all(each.isprintable() for each in shown), shown
        assert token not in "".join(shown)
