"""One organisation's whole state, as plain data, and what the operations share.

Apart from the operations so that each of them can be read alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappush

from penstock.quota.counters import Counter
from penstock.quota.definitions import Definitions, Limit, Price
from penstock.quota.estimate import Estimator
from penstock.quota.events import Event
from penstock.quota.operations import Lane, State
from penstock.quota.plans import Plan

LEASE_MS = 60_000
REMEMBER_MS = 900_000
SKEW_MAX_MS = 30_000
SWEEP_INLINE = 4
TOKENS_MAX = 1 << 31


_FREE = Price()


@dataclass(slots=True, kw_only=True)
class Reservation:
    """One request, from its reserve until it is forgotten. Plain data.

    Args:
        fingerprint: None if it was voided before it was reserved: any fingerprint fits.
        price: As it was when reserved.
        prompt_held: The prompt's part of ``tokens_held``.
        cost_held: Nano-dollars held.
        windows: Ids of the window limits that it holds ``tokens_held``, one request or ``cost_held`` of.
        rates: Ids of the rates that were debited with the same, and get back what was not used.
        concurrency: Ids of the concurrency limits that it counts in now.
        due_at_ms: While open, when it expires or returns to queued; afterwards, when it may be forgotten.
        running: Realtime, or acquired: touch renews it.
        started: It reached an executor at least once.
        never: The limit whose cap was lowered below the job.
        charged_*: What its expiry charged: a late settle adds only what is above.
    """

    id: str
    state: State
    fingerprint: str | None = None
    nonce: str = ""
    team: str | None = None
    key: str = ""
    model: str = ""
    lane: Lane = Lane.REALTIME
    price: Price = _FREE
    body_bytes: int = 0
    prompt_tokens: int | None = None
    prompt_held: int = 0
    tokens_held: int = 0
    cost_held: int = 0
    windows: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    concurrency: tuple[str, ...] = ()
    job_deadline_ms: int = 0
    due_at_ms: int = 0
    running: bool = False
    started: bool = False
    published: bool = False
    cancelled: bool = False
    touched_prompt: int = 0
    touched_completion: int = 0
    never: str | None = None
    charged_prompt: int = 0
    charged_completion: int = 0
    charged_tokens: int = 0
    charged_requests: int = 0
    charged_cost_nanos: int = 0


@dataclass(slots=True)
class Account:
    """One organisation's whole state.

    Args:
        marked: A rebuild has finished, or an epoch was written: the state is whole.
        epoch: Counts the losses of state that were survived; 0 until admissions may begin.
        restored: Which restore brought it, and how much of that is there; "" if none did.
        clock_ms: The latest instant that an operation happened at; never goes back.
        version: Of the definitions; 0 before the first.
        outbox: Appended by operations; the store takes and clears it.
        changed: Ids of reservations whose record changed or was forgotten; the store takes and clears it.
        deadlines: Heap of (due_at_ms, id) for the open, ``forgets`` for the others; what no longer holds is skipped.
        defined: The limits in ``definitions`` by id; ``counters`` also keeps those that left.
        plans: By (team, key, model): the limits that its requests fall under.
    """

    name: str
    marked: bool = False
    epoch: int = 0
    restored: str = ""
    clock_ms: int = 0
    version: int = 0
    definitions: Definitions = field(default_factory=Definitions)
    outbox: list[Event] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    counters: dict[str, Counter] = field(default_factory=dict)
    estimators: dict[str, Estimator] = field(default_factory=dict)
    deadlines: list[tuple[int, str]] = field(default_factory=list)
    forgets: list[tuple[int, str]] = field(default_factory=list)
    defined: dict[str, Limit] = field(default_factory=dict)
    plans: dict[tuple[str | None, str, str], Plan] = field(default_factory=dict)


def open_until(account: Account, reservation: Reservation, due_at_ms: int) -> None:
    """Let an open reservation stand until then."""
    if due_at_ms != reservation.due_at_ms:
        reservation.due_at_ms = due_at_ms
        heappush(account.deadlines, (due_at_ms, reservation.id))


def leave_open(account: Account, reservation: Reservation, state: State, now_ms: int) -> None:
    """Move a reservation to a state that is not open, and remember it for long enough."""
    reservation.state = state
    reservation.due_at_ms = max(now_ms + REMEMBER_MS, reservation.job_deadline_ms)
    heappush(account.forgets, (reservation.due_at_ms, reservation.id))


def lease_ends_ms(job_deadline_ms: int, now_ms: int) -> int:
    """When a lease taken now ends: at most at the request's own deadline."""
    return min(now_ms + LEASE_MS, job_deadline_ms)
