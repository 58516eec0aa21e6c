"""API keys as text: made, read, checked for slips, and turned into what the quota store compares.

``psk_<organisation>_<keyid>_<64 hexadecimal digits: 256 random bits><8: CRC-32 of all before it>``

The checksum finds a mistyped or cut key without asking anyone; it protects nothing. What protects is the secret:
only the HMAC-SHA256 of the whole key, under a pepper that lies in neither database, is stored and compared, and
the quota store compares it. A key's organisation and id are in the text, so that the store is asked about one
organisation only. Pure: randomness and peppers are arguments.
"""

from __future__ import annotations

import base64
import hmac
import re
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

from penstock.errors import Forbidden
from penstock.quota.definitions import Key

_KEY = re.compile(rb"psk_([A-Za-z0-9-]{1,64})_([A-Za-z0-9-]{1,32})_([0-9a-f]{64})([0-9a-f]{8})")
_PARTS = ((re.compile(r"[A-Za-z0-9-]{1,64}"), 64), (re.compile(r"[A-Za-z0-9-]{1,32}"), 32))
_SECRET_BYTES = 32


def mint(organisation: str, key: str, *, secret: bytes) -> str:
    """Write a new API key; show it once and keep only its ``mac``.

    Args:
        organisation: Letters, digits and ``-``, at most 64: no underscore, which parts the fields.
        key: Its id, spelt alike, at most 32: shorter than a secret, so that logs can tell the two apart.
        secret: 32 random bytes (``secrets.token_bytes(32)``); nothing here draws them.

    Raises:
        ValueError: A part is spelt otherwise, or the secret is not 32 bytes.

    Example:
        >>> mint("acme", "k1", secret=bytes(32))[:20]
        'psk_acme_k1_00000000'
    """
    for part, (spelling, characters_max) in zip((organisation, key), _PARTS, strict=True):
        if not spelling.fullmatch(part):
            raise ValueError(f"{part!r}: in a key it must be 1 to {characters_max} letters, digits or '-'")
    if len(secret) != _SECRET_BYTES:
        raise ValueError(f"a secret is {_SECRET_BYTES} random bytes, not {len(secret)}")
    text = f"psk_{organisation}_{key}_{secret.hex()}"
    return f"{text}{crc32(text.encode()):08x}"


def mac(token: str | bytes, pepper: bytes) -> str:
    """What is stored of a key: lower-case hex of HMAC-SHA256 over the whole text.

    Example:
        >>> len(mac(mint("acme", "k1", secret=bytes(32)), b"pepper"))
        64
    """
    return hmac.digest(pepper, token.encode() if isinstance(token, str) else token, "sha256").hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a verified token opens, beside what its key does; None for all."""

    routes: frozenset[str] | None = None
    models: frozenset[str] | None = None

    def within(self, other: Scope) -> Scope:
        """What both open.

        Example:
            >>> Scope(routes=frozenset({"models", "usage"})).within(Scope(routes=frozenset({"usage"}))).routes
            frozenset({'usage'})
        """
        return Scope(routes=_both(self.routes, other.routes), models=_both(self.models, other.models))

    def check(self, route: str, model: str | None = None) -> None:
        """Nothing, if it opens this.

        Raises:
            Forbidden: It does not.
        """
        if self.routes is not None and route not in self.routes:
            raise Forbidden(f"this token's scope excludes {route}; ask for one that includes it")
        if model is not None and self.models is not None and model not in self.models:
            raise Forbidden("this token's scope excludes this model; ask for one that includes it")


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def pepper_name(pepper: bytes) -> str:
    """What a pepper is called where its keys are listed; it tells nothing of the pepper.

    Example:
        >>> len(pepper_name(b"pepper"))
        8
    """
    return hmac.digest(pepper, b"name of this pepper", "sha256").hex()[:8]


class Hashed(NamedTuple):
    """What is kept of a new key: its HMAC, and the name of the pepper that it was made with."""

    mac: str
    pepper: str


@dataclass(frozen=True, slots=True)
class Credential:
    """A well-formed key as presented, of which it is not known yet whether it is right; or a verified token's subject.

    Args:
        macs: One for each live pepper, the newest first; one empty text for a verified subject.
        scope: Of a verified token; None for a key, whose scope lies beside the counters.
    """

    organisation: str
    key: str
    macs: tuple[str, ...]
    scope: Scope | None = None

    def narrowed(self, key: Key) -> Key:
        """The key as far as this credential may use it."""
        if self.scope is None:
            return key
        both = self.scope.within(Scope(routes=key.routes, models=key.models))
        return replace(key, routes=both.routes, models=both.models)


class Credentials:
    """Reads presented keys, and remembers the last few by the SHA-256 of the whole text.

    Args:
        peppers: The newest first; a second one while peppers are being rotated.
        remembered_max: How many read keys are kept; when full, all are forgotten at once.
    """

    __slots__ = ("_peppers", "_read", "_remembered_max")

    def __init__(self, peppers: tuple[bytes, ...], *, remembered_max: int = 4096) -> None:
        if not peppers or not all(peppers):
            raise ValueError("keys need a pepper that is not empty")
        self._peppers = peppers
        self._remembered_max = remembered_max
        self._read: dict[bytes, Credential] = {}

    def hashed(self, token: str) -> Hashed:
        """What to keep of a new key, under the newest pepper."""
        return Hashed(mac(token, self._peppers[0]), pepper_name(self._peppers[0]))

    def read(self, token: bytes) -> Credential | None:
        """Take a key apart; None for text that is no key, or one with a slip in it.

        Example:
            >>> read = Credentials((b"pepper",)).read
            >>> token = mint("acme", "k1", secret=bytes(32)).encode()
            >>> read(token).organisation, read(token[:-1] + b"!")
            ('acme', None)
        """
        name = sha256(token).digest()
        known = self._read.get(name)
        if known is not None:
            return known
        match = _KEY.fullmatch(token)
        if match is None or crc32(token[: match.start(4)]) != int(match[4], 16):
            return None
        credential = Credential(
            match[1].decode(), match[2].decode(), tuple(mac(token, pepper) for pepper in self._peppers)
        )
        if len(self._read) >= self._remembered_max:
            self._read.clear()
        self._read[name] = credential
        return credential

    def vouch(self, credential: Credential, *, expires_at_ms: int) -> str:
        """Our own word, to the queue lane's gateway, that a subject was verified; the public door takes it from nobody.

        ``pvs_<organisation>_<key~subject>_<expires_at_ms>_<HMAC-SHA256 of all before, under the newest pepper>``

        Example:
            >>> subject = Credential("acme", "jwt.corp~3fa1", ("",))
            >>> Credentials((b"pepper",)).vouch(subject, expires_at_ms=7)[:27]
            'pvs_acme_jwt.corp~3fa1_7_dc'
        """
        said = f"pvs_{credential.organisation}_{credential.key}_{expires_at_ms}"
        return f"{said}_{mac(said, self._peppers[0])}"

    def attest(self, facts: bytes) -> str:
        """Our own word, to the queue lane's gateway, of what was found out about a request; no client can give it.

        ``pms_<facts, in base64url>_<HMAC-SHA256 of all before, under the newest pepper>``

        Example:
            >>> Credentials((b"pepper",)).attest(b"{}")[:10]
            'pms_e30=_6'
        """
        said = f"pms_{base64.urlsafe_b64encode(facts).decode()}"
        return f"{said}_{mac(said, self._peppers[0])}"
