"""What the API needs of the rest, given to it by wiring: it finds nothing by itself and reads no configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from penstock.lanes.accepting import Acceptor
from penstock.lanes.administering import Administration
from penstock.lanes.credentials import Credential, Credentials
from penstock.lanes.following import Following
from penstock.lanes.requests import InferenceRequest, Reply, StreamReply
from penstock.ports import Clock, Ledger, Observer, QuotaStore, Tracer
from penstock.quota.definitions import Key


class Lane(Protocol):
    """Reserves, calls the model, settles."""

    async def answer(self, request: InferenceRequest) -> Reply | StreamReply:
        """Serve one request. Cancelling it cancels the work upstream and settles what was produced.

        Raises:
            PenstockError: Of the tree in ``penstock.errors``; what was reserved is voided or settled by then.
        """
        ...


class Repeats(Protocol):
    """Answers what may be sent twice."""

    async def answer(self, request: InferenceRequest, idempotency_key: str) -> Reply | StreamReply:
        """As ``Lane.answer``, once for each key; then the answer that was stored.

        Raises:
            Conflict: It is under way, or its answer was not kept.
            Mismatched: The key came with another body.
        """
        ...


class KeyCheck(Protocol):
    """Knows which keys are right, for the routes that reserve nothing."""

    async def check(self, credential: Credential) -> Key | None:
        """The key, or None for every cause of refusal: unknown, wrong, revoked, expired.

        Raises:
            StoreUnavailable: Nobody can tell now.
        """
        ...


class TokenReader(Protocol):
    """Knows whose tokens are right, of the identity providers that are trusted."""

    async def read(self, token: bytes) -> Credential | None:
        """The verified subject, or None for every cause of refusal."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What clients may know of a model. ``created_s`` is Unix seconds."""

    id: str
    created_s: int = 0
    owned_by: str = "penstock"
    context: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much of a request is read.

    Args:
        body_bytes_max: A larger body is a 413, before it is read if it says so.
        body_s: How long a body may take to arrive.
        json_depth_max: How deep objects and lists may nest.
        prompts_max: How many prompts one request may carry.
        usage_days_max: The longest range that one look at the ledger may add up.
    """

    body_bytes_max: int = 8_000_000
    body_s: float = 60.0
    json_depth_max: int = 64
    prompts_max: int = 2048
    usage_days_max: int = 366


Readiness = Callable[[], Awaitable[tuple[str, ...]]]
"""Why no request should be sent here now, one sentence each; empty when ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that the API calls.

    Args:
        repeating: Asked in place of ``lane`` for requests with an idempotency key.
        acceptor: Takes over what is to be answered later; ``jobs`` knows what became of it.
        models: By name; may change while the service runs.
        administration: The records behind ``/admin/v1``; None where there are none.
        subjects: Reads what is no key; None if only keys pass.
        tracer: None where nothing is traced.
        readiness: Asked at each look at ``/health/ready``.
    """

    lane: Lane
    repeating: Repeats
    acceptor: Acceptor
    jobs: Following
    quota: QuotaStore
    ledger: Ledger
    keys: KeyCheck
    credentials: Credentials
    clock: Clock
    observer: Observer
    models: Mapping[str, ModelCard]
    readiness: Readiness
    administration: Administration | None = None
    bounds: Bounds = Bounds()
    subjects: TokenReader | None = None
    tracer: Tracer | None = None
