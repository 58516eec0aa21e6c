"""What governs an organisation's requests: its limits, keys, models and prices.

They lie beside the counters, so that every caller sends the same arguments and none can disagree about a limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Metric(StrEnum):
    """What a limit counts."""

    TOKENS = "tokens"  # prompt + completion
    REQUESTS = "requests"
    COST = "cost"  # nano-dollars
    CONCURRENCY = "concurrency"  # requests in flight


class Kind(StrEnum):
    """How a limit counts."""

    WINDOW = "window"  # fixed period + anchor; ``period_ms`` 0 is the calendar month, UTC
    RATE = "rate"  # integer token bucket, refunded at settle
    STRICT_RATE = "strict_rate"  # the same, not refunded
    CONCURRENCY = "concurrency"
    ENQUEUED = "enqueued"  # of jobs that were accepted and have never run


BUCKETS = frozenset({Kind.RATE, Kind.STRICT_RATE})


class ReservePolicy(StrEnum):
    """How much a request holds."""

    STRICT = "strict"
    LEARNED = "learned"


class Overrun(StrEnum):
    """What a stream does whose hold was an estimate and cannot be extended."""

    STOP = "stop"  # end with finish_reason "length"
    DEBT = "debt"  # go on; the overage is posted in full


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit. All fields but ``cap`` are its identity: a change of any other makes a new limit, at 0.

    Args:
        owner: ``acme`` for the organisation, ``acme:team:search`` or ``acme:key:k1`` below it.
        period_ms: Of a window or a bucket; 0 for the calendar month, for concurrency and for what is enqueued.
        anchor_ms: Where windows begin, Unix milliseconds modulo the period.
        model: Only requests for this model count; None for all.
        cap: Tokens, requests, nano-dollars or requests in flight. Windows <= 2^52, rates <= 2^52 / period.
    """

    owner: str
    metric: Metric
    kind: Kind
    cap: int
    period_ms: int = 0
    anchor_ms: int = 0
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Pico-dollars per token and per request. Cached is a part of prompt, charged at its own price."""

    prompt_picos: int = 0
    cached_picos: int = 0
    completion_picos: int = 0
    request_picos: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the quota must know of a model.

    Args:
        context: Tokens that one prompt and its completion may have together.
        template_tokens: What the chat template adds to a prompt, at most.
        tokens_per_byte_max: For tokenizers that normalise text into more tokens than bytes.
    """

    name: str
    context: int
    template_tokens: int = 0
    tokens_per_byte_max: int = 1
    price: Price = Price()


VERIFIED_PREFIX = "jwt."
"""Of the ids of keys of the verified kind; a minted key's id has no dot."""

SUBJECT = "~"
"""In a call's key, between the key that is defined and the subject that was verified under it: ``jwt.corp~3fa1...``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key, or what every verified JWT subject of one issuer passes under (``macs`` empty, ``verified`` true).

    Args:
        macs: Lower-case hex of HMAC-SHA256; two while a secret is being rotated, each with its expiry (0: never).
        models: Scope; None for all. ``routes`` alike.
        cost_nanos_max: The most that one request may hold; None for no bound.
    """

    id: str
    team: str | None = None
    macs: tuple[tuple[str, int], ...] = ()
    verified: bool = False
    revoked: bool = False
    expires_at_ms: int = 0
    models: frozenset[str] | None = None
    routes: frozenset[str] | None = None
    cost_nanos_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Definitions:
    """Everything that governs one organisation.

    Args:
        shard: Which of each model's work queues its jobs wait in; see ``penstock.quota.sharding``.
    """

    limits: tuple[Limit, ...] = ()
    keys: Mapping[str, Key] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    reserve: ReservePolicy = ReservePolicy.STRICT
    overrun: Overrun = Overrun.STOP
    shard: int = 0

    def key(self, named: str) -> Key | None:
        """The key that a call names. A subject's is the one before the ``~``, if it is of the verified kind.

        Example:
            >>> definitions = Definitions(keys={"k1": Key(id="k1"), "jwt.corp": Key(id="jwt.corp", verified=True)})
            >>> definitions.key("jwt.corp~3fa1").id, definitions.key("k1~3fa1")
            ('jwt.corp', None)
        """
        defined, mark, _ = named.partition(SUBJECT)
        found = self.keys.get(defined)
        return found if found is None or found.verified or not mark else None
