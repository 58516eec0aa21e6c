"""Every path has a permission and a description; what has none is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from penstock.api.answers import HANDLERS
from penstock.api.application import application
from penstock.api.openapi import declared, description
from penstock.api.pages import Pages
from penstock.api.permissions import PERMISSIONS, Audience
from tests.api.door import Door, chat_body, listening

TENSOR = {"name": "a", "shape": [1], "datatype": "INT64", "data": [1]}
OPEN = {path for path, permission in PERMISSIONS.items() if permission.audience is Audience.ANYONE}


def test_every_route_has_a_declared_permission_and_none_is_declared_in_vain() -> None:
    paths = application(Door().services()).paths()
    assert len(paths) == len(set(paths))
    assert set(paths) == set(PERMISSIONS)


def test_only_health_and_the_description_are_open() -> None:
    assert {path for path in OPEN if "health" not in path} == {"/openapi.json"}


def test_a_route_without_a_permission_is_refused(door: Door) -> None:
    @dataclass
    class Undeclared:
        """A record is put where the application puts it."""

        inner: Starlette

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.inner(scope | {"penstock.record": None}, receive, send)

    routes: list[Route] = Pages(door.services(), permissions={}).routes()
    app = Undeclared(Starlette(routes=routes, exception_handlers=HANDLERS))
    with listening(app) as (port, _):
        bare = Door(port=port)
        for route in routes:
            path = route.path.replace("{name:path}", "chat-small").replace("{id}", "x")
            (method, *_) = sorted(route.methods or ())
            assert bare.ask(method, path).status == 403, path


@pytest.mark.parametrize("path", [path for path in PERMISSIONS if path not in OPEN])
def test_every_path_that_is_not_open_asks_for_a_key(door: Door, path: str) -> None:
    (described,) = [methods for each, methods in description()["paths"].items() if declared(each) == path]
    for method in described:
        answer = door.ask(method.upper(), path.replace("{name:path}", "x"), chat_body(), token=None)
        assert answer.status == 401


def test_every_path_is_described_and_every_description_is_a_path() -> None:
    assert {declared(path) for path in description()["paths"]} == set(PERMISSIONS)


def test_every_described_method_is_answered_and_every_other_is_a_405(door: Door) -> None:
    for path, methods in description()["paths"].items():
        if path.startswith("/admin/"):
            continue  # they need records: tests/api/test_administering.py
        for method in ("GET", "POST", "DELETE", "PUT"):
            job = str(door.ask("POST", "/v1/async/chat/completions", chat_body()).json()["id"])
            if method == "GET":
                door.shelf.end(job)  # so that its events have an end
            real = path.replace("{name}", "chat-small").replace("{id}", job)
            bodies = {
                "/v1/responses": {"model": "chat-small", "input": "a"},
                "/v1/async/responses": {"model": "chat-small", "input": "a"},
                "/v2/models/{name}/infer": {"inputs": [TENSOR]},
            }
            answer = door.ask(method, real, bodies.get(path, chat_body(prompt="a", input="a")))
            if method.lower() in methods:
                assert answer.status == (202 if path.startswith("/v1/async/") else 200), (method, path)
            else:
                assert (answer.status, answer.error()["code"]) == (405, "method_not_allowed"), (method, path)
                assert {each.upper() for each in methods} <= set(answer.headers["allow"].split(", "))


def test_every_reference_of_the_description_is_there() -> None:
    described = description()

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            found = [value["$ref"]] if "$ref" in value else []
            return found + [each for child in value.values() for each in references(child)]
        return [each for child in value for each in references(child)] if isinstance(value, list) else []

    schemas = described["components"]["schemas"]
    assert {reference.rpartition("/")[2] for reference in references(described)} == set(schemas)


def test_the_description_is_served_to_anyone(door: Door) -> None:
    answer = door.ask("GET", "/openapi.json", token=None)
    assert answer.json()["openapi"] == "3.1.0"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_a_404_in_json_with_a_request_id(door: Door, method: str) -> None:
    answer = door.ask(method, "/v1/nothing")
    assert (answer.status, answer.error()["code"]) == (404, "unknown_url")
    assert answer.headers["x-request-id"]


def test_health_tells_whether_but_not_why(door: Door) -> None:
    for path in ("/health", "/health/live", "/v2/health/live", "/health/ready", "/v2/health/ready"):
        assert door.ask("GET", path, token=None).status == 200
    door.reasons = ("the ledger at db.internal cannot be written",)
    for path in ("/health/ready", "/v2/health/ready"):
        answer = door.ask("GET", path, token=None)
        assert (answer.status, answer.body) == (503, b'{"ready":false}')
    assert door.ask("GET", "/health/live", token=None).status == 200
    assert not door.watcher.begun
