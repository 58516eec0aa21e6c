"""The operations on an organisation's quota, and their answers.

Apart from the model so that every twin of it (the model in process, the Redis functions) takes the same
arguments and gives equal answers: both are frozen dataclasses of integers, text and tuples, compared with ``==``.

A reservation's life::

    ABSENT -> OPEN -> POSTED | VOIDED | EXPIRED        EXPIRED -> LATE        ABSENT -> VOIDED

POSTED, VOIDED and LATE are terminal.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Generic, TypeVar

from penstock.quota.definitions import Definitions
from penstock.quota.events import Event, Usage
from penstock.quota.records import record

A = TypeVar("A")


class State(StrEnum):
    """Where a reservation is in its life."""

    OPEN = "open"
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"
    LATE = "late"


class Lane(StrEnum):
    """How a request reaches a model: answered in the same connection, or through the work queue."""

    REALTIME = "realtime"
    QUEUE = "queue"


class Refusal(StrEnum):
    """Why a limit refused."""

    USED_UP = "used_up"  # used + amount > cap: only the next window, or a refill, helps
    HELD = "held"  # only holds are in the way
    NEVER = "never"  # amount > cap: it will never fit


# --- answers -------------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class Reading:
    """One limit that a request fell under, as it stands after the call; for the rate-limit headers.

    Args:
        limit: The limit's id.
        cap: In the metric's unit (tokens, requests, nano-dollars, requests in flight).
        available: What may still be reserved, never negative.
        resets_in_ms: Until a window ends or a bucket is full; 0 for concurrency.
    """

    limit: str
    cap: int
    available: int
    resets_in_ms: int


@record(frozen=True, slots=True)
class Reserved:
    """OK: everything is held, or was already held by the same attempt. A job's acquire names this ``epoch``.

    ``shard``: the work queue of its model that the organisation's jobs wait in.
    """

    deadline_ms: int
    tokens_held: int
    readings: tuple[Reading, ...] = ()
    epoch: int = 0
    shard: int = 0


@record(frozen=True, slots=True)
class Denied:
    """DENY: one limit refused, nothing is held. Names the limit with the longest wait, ties by limit id."""

    limit: str
    refusal: Refusal
    amount: int
    available: int
    retry_after_ms: int
    readings: tuple[Reading, ...] = ()


@record(frozen=True, slots=True)
class Duplicate:
    """DUP: the id is known with the same fingerprint; this is its state."""

    state: State


@record(frozen=True, slots=True)
class Mismatch:
    """MISMATCH: the id is known with another fingerprint."""


@record(frozen=True, slots=True)
class NoKey:
    """NOKEY: one answer for a key that is unknown, wrong, revoked or expired."""


@record(frozen=True, slots=True)
class OutOfScope:
    """NOSCOPE: the key is right, but its scope excludes this. ``what`` is "model", "route" or "cost"."""

    what: str


@record(frozen=True, slots=True)
class NotReady:
    """NOTREADY: no epoch, the state was lost or never defined. Never counted as zero."""


@record(frozen=True, slots=True)
class ClockSkew:
    """CLOCK: the caller's clock and the store's differ by more than 30 s."""


@record(frozen=True, slots=True)
class Invalid:
    """INVALID: an argument is out of bounds (more than 2^31 tokens in a call, more than 32 limits, no such model)."""

    why: str


@record(frozen=True, slots=True)
class Unknown:
    """UNKNOWN: no such reservation."""


@record(frozen=True, slots=True)
class Settled:
    """OK to settle or post: ``state`` is POSTED, or LATE after an expiry. ``cost_nanos`` is what was posted now."""

    state: State
    cost_nanos: int


@record(frozen=True, slots=True)
class Done:
    """OK to void, published, cancel, define, reassert."""


@record(frozen=True, slots=True)
class Touched:
    """OK to touch: the lease now ends at ``deadline_ms``."""

    deadline_ms: int


@record(frozen=True, slots=True)
class Cancelled:
    """CANCELLED: someone cancelled; stop the work and settle what was produced."""


@record(frozen=True, slots=True)
class Extended:
    """OK to extend: ``tokens_held`` is the hold's total now."""

    tokens_held: int


@record(frozen=True, slots=True)
class Run:
    """RUN: the executor may run the job; its lease ends at ``deadline_ms``."""

    deadline_ms: int


@record(frozen=True, slots=True)
class Wait:
    """WAIT: a rate or the concurrency refuses for now."""

    retry_after_ms: int


