"""Every place of ``/admin/v1`` that takes text, by the description of it, and what must hold of each answer."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from penstock.api.openapi import declared, description
from penstock.api.permissions import PERMISSIONS, Audience
from tests.api.door import Answer, read_answer
from tests.api.hostile_places import assert_harmless, put, within, written

ROOT: Final = "/admin/v1"
VICTIMS: Final = tuple(f"victim-{number}" for number in range(200))
HEADERS: Final = ("if-match", "x-request-id", "content-type")
ANSWER_S: Final = 120.0  # a full run shares its machine with whatever else there is
PRICED: Final = {"prompt_picos": 1, "completion_picos": 1, "cached_picos": 1, "request_picos": 1}


def bodies(model: str) -> dict[str, list[dict[str, Any]]]:
    """What each operation is sent, so that only the text decides whether it goes through; ``{key}`` is a key's id."""
    key = {
        "name": "n", "team": "crew", "models": [model], "routes": ["embeddings"], "cost_nanos_max": 1,
        "expires_at_ms": 0, "admin": "",
    }  # fmt: skip
    organisation = {"reserve": "strict", "overrun": "stop", "results_ms": 1, "answers_ms": 1}
    own = "{organisation}"
    return {
        "POST /organisations": [{"name": "another", "limits": ["5 requests/day"], **organisation}],
        f"PATCH /organisations/{own}": [organisation],
        f"POST /organisations/{own}/teams": [{"name": "crew"}],
        f"POST /organisations/{own}/keys": [key],
        f"PATCH /organisations/{own}/keys/{{key}}": [key],
        f"POST /organisations/{own}/keys/{{key}}/rotate": [{"grace_ms": 1}],
        f"POST /organisations/{own}/limits": [
            {"limit": "7 requests/hour", "team": "crew"},
            {"limit": "7 requests/hour", "key": "{key}"},
            {"limit": "7 requests/hour", "model": model},
        ],
        f"PATCH /organisations/{own}/limits/{{limit}}": [{"cap": 5}],
        "POST /prices": [{"model": model, **PRICED, "valid_from_ms": 1 << 42}, {"model": model, **PRICED}],
    }


@dataclass(frozen=True, slots=True)
class Request:
    """One, with a text in one place; ``header`` replaces whatever else the request says by that name."""

    method: str
    path: str
    body: Any
    header: tuple[str, str] | None = None

    def written(self, token: str) -> bytes:
        more = {"if-match": "*"}
        return written(self.method, self.path, self.body, token=token, header=self.header, more=more)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a text goes: ``kind`` is path, query, header, body or name, and ``at`` says which."""

    method: str
    path: str
    kind: str
    at: tuple[Any, ...]
    body: Any = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}, {self.kind} {'.'.join(map(str, self.at))}"

    def request(self, text: str, names: Mapping[str, str]) -> Request:
        """The request with the text in this place; ``names`` are what the path names otherwise."""
        parameters = dict(names) | ({self.at[0]: text} if self.kind == "path" else {})
        real = self.path
        for name, value in parameters.items():
            real = real.replace(f"{{{name}}}", quote(value, safe=""))
        body = {n: names["key"] if each == "{key}" else each for n, each in self.body.items()} if self.body else None
        if self.kind in ("body", "name"):
            body = put(body, self.at, text, is_name=self.kind == "name")
        if self.kind == "query":
            return Request(self.method, f"{real}?{self.at[0]}={quote(text, safe='')}", body)
        if self.kind == "header":
            return Request(self.method, real, body, (self.at[0], text))
        return Request(self.method, real, body)


def places(model: str) -> list[Place]:
    """All of them. An operation that is described, and whose body is not among ``bodies``, is a KeyError."""
    sent, found = bodies(model), []
    for path, operations in sorted(description()["paths"].items()):
        if PERMISSIONS[declared(path)].audience is not Audience.ADMINISTRATOR:
            continue
        for method, operation in operations.items():
            verb = method.upper()
            own = sent[f"{verb} {path.removeprefix(ROOT)}"] if "requestBody" in operation else []
            body = own[0] if own else None
            asked = [(each["in"], each["name"]) for each in operation.get("parameters", ())]
            found += [Place(verb, path, kind, (name,), body) for kind, name in asked if kind != "header"]
            found += [Place(verb, path, "header", (name,), body) for name in HEADERS]
            found.append(Place(verb, path, "query", ("unknown",), body))
            found += [Place(verb, path, kind, at, each) for each in own for kind, at in within(each)]
    return found


class Prey:
    """An organisation of a service at ``port``, whose administrator has ``token``; made again when it is gone."""

    def __init__(self, port: int, token: str, model: str) -> None:
        self.port, self.token, self.model = port, token, model
        self.names: dict[str, str] = {}
        self._victims = iter(VICTIMS)

    def is_known(self) -> bool:
        """Whether the administrator's key is in force."""
        return self.ask("GET", f"{ROOT}/organisations").status == 200

    def move_on(self) -> None:
        """To the next organisation: each change reads all keys of its own, and there get to be many."""
        self.victim = next(self._victims)
        self.raise_again()

    def raise_again(self) -> None:
        """Whatever a request has taken away."""
        at = f"{ROOT}/organisations/{self.victim}"
        self.ask("POST", f"{ROOT}/organisations", {"name": self.victim, "limits": ["9 requests/minute"]})
        self.ask("POST", f"{at}/teams", {"name": "crew"})
        self.ask("POST", f"{at}/limits", {"limit": "9 requests/minute"})
        key = str(self.ask("POST", f"{at}/keys", {"name": "prey"}).json()["id"])
        limit = f"{self.victim}/requests/minute"
        self.names = {"organisation": self.victim, "team": "crew", "key": key, "limit": limit, "job": "0" * 32}

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        answer = self.send(Request(method, path, body))
        assert answer is not None
        return answer

    def send(self, request: Request) -> Answer | None:
        """None: the door closed the connection on it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_S) as connection:
            connection.sendall(request.written(self.token))
            try:
                return read_answer(connection)
            except (IndexError, ConnectionResetError):
                return None

    def try_bodies(self) -> None:
        """See that each operation takes what it is sent, so that a text in it reaches what it is aimed at."""
        for operation, own in bodies(self.model).items():
            method, path = operation.split()
            for body in own:
                sent = Place(method, ROOT + path, "header", ("accept",), body).request("*/*", self.names)
                answer = self.send(sent)
                assert answer is not None
                assert answer.status in (200, 201, 409), (operation, answer.body)

    def attack(self, place: Place, text: str) -> int | None:
        """Send it, and see that the answer does no harm; its status."""
        answer = self.send(place.request(text, self.names))
        if answer is None:
            return None
        assert_harmless(answer, self.token)
        if answer.status < 400 and place.method == "DELETE":
            self.raise_again()
        return answer.status

    def listed(self, path: str) -> list[dict[str, Any]]:
        """Every entry of a list, page by page."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            answer = self.ask("GET", f"{ROOT}{path}?limit=100{cursor}")
            assert answer.status == 200, answer.body
            page: dict[str, Any] = dict(answer.json())
            found += page["data"]
            if not page.get("has_more"):
                return found
            cursor = f"&cursor={page['next_cursor']}"

    def told(self, organisation: str) -> list[Any]:
        """All that is known of an organisation."""
        at = f"{ROOT}/organisations/{organisation}"
        return [self.ask("GET", f"{at}{below}").json() for below in ("", "/teams", "/keys", "/limits")]
