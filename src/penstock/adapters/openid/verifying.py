"""Verifies tokens: the issuer is one of ours, the algorithm one that we named, the signature right, the times ours.

Nothing of a token is believed before its signature but which issuer to ask, and that must be in the configuration: a
token can name no address, no key and no algorithm beyond the allow-list. PyJWT checks the signature and the audience;
times are compared with our own clock, which tests stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from penstock.adapters.openid.key_sets import KeySet
from penstock.lanes.subjects import TokenRefused, Verified
from penstock.ports import Clock

LEEWAY_MS: Final = 30_000
KEY_ID_CHARACTERS_MAX: Final = 256
SUBJECT_CHARACTERS_MAX: Final = 255
_INSTANT_MAX: Final = 1 << 40  # seconds; what is beyond is no time
_UNREADABLE = (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What is asked of one issuer's tokens.

    Args:
        name: In the configuration.
        algorithms: That are allowed, all checked with a public key: ``RS256``, ``ES256``.
    """

    name: str
    audience: str
    algorithms: tuple[str, ...]
    keys: KeySet


class TokenVerifier:
    """Verifies; see ``penstock.lanes.subjects.Verifier``.

    Args:
        issuers: By what their tokens carry as ``iss``, letter for letter.
    """

    def __init__(self, issuers: Mapping[str, Trust], clock: Clock) -> None:
        self._issuers = issuers
        self._clock = clock

    async def verify(self, token: bytes) -> Verified:
        """See ``penstock.lanes.subjects.Verifier``."""
        try:
            header = jwt.get_unverified_header(token)
            issuer = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except _UNREADABLE:
            raise TokenRefused("it cannot be read") from None
        if not isinstance(issuer, str) or (trust := self._issuers.get(issuer)) is None:
            raise TokenRefused("its issuer is not in auth.issuers")
        key = await self._key(trust, header)
        try:
            try:
                claims = _decoded(token, key, trust, issuer)
            except jwt.InvalidSignatureError:
                newer = await trust.keys.find_after(key) if header.get("kid") is None else None
                if newer is None:
                    raise
                claims = _decoded(token, newer, trust, issuer)
        except _UNREADABLE as error:
            raise TokenRefused(f"of {trust.name}: {type(error).__name__}") from None
        return self._valid(trust, claims)

    async def _key(self, trust: Trust, header: Mapping[str, Any]) -> jwt.PyJWK:
        """The key that its header names. The algorithm is looked at first: nothing is fetched for another."""
        if header.get("alg") not in trust.algorithms:
            raise TokenRefused(f"of {trust.name}: its algorithm is not allowed")
        if "crit" in header or header.get("b64") is False:
            raise TokenRefused(f"of {trust.name}: it asks for an extension")
        key_id = header.get("kid")
        if key_id is not None and (not isinstance(key_id, str) or len(key_id) > KEY_ID_CHARACTERS_MAX):
            raise TokenRefused(f"of {trust.name}: its key id is no short text")
        key = await trust.keys.find(key_id)
        if key is None:
            raise TokenRefused(f"of {trust.name}: its key is not among the issuer's")
        return key

    def _valid(self, trust: Trust, claims: Mapping[str, Any]) -> Verified:
        now_ms = self._clock.now_ms()
        expires_at_ms = _instant_ms(trust, claims, "exp")
        begins_at_ms = _instant_ms(trust, claims, "nbf" if "nbf" in claims else "iat")
        if now_ms >= expires_at_ms + LEEWAY_MS:
            raise TokenRefused(f"of {trust.name}: it has expired")
        if now_ms < begins_at_ms - LEEWAY_MS:
            raise TokenRefused(f"of {trust.name}: it is not valid yet")
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARACTERS_MAX:
            raise TokenRefused(f"of {trust.name}: its subject is no short text")
        return Verified(trust.name, subject, expires_at_ms + LEEWAY_MS, claims)


def _decoded(token: bytes, key: jwt.PyJWK, trust: Trust, issuer: str) -> Mapping[str, Any]:
    """Its claims, if signature, issuer and audience are right; its times are looked at afterwards."""
    claims: Mapping[str, Any] = jwt.decode(
        token,
        key.key,
        algorithms=trust.algorithms,
        audience=trust.audience,
        issuer=issuer,
        options={
            "require": ["exp", "iss", "aud", "sub"],
            "verify_exp": False, "verify_nbf": False, "verify_iat": False,
        },
    )  # fmt: skip
    return claims


def _instant_ms(trust: Trust, claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TokenRefused(f"of {trust.name}: {name} is missing, or no time")
    if not 0 <= value < _INSTANT_MAX:
        raise TokenRefused(f"of {trust.name}: {name} is no time")
    return int(value * 1000)
