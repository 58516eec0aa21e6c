"""The keys that a provider signs with, fetched from where the configuration says, and kept while it is away.

    empty -> (a fetch) -> keys -> (older than REFRESH_S, and asked for) -> fetched again beside the answer
    a key id that is not among them -> fetched again before the answer, at most once in UNKNOWN_EVERY_S

A fetch is bounded in bytes and time and follows no redirect. One that fails changes nothing: the keys that were
fetched before stay good, since a provider that is down has withdrawn none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from penstock.errors import UpstreamError
from penstock.ports import UpstreamClient, UpstreamRequest

FETCH_S: Final = 5.0
ANSWER_BYTES_MAX: Final = 256_000
KEYS_MAX: Final = 64
REFRESH_S: Final = 300.0
UNKNOWN_EVERY_S: Final = 60.0
EMPTY_EVERY_S: Final = 2.0
RSA_BITS_MIN: Final = 2048

_log = logging.getLogger("penstock.adapters.openid")


class KeySet:
    """One provider's keys.

    Args:
        url: Of its JSON Web Key Set.
        monotonic_s: Seconds that never go back.
    """

    def __init__(self, client: UpstreamClient, url: str, monotonic_s: Callable[[], float]) -> None:
        self._client = client
        self._url = url
        self._monotonic_s = monotonic_s
        self._keys: Mapping[str, jwt.PyJWK] | None = None
        self._tried_at_s = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self.fetches = 0

    async def find(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key of this id, or the only one for a token that names none; None if there is no such key."""
        if self._keys is None:
            await self._fetch_again(EMPTY_EVERY_S)
        elif self._monotonic_s() - self._tried_at_s >= REFRESH_S:
            self._begin()
        found = self._among(key_id)
        if found is None and self._keys is not None:
            await self._fetch_again(UNKNOWN_EVERY_S)
            found = self._among(key_id)
        return found

    async def find_after(self, wrong: jwt.PyJWK) -> jwt.PyJWK | None:
        """The only key, if it is not the wrong one any more: providers that name no keys replace theirs unseen."""
        await self._fetch_again(UNKNOWN_EVERY_S)
        found = self._among(None)
        return None if found is wrong else found

    async def close(self) -> None:
        """End a fetch that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    def _among(self, key_id: str | None) -> jwt.PyJWK | None:
        keys = self._keys or {}
        if key_id is None:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(key_id)

    async def _fetch_again(self, every_s: float) -> None:
        """Fetch, or wait for who does; nothing if the last attempt was less than ``every_s`` ago."""
        if self._fetching is None:
            if self._monotonic_s() - self._tried_at_s < every_s:
                return
            self._begin()
        assert self._fetching is not None
        await asyncio.shield(self._fetching)

    def _begin(self) -> None:
        if self._fetching is None:
            self._tried_at_s = self._monotonic_s()
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._has_fetched)

    def _has_fetched(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        self.fetches += 1
        try:
            response = await self._client.open(
                UpstreamRequest(
                    method="GET", url=self._url, headers={"accept": "application/json"}, body=b"",
                    connect_s=FETCH_S, first_byte_s=FETCH_S, between_chunks_s=FETCH_S, total_s=FETCH_S,
                )
            )  # fmt: skip
            try:
                body = await response.read(ANSWER_BYTES_MAX)
            finally:
                response.close()
            if response.status != 200:
                raise ValueError(f"it answered with status {response.status}")
            self._keys = _kept(self._keys or {}, read_keys(body))
        except (UpstreamError, ValueError, RecursionError) as error:
            kept = "none is known yet" if self._keys is None else "those known stay good"
            _log.warning("the keys at %s cannot be fetched, %s: %s", self._url, kept, error)


def read_keys(body: bytes) -> dict[str, jwt.PyJWK]:
    """The usable keys of a key set, by id: public, for signatures, of a kind we know, RSA of 2048 bits or more.

    Raises:
        ValueError: It is no key set, or has none that is usable.
    """
    told: Any = msgspec.json.decode(body)
    listed = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise ValueError(f"it is no key set of at most {KEYS_MAX} keys")
    found: dict[str, jwt.PyJWK] = {}
    for number, each in enumerate(listed):
        key = _usable(each)
        if key is not None:
            found[key.key_id if key.key_id is not None else f"#{number}"] = key
    if not found:
        raise ValueError("it has no key that is usable; wanted are RSA, EC or OKP keys for signatures")
    return found


def _kept(before: Mapping[str, jwt.PyJWK], now: Mapping[str, jwt.PyJWK]) -> dict[str, jwt.PyJWK]:
    """The keys of now, each the same object as before if it did not change."""
    same = {name for name, key in now.items() if name in before and _text(before[name]) == _text(key)}
    return {name: before[name] if name in same else key for name, key in now.items()}


def _text(key: jwt.PyJWK) -> bytes:
    return bytes(key.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _usable(told: Any) -> jwt.PyJWK | None:
    if not isinstance(told, dict) or told.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if told.get("use", "sig") != "sig" or not isinstance(told.get("kid"), str | None):
        return None
    try:
        key = jwt.PyJWK({name: value for name, value in told.items() if name not in ("d", "p", "q", "dp", "dq", "qi")})
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < RSA_BITS_MIN:
        return None
    return key
