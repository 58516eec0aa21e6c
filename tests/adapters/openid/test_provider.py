"""Tokens of a real provider process over TLS: accepted, refused, and outlived by keys that were fetched before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from penstock.adapters.http import HttpClient
from penstock.adapters.openid import KeySet, TokenVerifier, Trust
from penstock.adapters.tls import Tls
from penstock.lanes.subjects import TokenRefused, Verified
from tests.adapters.openid.provider import AUDIENCE, Provider

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with Provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


class Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1_000_000
        self.passed_s = 0.0

    def now_ms(self) -> int:
        return self.now

    def monotonic_s(self) -> float:
        return self.passed_s


@dataclass
class Desk:
    """A verifier that trusts one provider."""

    provider: Provider
    authority: Path
    algorithms: tuple[str, ...] = ("RS256",)
    audience: str = AUDIENCE
    clock: Clock = field(default_factory=Clock)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[TokenVerifier]:
        client = HttpClient(tls={self.provider.url: Tls(ca=self.authority)})
        self.keys = KeySet(client, f"{self.provider.url}/jwks", self.clock.monotonic_s)
        trust = Trust(name="corp", audience=self.audience, algorithms=self.algorithms, keys=self.keys)
        try:
            yield TokenVerifier({self.provider.url: trust}, self.clock)
        finally:
            await self.keys.close()
            await client.close()

    def run(self, work: Callable[[TokenVerifier], Awaitable[None]]) -> None:
        async def main() -> None:
            async with self.open() as verifier:
                await work(verifier)

        asyncio.run(main())


@pytest.fixture
def desk(provider: Provider) -> Desk:
    return Desk(provider, provider.authority)


def test_a_token_of_the_provider_passes_with_its_claims(provider: Provider, desk: Desk) -> None:
    async def work(verifier: TokenVerifier) -> None:
        verified = await verifier.verify(provider.token("ann", org="acme", team="search").encode())
        assert isinstance(verified, Verified)
        assert (verified.issuer, verified.subject) == ("corp", "ann")
        assert (verified.claims["org"], verified.claims["team"]) == ("acme", "search")

    desk.run(work)


async def refusal(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(TokenRefused) as refused:
        await verifier.verify(token.encode())
    return str(refused.value)


def test_an_expired_token_and_one_of_the_future_are_refused(provider: Provider, desk: Desk) -> None:
    async def work(verifier: TokenVerifier) -> None:
        token = provider.token("ann")
        desk.clock.now += 3_600_000 + 31_000
        assert await refusal(verifier, token) == "of corp: it has expired"
        desk.clock.now -= 2 * 3_600_000
        assert await refusal(verifier, token) == "of corp: it is not valid yet"

    desk.run(work)


def test_a_token_for_somebody_else_is_refused(provider: Provider, desk: Desk) -> None:
    async def work(verifier: TokenVerifier) -> None:
        assert await refusal(verifier, provider.token("ann", audience="another")) == "of corp: InvalidAudienceError"

    desk.run(work)


def test_an_algorithm_that_is_not_listed_is_refused_before_anything_is_fetched(provider: Provider, desk: Desk) -> None:
    desk.algorithms = ("ES256",)

    async def work(verifier: TokenVerifier) -> None:
        assert await refusal(verifier, provider.token("ann")) == "of corp: its algorithm is not allowed"
        assert desk.keys.fetches == 0

    desk.run(work)


def test_keys_stay_good_while_the_provider_is_away_and_the_one_it_comes_back_with_replaces_them(
    provider: Provider, desk: Desk
) -> None:
    async def work(verifier: TokenVerifier) -> None:
        old = provider.token("ann").encode()
        await verifier.verify(old)
        provider.stop()
        desk.clock.passed_s += 3_600.0
        try:
            assert (await verifier.verify(old)).subject == "ann"
        finally:
            provider.start()
        new = provider.token("bob")
        desk.clock.passed_s += 60.0
        assert (await verifier.verify(new.encode())).subject == "bob"
        assert await refusal(verifier, old.decode()) == "of corp: InvalidSignatureError"

    desk.run(work)


def test_a_provider_that_another_authority_vouches_for_is_not_believed(
    provider: Provider, desk: Desk, tmp_path: Path
) -> None:
    desk.authority = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(desk.authority))

    async def work(verifier: TokenVerifier) -> None:
        assert await refusal(verifier, provider.token("ann")) == "of corp: its key is not among the issuer's"

    desk.run(work)
