"""Whom a verified token speaks for: its issuer's word, bounded by what the configuration lets that issuer say.

Apart from verifying, since this is policy and that is cryptography: here claims become a ``Credential`` that names a
key of the verified kind (``jwt.<issuer>`` or ``jwt.<issuer>.<team>``) and, behind it, the subject. Tokens that
were verified a moment ago are remembered by the SHA-256 of the whole token, never longer than they are valid.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

from penstock.lanes.credentials import Credential, Scope
from penstock.ports import Clock
from penstock.quota.definitions import SUBJECT, VERIFIED_PREFIX

TOKEN_BYTES_MAX: Final = 8_192
REMEMBERED_MS_MAX: Final = 60_000
ROUTE_SCOPE: Final = "penstock:"
MODEL_SCOPE: Final = "penstock:model:"
_SUBJECT_DIGITS: Final = 20

_log = logging.getLogger("penstock.lanes.subjects")


class TokenRefused(Exception):
    """A token is not good; the text says why, for our log only, and repeats nothing of the token."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verified token says.

    Args:
        issuer: The name of its issuer in the configuration.
        expires_at_ms: Unix milliseconds.
    """

    issuer: str
    subject: str
    expires_at_ms: int
    claims: Mapping[str, Any]


class Verifier(Protocol):
    """Verifies tokens."""

    async def verify(self, token: bytes) -> Verified:
        """What it says, if its issuer is known, its signature is right, and it is for us and valid now.

        Raises:
            TokenRefused: Any of that is not so, or cannot be told now.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """What an issuer may say.

    Args:
        teams: Those of each organisation that it may speak for.
        organisation_claim: Names the organisation; None if it may speak for one only.
        team_claim: Names the team; None for no team.
        scope_claim: Words such as ``penstock:chat.completions`` and ``penstock:model:chat-small``; None if tokens
            may do whatever the issuer may.
    """

    teams: Mapping[str, frozenset[str]]
    organisation_claim: str | None = None
    team_claim: str | None = None
    scope_claim: str | None = None
    models: frozenset[str] | None = None
    routes: frozenset[str] | None = None

    def keys(self, name: str) -> dict[str, list[tuple[str, str | None]]]:
        """The keys that its subjects pass under, with their teams, by organisation.

        Example:
            >>> Issuer(teams={"acme": frozenset({"search"})}, team_claim="team").keys("corp")
            {'acme': [('jwt.corp', None), ('jwt.corp.search', 'search')]}
        """
        return {
            organisation: [
                (key_id(name, None), None),
                *((key_id(name, team), team) for team in sorted(teams) if self.team_claim is not None),
            ]
            for organisation, teams in self.teams.items()
        }


def key_id(issuer: str, team: str | None) -> str:
    """The key that an issuer's subjects of a team pass under; no minted key can be called so.

    Example:
        >>> key_id("corp", None), key_id("corp", "search")
        ('jwt.corp', 'jwt.corp.search')
    """
    return f"{VERIFIED_PREFIX}{issuer}" if team is None else f"{VERIFIED_PREFIX}{issuer}.{team}"


def is_token(text: bytes) -> bool:
    """Whether this looks like a signed token at all, so that nothing else is decoded.

    Example:
        >>> is_token(b"eyJhbGciOi.eyJpc3MiOi.c2ln"), is_token(b"psk_acme_k1_00")
        (True, False)
    """
    return text.startswith(b"eyJ") and text.count(b".") == 2 and len(text) <= TOKEN_BYTES_MAX


class Subjects:
    """Reads tokens.

    Args:
        issuers: By the name that the configuration gives them.
        remembered_max: How many tokens are remembered; when full, all are forgotten at once.
    """

    def __init__(
        self, verifier: Verifier, issuers: Mapping[str, Issuer], clock: Clock, *, remembered_max: int = 4096
    ) -> None:
        self._verifier = verifier
        self._issuers = issuers
        self._clock = clock
        self._remembered_max = remembered_max
        self._remembered: dict[bytes, tuple[Credential, int]] = {}

    async def read(self, token: bytes) -> Credential | None:
        """Whose token this is; None for every cause of refusal."""
        if not is_token(token):
            return None
        name, now_ms = sha256(token).digest(), self._clock.now_ms()
        known = self._remembered.get(name)
        if known is not None and now_ms < known[1]:
            return known[0]
        try:
            verified = await self._verifier.verify(token)
            credential = self._credential(verified)
        except TokenRefused as refused:
            _log.info("a token was refused: %s", refused)
            return None
        if len(self._remembered) >= self._remembered_max:
            self._remembered.clear()
        self._remembered[name] = (credential, min(verified.expires_at_ms, now_ms + REMEMBERED_MS_MAX))
        return credential

    def _credential(self, verified: Verified) -> Credential:
        issuer = self._issuers[verified.issuer]
        organisation = self._organisation(issuer, verified.claims)
        team = None
        if issuer.team_claim is not None and issuer.team_claim in verified.claims:
            team = verified.claims[issuer.team_claim]
            if not isinstance(team, str) or team not in issuer.teams[organisation]:
                raise TokenRefused(f"{issuer.team_claim} names no team of {organisation}")
        digest = sha256(verified.subject.encode("utf-8", "surrogatepass")).hexdigest()[:_SUBJECT_DIGITS]
        return Credential(
            organisation,
            f"{key_id(verified.issuer, team)}{SUBJECT}{digest}",
            ("",),
            scope=_scope(issuer, verified.claims),
        )

    @staticmethod
    def _organisation(issuer: Issuer, claims: Mapping[str, Any]) -> str:
        if issuer.organisation_claim is None:
            (only,) = issuer.teams
            return only
        named = claims.get(issuer.organisation_claim)
        if not isinstance(named, str) or named not in issuer.teams:
            raise TokenRefused(f"{issuer.organisation_claim} names no organisation that the issuer may speak for")
        return named


def _scope(issuer: Issuer, claims: Mapping[str, Any]) -> Scope:
    """What the token itself opens, within what its issuer may: without a word for a route, none."""
    if issuer.scope_claim is None:
        return Scope(routes=issuer.routes, models=issuer.models)
    said = claims.get(issuer.scope_claim, "")
    words = said.split(" ") if isinstance(said, str) else said
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TokenRefused(f"{issuer.scope_claim} is neither text nor a list of words")
    models = frozenset(word.removeprefix(MODEL_SCOPE) for word in words if word.startswith(MODEL_SCOPE))
    routes = frozenset(
        word.removeprefix(ROUTE_SCOPE)
        for word in words
        if word.startswith(ROUTE_SCOPE) and not word.startswith(MODEL_SCOPE)
    )
    own = Scope(routes=routes, models=models or None)
    return own.within(Scope(routes=issuer.routes, models=issuer.models))
