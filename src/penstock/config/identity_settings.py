"""The part of penstock.yaml that says whose requests pass: how keys are kept, and which providers' tokens are taken."""

from __future__ import annotations

from enum import StrEnum

from msgspec import field

from penstock.config.values import FileReference, Secret, SecureUrl, Setting


class Algorithm(StrEnum):
    """How tokens may be signed: what is checked with a public key, and nothing else."""

    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"
    ES256 = "ES256"
    ES384 = "ES384"
    ES512 = "ES512"
    EDDSA = "EdDSA"


class Issuer(Setting, frozen=True, kw_only=True):
    """An identity provider whose tokens (JWT) pass as keys do.

    Args:
        issuer: What its tokens carry as `iss`, letter for letter.
        jwks: Address of the keys that it signs with.
        ca: Certificates (PEM) that vouch for that address instead of the system's.
        audience: What its tokens for this service carry as `aud`.
        algorithms: That it signs with, RS256 and ES256 if not given; any other is refused.
        organisations: That it may speak for.
        organisation_claim: The claim that names the organisation; needed where there are several.
        team_claim: The claim that names the team; a token without it belongs to none.
        scope_claim: The claim that says what a token may do, in words such as `penstock:chat.completions` and
            `penstock:model:chat-small`; without this setting a token may do what its issuer may.
        models: That its tokens may use; all if not given.
        routes: That its tokens may use, as scopes of keys name them; all if not given.
    """

    issuer: SecureUrl
    jwks: SecureUrl
    audience: str
    organisations: tuple[str, ...]
    ca: FileReference | None = None
    algorithms: tuple[Algorithm, ...] = (Algorithm.RS256, Algorithm.ES256)
    organisation_claim: str | None = None
    team_claim: str | None = None
    scope_claim: str | None = None
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()


class Auth(Setting, frozen=True, kw_only=True):
    """How API keys are kept, and whose tokens pass beside them.

    Args:
        pepper: Secret that keys are hashed with, 32 bytes or more, in no database. Without it the embedded default
            makes one in the data directory.
        pepper_previous: The one before, while keys are being moved to the new one.
        issuers: Identity providers, by a name that shows in the ledger.
    """

    pepper: Secret | None = None
    pepper_previous: Secret | None = None
    issuers: dict[str, Issuer] = field(default_factory=dict)