@record(frozen=True, slots=True)
class Never:
    """NEVER: a cap was lowered below the job, which is voided."""

    limit: str


@record(frozen=True, slots=True)
class Gone:
    """GONE: voided, cancelled, settled, expired or published; acknowledge the message and drop it."""


@record(frozen=True, slots=True)
class Swept:
    """How many due reservations were expired or returned to queued."""

    count: int


@record(frozen=True, slots=True)
class LimitStanding:
    """One limit as it stands, rolled to now: amounts in the limit's unit, ``used`` of the current window or 0."""

    limit: str
    metric: str
    kind: str
    cap: int
    used: int
    held: int
    available: int
    window: int
    resets_in_ms: int


@record(frozen=True, slots=True)
class Hold:
    """One open reservation. ``amounts`` are (limit id, amount held), concurrency included, rates not."""

    reservation: str
    team: str | None
    key: str
    model: str
    lane: str
    tokens_held: int
    amounts: tuple[tuple[str, int], ...]
    deadline_ms: int
    acquired: bool


@record(frozen=True, slots=True)
class Inspected:
    """The organisation's limits, sorted by id, and open holds: all by reservation, or a page by (deadline, id)."""

    now_ms: int
    epoch: int
    limits: tuple[LimitStanding, ...]
    holds: tuple[Hold, ...]


@record(frozen=True, slots=True)
class Seen:
    """One reservation as it is stored, overdue or not.

    Args:
        key: Empty, like ``model`` and ``lane``, if the id was voided before its reserve came.
        running: Somebody works on it now; ``started``: somebody did once.
        published: Its result's publish is confirmed.
        deadline_ms: When its lease or hold ends; 0 once it has ended.
        touched_prompt: Progress in tokens, as the touches told.
    """

    state: State
    model: str
    key: str
    lane: str
    running: bool
    started: bool
    published: bool
    cancelled: bool
    deadline_ms: int
    job_deadline_ms: int
    touched_prompt: int
    touched_completion: int


@record(frozen=True, slots=True)
class Refused:
    """A define was refused: its version is older, or it puts more than 32 limits on one request. Or a ready: the epoch
    is older, or the state is not what was restored."""

    why: str


# --- calls ---------------------------------------------------------------------------------------------------


@record(frozen=True, slots=True, kw_only=True)
class Call(Generic[A]):
    """One operation; ``A`` is the union of its answers.

    Args:
        organisation: Whose state it touches; no other is touched.
        caller_now_ms: The caller's clock, Unix milliseconds.
    """

    organisation: str
    caller_now_ms: int


ReserveAnswer = Reserved | Denied | Duplicate | Mismatch | NoKey | OutOfScope | NotReady | ClockSkew | Invalid


@record(frozen=True, slots=True, kw_only=True)
class ReserveArguments(Call[A]):
    """What a caller knows of a request. It says nothing about limits or prices: those lie beside the counters.

    Args:
        reservation: Time-ordered id, see ``penstock.quota.identity.reservation_id``.
        nonce: One per attempt: a transport's retry of the same attempt carries the same.
        fingerprint: Hash of the body; the same id with another is MISMATCH.
        key: Key id; ``key_mac`` its HMAC, lower-case hex.
        route: What the key's scope names: "chat.completions", "completions", "embeddings".
        body_bytes: Length as received; with what bytes cannot bound, the caller sends 2^31 - 1 and the
            context is reserved.
        prompts: How many prompts the body carries; bounds by context hold for each.
        prompt_tokens: Exact, if somebody counted; else None.
        outputs_bound: max(n, best_of) x prompts x max_tokens.
        job_deadline_ms: The request's own deadline.
    """

    reservation: str
    nonce: str
    fingerprint: str
    key: str
    key_mac: str
    route: str
    model: str
    body_bytes: int
    prompts: int = 1
    prompt_tokens: int | None = None
    outputs_bound: int
    lane: Lane
    job_deadline_ms: int


@record(frozen=True, slots=True, kw_only=True)
class Reserve(ReserveArguments[ReserveAnswer]):
    """Check the key, size the request, check every limit, then hold all or nothing."""


SettleAnswer = Settled | Duplicate | Unknown | NotReady | Invalid


@record(frozen=True, slots=True, kw_only=True)
class Settle(Call[SettleAnswer]):
    """OPEN -> POSTED with what was really used; EXPIRED -> LATE, once."""

    reservation: str
    usage: Usage


