"""What a verified token may do is what its issuer may say, and no more."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from penstock.errors import Forbidden
from penstock.lanes.credentials import Credential, Scope
from penstock.lanes.subjects import REMEMBERED_MS_MAX, Issuer, Subjects, TokenRefused, Verified, is_token
from penstock.quota.definitions import Key

NOW_MS = 1_762_000_000_000
TOKEN = b"eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
BOTH = Issuer(
    teams={"acme": frozenset({"search"}), "globex": frozenset()},
    organisation_claim="org",
    team_claim="team",
    scope_claim="scope",
)


class Desk:
    """A verifier that believes everything, a clock, and what reads tokens by them."""

    def __init__(self, issuer: Issuer = BOTH, /, **claims: Any) -> None:
        self.claims: dict[str, Any] = {"org": "acme"} | claims
        self.expires_at_ms = NOW_MS + 3_600_000
        self.now = NOW_MS
        self.verified = 0
        self.refuses = False
        self.subjects = Subjects(self, {"corp": issuer}, self, remembered_max=2)

    def now_ms(self) -> int:
        return self.now

    def monotonic_s(self) -> float:
        return 0.0

    async def verify(self, token: bytes) -> Verified:
        self.verified += 1
        if self.refuses:
            raise TokenRefused("no")
        return Verified("corp", "ann", self.expires_at_ms, self.claims)

    def read(self, token: bytes = TOKEN) -> Credential | None:
        return asyncio.run(self.subjects.read(token))


def scope_of(**claims: Any) -> Scope:
    read = Desk(**claims).read()
    assert read is not None
    assert read.scope is not None
    return read.scope


@pytest.mark.parametrize(("team", "key"), [({}, "jwt.corp"), ({"team": "search"}, "jwt.corp.search")])
def test_a_subject_is_named_by_issuer_team_and_digest_and_has_no_secret(team: dict[str, str], key: str) -> None:
    read = Desk(BOTH, **team).read()
    assert read is not None
    assert (read.organisation, read.key, read.macs) == ("acme", f"{key}~{sha256(b'ann').hexdigest()[:20]}", ("",))


@pytest.mark.parametrize(
    "claims",
    [
        {"org": "initech"}, {"org": None}, {"org": ["acme"]}, {"org": "acme "}, {"team": "sales"}, {"team": 3},
        {"org": "globex", "team": "search"}, {"scope": 3}, {"scope": [3]}, {"team": None},
    ],
)  # fmt: skip
def test_what_an_issuer_may_not_say_is_no_credential(claims: dict[str, Any]) -> None:
    assert Desk(**claims).read() is None


def test_an_issuer_of_one_organisation_need_not_name_it() -> None:
    issuer = replace(BOTH, teams={"acme": frozenset()}, organisation_claim=None)
    read = Desk(issuer, org="globex").read()
    assert read is not None
    assert read.organisation == "acme"


def test_words_of_the_scope_open_routes_and_models_and_other_words_nothing() -> None:
    words = "openid penstock:chat.completions penstock:model:chat-small"
    assert scope_of(scope=words) == Scope(routes=frozenset({"chat.completions"}), models=frozenset({"chat-small"}))
    assert scope_of(scope=words.split()) == scope_of(scope=words)
    assert scope_of(scope="penstock:usage") == Scope(routes=frozenset({"usage"}))
    assert scope_of(scope="openid") == scope_of() == Scope(routes=frozenset())


def test_a_scope_is_never_wider_than_its_issuers() -> None:
    narrow = replace(BOTH, routes=frozenset({"models"}), models=frozenset({"m"}))
    read = Desk(narrow, scope="penstock:models penstock:usage penstock:model:m penstock:model:n").read()
    assert read is not None
    assert read.scope == Scope(routes=frozenset({"models"}), models=frozenset({"m"}))
    read = Desk(replace(narrow, scope_claim=None)).read()
    assert read is not None
    assert read.scope == Scope(routes=frozenset({"models"}), models=frozenset({"m"}))


def test_a_scope_refuses_what_it_does_not_open() -> None:
    scope = Scope(routes=frozenset({"completions"}), models=frozenset({"m"}))
    scope.check("completions", "m")
    scope.check("completions")
    for route, model in (("usage", None), ("completions", "n")):
        with pytest.raises(Forbidden):
            scope.check(route, model)


def test_a_key_is_narrowed_by_a_token_and_never_widened() -> None:
    key = Key(id="jwt.corp", verified=True, routes=frozenset({"usage", "models"}), models=frozenset({"m"}))
    subject = Credential("acme", "jwt.corp~1", ("",), scope=Scope(routes=frozenset({"usage", "jobs"})))
    assert subject.narrowed(key) == replace(key, routes=frozenset({"usage"}))
    assert Credential("acme", "k1", ("5ec2e7",)).narrowed(key) == key


def test_a_token_is_remembered_for_a_minute_and_never_beyond_its_end() -> None:
    desk = Desk()
    for passed_ms, verified in ((0, 1), (REMEMBERED_MS_MAX - 1, 1), (REMEMBERED_MS_MAX, 2)):
        desk.now = NOW_MS + passed_ms
        assert desk.read() is not None
        assert desk.verified == verified
    desk = Desk()
    desk.expires_at_ms = NOW_MS + 5
    desk.read()
    desk.now, desk.refuses = NOW_MS + 5, True
    assert desk.read() is None


def test_a_token_that_differs_in_its_last_letter_is_another_token() -> None:
    desk = Desk()
    assert desk.read() is not None
    desk.refuses = True
    assert desk.read(TOKEN[:-1] + b"x") is None
    assert desk.read() is not None


def test_refused_tokens_are_not_remembered_and_no_more_than_the_bound_are() -> None:
    desk = Desk()
    for number in range(50):
        desk.read(TOKEN + b"%d" % number)
    assert len(desk.subjects._remembered) <= 2
    desk.refuses = True
    desk.read(TOKEN + b"new")
    desk.refuses = False
    assert desk.read(TOKEN + b"new") is not None


@pytest.mark.parametrize("text", [b"", b"eyJ", b"eyJ.e30", b"a.b.c", b"eyJ.a.b.c.d", b"eyJ." + b"a" * 8_192 + b".b"])
def test_what_is_no_token_is_never_verified(text: bytes) -> None:
    desk = Desk()
    assert not is_token(text)
    assert desk.read(text) is None
    assert desk.verified == 0
