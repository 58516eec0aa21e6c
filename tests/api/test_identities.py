"""Every route and method against every kind of identity: what is answered follows from the declared permission.

The matrix is made from the routes themselves and ``PERMISSIONS``: a new route is in it by being there, and one without
a declaration fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from penstock.adapters.sql.keys import Keys
from penstock.api.application import application
from penstock.api.openapi import declared, description
from penstock.api.permissions import PERMISSIONS, Audience
from penstock.lanes.credentials import mint
from penstock.lanes.subjects import ROUTE_SCOPE, Issuer, Subjects, TokenRefused, Verified
from penstock.quota.definitions import Key
from tests.api.desk import OWN, PLAIN, PLATFORM, Desk
from tests.api.door import (
    MODELS,
    NOW_MS,
    OTHER_TOKEN,
    TOKEN,
    WRONG_TOKENS,
    Clock,
    Door,
    a_key,
    chat_body,
    listening,
    open_door,
)

pytestmark = pytest.mark.slow

FOR_KEYS = (Audience.KEY, Audience.RESERVATION)
SCOPES = sorted({permission.route for permission in PERMISSIONS.values() if permission.audience in FOR_KEYS})
SCOPED = {route: mint("acme", f"only{at}", secret=bytes([20 + at]) * 32) for at, route in enumerate(SCOPES)}


def body_for(path: str) -> dict[str, object]:
    """One that every endpoint takes, except where unknown fields are refused."""
    if path.endswith("/infer"):
        return {"inputs": [{"name": "a", "shape": [1], "datatype": "INT64", "data": [1]}]}
    return {"model": "chat-small", "input": "a"} if path.endswith("/responses") else chat_body(prompt="a", input="a")


class Provider:
    """Believes ``eyJ.<routes, or "all">.x``: verifying has tests of its own."""

    async def verify(self, token: bytes) -> Verified:
        said = token.split(b".")[1].decode()
        if said == "refused":
            raise TokenRefused("as asked")
        words = [f"{ROUTE_SCOPE}{route}" for route in (SCOPES if said == "all" else said.replace("-", ".").split(","))]
        return Verified("corp", "ann", NOW_MS + 60_000, {"scope": words})


@dataclass(frozen=True)
class Identity:
    """Who asks.

    Args:
        routes: That it may use; none if it is nobody.
        owns: The job that the matrix asks for is its organisation's.
    """

    token: str | None
    routes: frozenset[str] = frozenset()
    owns: bool = True


ALL = frozenset(SCOPES)
IDENTITIES = {
    "nobody": Identity(None),
    "garbage": Identity("garbage"),
    **{f"a key {name}": Identity(token) for name, token in WRONG_TOKENS.items()},
    "a refused token": Identity("eyJ.refused.x"),
    "the gateway's word": Identity("pvs_acme_jwt.corp~" + "0" * 20 + "_9000000000000_" + "0" * 64),
    "a key": Identity(TOKEN, ALL),
    "another organisation's key": Identity(OTHER_TOKEN, ALL, owns=False),
    "a token": Identity("eyJ.all.x", ALL),
    "a token without scope": Identity("eyJ.nothing.x"),
    **{f"a key for {route}": Identity(token, frozenset({route})) for route, token in SCOPED.items()},
    **{f"a token for {each}": Identity(f"eyJ.{each.replace('.', '-')}.x", frozenset({each})) for each in SCOPES},
}
ROUTES = [
    (declared(path), method.upper()) for path, methods in sorted(description()["paths"].items()) for method in methods
]

FOR_ADMINISTRATORS = [each for each in ROUTES if PERMISSIONS[each[0]].audience is Audience.ADMINISTRATOR]


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    door = Door(
        subjects=Subjects(Provider(), {"corp": Issuer(teams={"acme": frozenset()}, scope_claim="scope")}, Clock())
    )
    keys = [a_key(token, routes=frozenset({route})) for route, token in SCOPED.items()]
    door.store.add_keys("acme", *keys, Key(id="jwt.corp", verified=True))
    with open_door(door) as opened:
        yield opened


def expected(path: str, method: str, identity: Identity) -> set[int]:
    """The statuses that the declaration of a path allows."""
    audience, route = PERMISSIONS[path]
    if audience is Audience.ANYONE:
        return {200}
    assert audience in FOR_KEYS, f"{path}: say here who may use it"
    if not identity.routes and identity.token != IDENTITIES["a token without scope"].token:
        return {401}
    if route not in identity.routes:
        return {403}
    if "{id}" in path and not identity.owns:
        return {404}
    return {202} if path.startswith("/v1/async/") else {200}


@pytest.mark.parametrize(("path", "method"), [each for each in ROUTES if each not in FOR_ADMINISTRATORS])
def test_each_identity_gets_of_a_route_what_its_permission_says(door: Door, path: str, method: str) -> None:
    found = {}
    wanted = {}
    for name, identity in IDENTITIES.items():
        real = path.replace("{name:path}", "chat-small").replace("{name}", "chat-small")
        if "{id}" in path:
            job = str(door.ask("POST", "/v1/async/chat/completions", chat_body()).json()["id"])
            if method == "GET":
                door.shelf.end(job)  # so that its events have an end
            real = real.replace("{id}", job)
        answer = door.ask(method, real, body_for(path) if method == "POST" else None, token=identity.token)
        wanted[name] = expected(path, method, identity)
        found[name] = {answer.status} if answer.status not in wanted[name] else wanted[name]
        if answer.status >= 400:
            assert answer.error()["message"], name
    assert found == wanted


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("desk"))
    desk.subjects = Subjects(Provider(), {"corp": Issuer(teams={"acme": frozenset()})}, Clock())
    verified = {("acme", "jwt.corp"): Key(id="jwt.corp", verified=True)}
    Keys(desk.engine).record_verified(verified, now_ms=NOW_MS, actor="test")
    asyncio.run(desk.governing.look())
    with listening(application(desk.services())) as (desk.port, _):
        yield desk
    desk.engine.dispose()


@pytest.mark.parametrize(("path", "method"), FOR_ADMINISTRATORS)
def test_only_an_administrator_administrates_and_only_what_is_theirs(desk: Desk, path: str, method: str) -> None:
    def asked(token: str | None, organisation: str) -> int:
        real = path.replace("{organisation}", organisation).replace("{limit:path}", "{limit}")
        for name in ("{team}", "{key}", "{limit}", "{job}"):
            real = real.replace(name, "none")
        body: dict[str, str] | None = {} if method in ("POST", "PATCH", "PUT") else None
        answer = desk.ask(method, real, body, token=token)
        if answer.status >= 400:
            assert answer.error()["message"]
        return answer.status

    assert {name: asked(token, "acme") for name, token in WRONG_TOKENS.items()} == dict.fromkeys(WRONG_TOKENS, 401)
    assert [asked(token, "acme") for token in (None, "garbage", "eyJ.refused.x")] == [401] * 3
    assert [asked(token, "acme") for token in (PLAIN, "eyJ.all.x")] == [403] * 2
    assert asked(OWN, "acme") != 401
    if "{organisation}" in path:
        assert asked(OWN, "globex") == asked(OWN, "nobody") in (400, 403, 404, 428)  # before a record is read, or none
    assert asked(PLATFORM, "nobody") in (200, 400, 404, 428)  # as far as the record, and nothing is changed


def test_the_matrix_has_every_declared_path_and_every_path_a_declaration() -> None:
    assert {path for path, _ in ROUTES} == set(PERMISSIONS) == set(application(Door().services()).paths())
    assert len(IDENTITIES) >= 24


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_belongs_to_another_organisation_looks_as_if_it_were_not_there(door: Door, method: str) -> None:
    job = str(door.ask("POST", "/v1/async/chat/completions", chat_body()).json()["id"])
    foreign = door.ask(method, f"/v1/jobs/{job}", token=OTHER_TOKEN)
    absent = door.ask(method, f"/v1/jobs/{'0' * 32}", token=OTHER_TOKEN)
    assert (
        (foreign.status, foreign.error()["code"]) == (absent.status, absent.error()["code"]) == (404, "job_not_found")
    )
    assert job not in foreign.error()["message"]  # type: ignore[operator]


def test_every_wrong_key_gets_the_same_answer_to_the_letter(door: Door) -> None:
    for path, method in ROUTES:
        if PERMISSIONS[path].audience not in FOR_KEYS:
            continue
        real = path.replace("{name:path}", next(iter(MODELS))).replace("{name}", "chat-small").replace("{id}", "0" * 32)
        answers = {
            door.ask(method, real, body_for(path) if method == "POST" else None, token=token).body
            for token in (*WRONG_TOKENS.values(), "eyJ.refused.x", None)
        }
        assert len(answers) == 1, path
