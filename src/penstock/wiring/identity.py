"""Whose tokens pass beside keys: the identity providers of the configuration, and the keys that stand for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from penstock.adapters.http import HttpClient
from penstock.adapters.openid import KeySet, TokenVerifier, Trust
from penstock.adapters.tls import Tls
from penstock.config import Configuration
from penstock.config.identity_settings import Issuer as WrittenIssuer
from penstock.lanes.subjects import Issuer, Subjects
from penstock.ports import Clock
from penstock.quota.definitions import Key

CONNECTIONS_MAX = 4  # to one provider


@asynccontextmanager
async def open_subjects(configuration: Configuration, clock: Clock) -> AsyncIterator[Subjects | None]:
    """What reads tokens; None if the configuration names no issuer."""
    written = configuration.auth.issuers
    if not written:
        yield None
        return
    own = {
        each.jwks: Tls(setting=f"auth.issuers.{name}", ca=Path(each.ca.file))
        for name, each in written.items()
        if each.ca is not None
    }
    async with AsyncExitStack() as parts:
        client = HttpClient(server="the provider", tls=own, connections_max=CONNECTIONS_MAX)
        parts.push_async_callback(client.close)
        trusts = {}
        for name, each in written.items():
            keys = KeySet(client, each.jwks, clock.monotonic_s)
            parts.push_async_callback(keys.close)
            algorithms = tuple(algorithm.value for algorithm in each.algorithms)
            trusts[each.issuer] = Trust(name=name, audience=each.audience, algorithms=algorithms, keys=keys)
        issuers = {name: _issuer(configuration, each) for name, each in written.items()}
        yield Subjects(TokenVerifier(trusts, clock), issuers, clock)


def issuer_keys(configuration: Configuration) -> dict[tuple[str, str], Key]:
    """The keys that verified subjects pass under, by (organisation, id)."""
    return {
        (organisation, key): Key(
            id=key,
            team=team,
            verified=True,
            models=frozenset(written.models) or None,
            routes=frozenset(written.routes) or None,
        )
        for name, written in configuration.auth.issuers.items()
        for organisation, keys in _issuer(configuration, written).keys(name).items()
        for key, team in keys
    }


def _issuer(configuration: Configuration, written: WrittenIssuer) -> Issuer:
    return Issuer(
        teams={name: frozenset(configuration.organisations[name].teams) for name in written.organisations},
        organisation_claim=written.organisation_claim,
        team_claim=written.team_claim,
        scope_claim=written.scope_claim,
        models=frozenset(written.models) or None,
        routes=frozenset(written.routes) or None,
    )