VoidAnswer = Done | Duplicate | NotReady


@record(frozen=True, slots=True, kw_only=True)
class Void(Call[VoidAnswer]):
    """OPEN -> VOIDED, nothing charged. Of an absent id: VOIDED, so that its delayed reserve finds it."""

    reservation: str
    reason: str = ""


TouchAnswer = Touched | Cancelled | Duplicate | Unknown | NotReady | Invalid


@record(frozen=True, slots=True, kw_only=True)
class Touch(Call[TouchAnswer]):
    """Renew the lease and record progress, merged by maximum."""

    reservation: str
    prompt: int
    completion: int


AcquireAnswer = Run | Wait | Never | Gone | NotReady | ClockSkew | Invalid


@record(frozen=True, slots=True, kw_only=True)
class Acquire(ReserveArguments[AcquireAnswer]):
    """The executor's claim for a queued job: takes rates and concurrency; ``epoch`` is that of its reserve."""

    epoch: int


PublishedAnswer = Done | Duplicate | Unknown | NotReady


@record(frozen=True, slots=True, kw_only=True)
class Published(Call[PublishedAnswer]):
    """The result's publish is confirmed: concurrency is freed, acquire answers GONE from then on."""

    reservation: str


CancelAnswer = Done | Duplicate | Unknown | NotReady


@record(frozen=True, slots=True, kw_only=True)
class Cancel(Call[CancelAnswer]):
    """A queued job is voided at once; a running one is marked, and its next touch answers CANCELLED."""

    reservation: str


ExtendAnswer = Extended | Denied | Duplicate | Unknown | NotReady | Invalid


@record(frozen=True, slots=True, kw_only=True)
class Extend(Call[ExtendAnswer]):
    """Raise the hold to ``total_tokens``; a smaller total changes nothing."""

    reservation: str
    total_tokens: int


SweepAnswer = Swept | NotReady


@record(frozen=True, slots=True, kw_only=True)
class Sweep(Call[SweepAnswer]):
    """Expire up to ``count_max`` due reservations."""

    count_max: int


DefineAnswer = Done | Refused


@record(frozen=True, slots=True, kw_only=True)
class Define(Call[DefineAnswer]):
    """Set keys, limits, models and prices. Rolls each counter with its old cap first; touches no open hold."""

    version: int
    definitions: Definitions


@record(frozen=True, slots=True, kw_only=True)
class Ready(Call[DefineAnswer]):
    """Declare the state whole and let admissions begin: ``epoch`` must be above the one before.

    Epoch 0 writes the rebuild's marker only: then reserve answers NOTREADY, acquire WAIT, the rest works.

    Args:
        restored: What a restore brought, as it said; "" if there was none. A state that is not that, since the store
            forgot it on the way, is Refused. None is not asked, as by keepers of an earlier version.
    """

    epoch: int
    restored: str | None = None


ReassertAnswer = Done | Duplicate | Refused | NotReady


@record(frozen=True, slots=True, kw_only=True)
class Reassert(Call[ReassertAnswer]):
    """Force a hold again after the store lost it. ``renewed_at_ms`` is when the caller last renewed its lease."""

    arguments: Reserve
    acquired: bool
    prompt: int
    completion: int
    renewed_at_ms: int


PostAnswer = Settled | Duplicate | NotReady | Invalid


@record(frozen=True, slots=True, kw_only=True)
class Post(Call[PostAnswer]):
    """Forced posting of an id that the store does not know, windows only, once. Of a known id it is settle."""

    arguments: Reserve
    usage: Usage
    already_charged: Event | None = None


InspectAnswer = Inspected | NotReady


@record(frozen=True, slots=True, kw_only=True)
class Inspect(Call[InspectAnswer]):
    """Read every limit and open holds; writes nothing. For people, the audit and the usage page.

    Args:
        holds_max: At most so many holds, in the order of (deadline, id), and 10,000 at most; None for all, by id. What
            reads all at once keeps everybody else waiting for as long as there are holds.
        after_ms: Only holds behind this deadline, or with the same one and an id behind ``after``: the next page.
    """

    holds_max: int | None = None
    after_ms: int | None = None
    after: str | None = None


LookAnswer = Seen | Unknown | NotReady


@record(frozen=True, slots=True, kw_only=True)
class Look(Call[LookAnswer]):
    """Read one reservation; writes nothing, and an overdue one is left to the sweep."""

    reservation: str
