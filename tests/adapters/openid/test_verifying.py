"""Tokens that mean harm, and key sets that do: each is refused, and the provider is asked once a minute at most."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from penstock.adapters.http import HttpClient
from penstock.adapters.openid import KeySet, TokenVerifier, Trust, key_sets
from penstock.adapters.openid.key_sets import read_keys
from penstock.lanes.subjects import TokenRefused

NOW_S = 1_762_000_000
ISSUER = "https://login.test"
CLAIMS: dict[str, Any] = {
    "iss": ISSUER, "aud": "penstock", "sub": "ann", "iat": NOW_S, "nbf": NOW_S, "exp": NOW_S + 300,
}  # fmt: skip


def rsa_key(number: int = 1, bits: int = 2048) -> rsa.RSAPrivateKey:
    return made(number, bits)


@cache
def made(number: int, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public(key: rsa.RSAPrivateKey, **more: Any) -> dict[str, Any]:
    told: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return told | more


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def signed(key: Any = None, algorithm: str = "RS256", kid: str | None = "one", **claims: Any) -> bytes:
    said = {name: value for name, value in (CLAIMS | claims).items() if value is not ...}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(said, key or rsa_key(), algorithm=algorithm, headers=headers).encode()


def coded(value: Any) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()  # as PyJWT does
    return base64.urlsafe_b64encode(text).rstrip(b"=")


def forged(header: Any, claims: Any = CLAIMS, signature: bytes = b"") -> bytes:
    return coded(header) + b"." + coded(claims) + b"." + coded(signature)


class Desk:
    """A verifier, a clock, and the provider's answers over a socket."""

    def __init__(self, *answers: bytes, algorithms: tuple[str, ...] = ("RS256", "ES256")) -> None:
        self.answers = [*answers] or [answered(key_set(public(rsa_key(), kid="one")))]
        self.algorithms = algorithms
        self.asked = 0
        self.passed_s = 0.0

    def now_ms(self) -> int:
        return NOW_S * 1000

    def monotonic_s(self) -> float:
        return self.passed_s

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self.answers[min(self.asked, len(self.answers) - 1)])
        self.asked += 1
        writer.close()

    def run(self, work: Callable[[TokenVerifier], Awaitable[None]]) -> None:
        async def main() -> None:
            server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
            client = HttpClient()
            keys = KeySet(client, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys", self.monotonic_s)
            trust = Trust(name="corp", audience="penstock", algorithms=self.algorithms, keys=keys)
            try:
                await work(TokenVerifier({ISSUER: trust}, self))
            finally:
                await keys.close()
                await client.close()
                server.close()

        asyncio.run(main())

    def verdict(self, *tokens: bytes) -> list[str]:
        """The subject of each that passes, else why not."""
        found: list[str] = []

        async def work(verifier: TokenVerifier) -> None:
            for token in tokens:
                try:
                    found.append((await verifier.verify(token)).subject)
                except TokenRefused as refused:
                    found.append(str(refused))

        self.run(work)
        return found


def answered(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers])
    return f"{head}\r\n\r\n".encode() + body


PEM = rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def with_public_key_as_secret() -> bytes:
    """HS256 with the public key for a secret, which PyJWT itself refuses to write."""
    text = coded({"alg": "HS256", "kid": "one"}) + b"." + coded(CLAIMS)
    return text + b"." + coded(hmac.digest(PEM, text, "sha256"))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "two dots": lambda: b"..",
    "words": lambda: b"a.b.c",
    "unsigned": lambda: forged({"alg": "none", "kid": "one"}),
    "unsigned, spelt otherwise": lambda: forged({"alg": "nOnE", "kid": "one"}),
    "no algorithm": lambda: forged({"kid": "one"}),
    "an algorithm that is a list": lambda: forged({"alg": ["RS256"], "kid": "one"}),
    "an algorithm that is nothing": lambda: forged({"alg": None, "kid": "one"}),
    "HS256 with the public key": with_public_key_as_secret,
    "HS256": lambda: jwt.encode(CLAIMS, "s" * 64, algorithm="HS256", headers={"kid": "one"}).encode(),
    "RS512, not listed": lambda: signed(algorithm="RS512"),
    "ES256 under an RSA key's id": lambda: signed(ec_key(), "ES256"),
    "another's key": lambda: signed(rsa_key(2)),
    "another's key and its own in the header": lambda: jwt.encode(
        CLAIMS, rsa_key(2), algorithm="RS256", headers={"kid": "one", "jwk": public(rsa_key(2))}
    ).encode(),
    "an address of keys in the header": lambda: jwt.encode(
        CLAIMS, rsa_key(2), algorithm="RS256", headers={"kid": "one", "jku": "https://evil.test/keys"}
    ).encode(),
    "an empty signature": lambda: forged({"alg": "RS256", "kid": "one"}),
    "a cut signature": lambda: signed()[:-8],
    "a changed claim": lambda: signed().replace(coded(CLAIMS), coded(CLAIMS | {"sub": "eve"})),
    "a key id that is a number": lambda: forged({"alg": "RS256", "kid": 1}),
    "a key id that is long": lambda: forged({"alg": "RS256", "kid": "k" * 300}),
    "a key id that is a path": lambda: forged({"alg": "RS256", "kid": "../../dev/null"}),
    "a critical extension": lambda: forged({"alg": "RS256", "kid": "one", "crit": ["x"], "x": 1}),
    "a detached body": lambda: forged({"alg": "RS256", "kid": "one", "b64": False, "crit": ["b64"]}),
    "expired": lambda: signed(exp=NOW_S - 31),
    "not yet": lambda: signed(nbf=NOW_S + 31),
    "not yet, by its issue": lambda: signed(nbf=..., iat=NOW_S + 31),
    "no end": lambda: signed(exp=...),
    "no beginning": lambda: signed(nbf=..., iat=...),
    "no audience": lambda: signed(aud=...),
    "no subject": lambda: signed(sub=...),
    "no issuer": lambda: signed(iss=...),
    "another audience": lambda: signed(aud=["another", "penstock2"]),
    "another issuer": lambda: signed(iss=ISSUER + "/"),
    "an issuer that is a list": lambda: forged({"alg": "RS256", "kid": "one"}, CLAIMS | {"iss": [ISSUER]}),
    "an end that is endless": lambda: forged({"alg": "RS256", "kid": "one"}, CLAIMS | {"exp": float("inf")}),
    "an end beyond time": lambda: signed(exp=10**30),
    "an end that is text": lambda: signed(exp="9999999999"),
    "an empty subject": lambda: signed(sub=""),
    "a subject that is long": lambda: signed(sub="s" * 256),
    "claims that are a list": lambda: forged({"alg": "RS256", "kid": "one"}, [CLAIMS]),
    "a header that is deep": lambda: forged(b'{"alg":' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
    "claims that are deep": lambda: forged({"alg": "RS256", "kid": "one"}, b"[" * 5_000 + b"]" * 5_000),
    "a number of 10,000 digits": lambda: forged({"alg": "RS256", "kid": "one"}, b'{"exp":' + b"9" * 10_000 + b"}"),
    "bytes that are no text": lambda: forged(b"\xff\xfe{}"),
}  # fmt: skip


