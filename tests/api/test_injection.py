"""Every string of the corpora in every header, field, parameter and path of every route: refused in words or harmless.

In full that is 221,200 requests over sockets; a part of them, drawn anew each time, in ``make test``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from penstock.api.openapi import declared, description
from penstock.api.permissions import PERMISSIONS, Audience
from penstock.api.services import Bounds
from tests.api import hostile_places
from tests.api.corpora import HEADERS, STRINGS
from tests.api.door import TOKEN, Door, chat_body, open_door, read_answer
from tests.api.hostile_places import assert_harmless, put, within
from tests.counts import count

pytestmark = [pytest.mark.slow, pytest.mark.torture]

MESSAGE = {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"}
BODIES: dict[str, dict[str, Any]] = {
    "chat.completions": chat_body(
        messages=[MESSAGE], stop=["a"], user="u", metadata={"k": "v"}, n=1, temperature=1.0, seed=1,
        tools=[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
        stream=False, response_format={"type": "text"}, logit_bias={"1": 1}, tool_choice="auto",
    ),
    "completions": {"model": "chat-small", "prompt": ["a"], "suffix": "s", "echo": False, "best_of": 1},
    "embeddings": {"model": "chat-small", "input": ["a"], "encoding_format": "float", "dimensions": 1, "user": "u"},
    "responses": {
        "model": "chat-small", "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
        "instructions": "i", "metadata": {"k": "v"}, "store": False, "max_output_tokens": 5, "user": "u",
    },
}  # fmt: skip
written = partial(hostile_places.written, token=TOKEN)
Case = tuple[str, str, Callable[[str], bytes]]
DOOR_EVERY = 2_000  # its store is a model, which is slower with each reservation that it has had
ANSWER_S = 120.0  # a full run shares its machine with whatever else there is
PARAMETERS = ("start", "end", "group_by", "limit", "after", "wait", "status", "unknown")
ROUTES = [
    (declared(path), method.upper())
    for path, methods in sorted(description()["paths"].items())
    for method in methods
    if PERMISSIONS[declared(path)].audience is not Audience.ADMINISTRATOR  # theirs: test_admin_injection.py
]


def cases() -> list[Case]:
    """Route, place, and what makes the request of a string."""
    found: list[Case] = []
    for path, method in ROUTES:
        body = BODIES.get(PERMISSIONS[path].route) if method == "POST" else None
        real = path.replace("{name:path}", "chat-small").replace("{id}", "0" * 32)

        def add(place: str, make: Callable[[str], bytes], route: str = f"{method} {path}") -> None:
            found.append((route, place, make))

        for name in HEADERS:
            add(name, lambda text, m=method, r=real, b=body, n=name: written(m, r, b, header=(n, text)))  # type: ignore[misc]
        for name in PARAMETERS:
            add(name, lambda text, m=method, r=real, b=body, n=name: written(m, f"{r}?{n}={quote(text)}", b))  # type: ignore[misc]
        add("path", lambda text, m=method, r=real, b=body: written(m, f"{r}/{quote(text)}", b))  # type: ignore[misc]
        if "{" in path:
            start = path.partition("{")[0]
            add("name in the path", lambda text, m=method, s=start: written(m, f"{s}{quote(text, safe='')}", None))  # type: ignore[misc]
        for kind, at in within(body):
            is_name = kind == "name"
            add(
                f"{kind} {at}",
                lambda text, m=method, r=real, b=body, a=at, i=is_name: written(m, r, put(b, a, text, is_name=i)),  # type: ignore[misc]
            )
    return found


def check(door: Door, request: bytes) -> int | None:
    with door.connect() as connection:
        connection.settimeout(ANSWER_S)
        connection.sendall(request)
        try:
            answer = read_answer(connection)
        except (IndexError, ConnectionResetError):
            return None  # cut off
    assert_harmless(answer, TOKEN)
    assert "set-cookie" not in answer.headers
    return answer.status


def test_no_string_in_any_place_does_more_than_be_refused_or_read(seed: int) -> None:
    assert len(STRINGS) >= 200
    random = Random(seed)
    every = [(case, text) for case in cases() for text in STRINGS]
    drawn = random.sample(every, count(len(every), short=1_500))
    statuses: set[int | None] = set()
    for begin in range(0, len(drawn), DOOR_EVERY):
        statuses |= attack(drawn[begin : begin + DOOR_EVERY])
    assert {200, 400, 401, 404} <= statuses


def attack(drawn: list[tuple[Case, str]]) -> set[int | None]:
    """Send them to a door of their own, which serves as before when they are through; how they were answered."""
    statuses: set[int | None] = set()
    with open_door(Door(bounds=Bounds(body_s=0.5)), head_s=0.5) as door:
        door.lane.words = ["one"]
        limits = {each.limit for each in door.store.inspected().limits}
        organisations = set(door.store.organisations)
        for (route, place, make), text in drawn:
            try:
                statuses.add(check(door, make(text)))
            except (AssertionError, TimeoutError) as error:
                error.add_note(f"{route}: {text!r} as {place}")
                raise
        assert {each.limit for each in door.store.inspected().limits} == limits
        assert set(door.store.organisations) == organisations
        assert {record.organisation for record in door.watcher.ended} <= {"acme", ""}
        assert door.chat().status == 200
    return statuses