def test_a_good_token_passes_so_that_what_follows_is_refused_for_its_fault() -> None:
    assert Desk().verdict(signed(), signed(aud=["other", "penstock"]), signed(nbf=...)) == ["ann"] * 3
    assert Desk().verdict(signed(exp=NOW_S - 29), signed(nbf=NOW_S + 29)) == ["ann"] * 2


def test_no_hostile_token_passes_and_all_together_cost_one_fetch() -> None:
    assert len(HOSTILE) >= 40
    desk = Desk()
    tokens = [make() for make in HOSTILE.values()]
    verdicts = dict(zip(HOSTILE, desk.verdict(*tokens), strict=True))
    assert {name: verdict for name, verdict in verdicts.items() if verdict == "ann"} == {}
    assert desk.asked == 1
    for name, verdict in verdicts.items():
        assert len(verdict) < 80, name
        assert verdict.isprintable(), name


def test_a_storm_of_unknown_key_ids_costs_one_fetch_a_minute() -> None:
    desk = Desk()

    async def work(verifier: TokenVerifier) -> None:
        for minute in range(3):
            storm = (verifier.verify(signed(rsa_key(2), kid=f"k{minute}-{number}")) for number in range(50))
            assert all(isinstance(each, TokenRefused) for each in await asyncio.gather(*storm, return_exceptions=True))
            assert (await verifier.verify(signed())).subject == "ann"
            desk.passed_s += key_sets.UNKNOWN_EVERY_S
        assert desk.asked == 3

    desk.run(work)


def test_a_new_key_is_found_by_its_id_and_a_withdrawn_one_is_gone() -> None:
    before, after = (answered(key_set(public(rsa_key(number), kid=kid))) for number, kid in ((1, "one"), (2, "two")))
    desk = Desk(before, after)

    async def work(verifier: TokenVerifier) -> None:
        await verifier.verify(signed())
        desk.passed_s += key_sets.UNKNOWN_EVERY_S
        assert (await verifier.verify(signed(rsa_key(2), kid="two"))).subject == "ann"
        with pytest.raises(TokenRefused):
            await verifier.verify(signed())

    desk.run(work)


BAD_ANSWERS = {
    "an error": answered(b"{}", "500 Internal Server Error"),
    "another address": answered(b"", "302 Found", "location: https://evil.test/keys"),
    "a page": answered(b"<html>"),
    "a list": answered(b"[]"),
    "no keys": answered(key_set()),
    "only a shared secret": answered(key_set({"kty": "oct", "k": "c2VjcmV0", "kid": "one"})),
    "only a key for encryption": answered(key_set(public(rsa_key(), kid="one", use="enc"))),
    "only a short key": answered(key_set(public(rsa_key(3, 1024), kid="one"))),
    "only nonsense": answered(key_set({"kty": "RSA", "n": "!", "e": 3}, {"kty": "EC"}, {"kty": ["RSA"]})),
    "too many": answered(key_set(*[public(rsa_key(), kid=str(number)) for number in range(65)])),
    "too large": answered(b" " * (key_sets.ANSWER_BYTES_MAX + 1)),
    "deep": answered(b"[" * 100_000),
    "no HTTP": b"\x00\x01\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_an_answer_that_is_no_key_set_is_not_believed_and_takes_no_key_away(answer: bytes) -> None:
    assert Desk(answer).verdict(signed()) == ["of corp: its key is not among the issuer's"]
    desk = Desk(answered(key_set(public(rsa_key(), kid="one"))), answer)

    async def work(verifier: TokenVerifier) -> None:
        await verifier.verify(signed())
        desk.passed_s += key_sets.UNKNOWN_EVERY_S
        with pytest.raises(TokenRefused):
            await verifier.verify(signed(rsa_key(2), kid="two"))
        assert (await verifier.verify(signed())).subject == "ann"
        assert desk.asked == 2

    desk.run(work)


def test_a_key_set_is_read_without_the_private_part_that_somebody_left_in_it() -> None:
    told = jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key(), as_dict=True) | {"kid": "one"}
    assert isinstance(read_keys(key_set(told))["one"].key, rsa.RSAPublicKey)
