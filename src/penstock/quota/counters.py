"""One limit's counter, and how each of the five kinds counts: windows, two buckets, places in flight and in the queue.

A counter carries kind, period, anchor and cap, so that settle, void and expire need no definitions: a limit that has
left them still gets back what was held.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.quota.definitions import Kind, Limit, Metric
from penstock.quota.limits import window_ends_ms, window_id
from penstock.quota.operations import LimitStanding, Reading, Refusal

WINDOW, RATE, STRICT_RATE, CONCURRENCY = Kind.WINDOW, Kind.RATE, Kind.STRICT_RATE, Kind.CONCURRENCY
ENQUEUED = Kind.ENQUEUED

AMOUNT_MAX = 1 << 52  # above every cap and level; doubles are exact beyond it
RETRY_HELD_MS = 1_000  # when only holds are in the way

Amounts = tuple[int, int, int]  # tokens, requests, nano-dollars
_UNITS = {Metric.TOKENS: 0, Metric.REQUESTS: 1, Metric.COST: 2, Metric.CONCURRENCY: 1}


@dataclass(slots=True, kw_only=True)
class Counter:
    """How much of one limit is used. Plain data.

    Args:
        limit: The limit's id.
        unit: Which of ``Amounts`` it counts; a request in flight counts as one request.
        used, held, window, ends_at_ms: Of windows; ``held`` also of places. ``ends_at_ms`` is derived.
        level: Of buckets: tokens available x period_ms; negative is debt.
        rolled_at_ms: Of buckets: the instant that ``level`` is true for.
        forgiven: Of buckets: debt below the floor that was dropped, in units of ``level``; stops at 2^52.
    """

    limit: str
    metric: str
    kind: Kind
    unit: int
    period_ms: int
    anchor_ms: int
    cap: int
    used: int = 0
    held: int = 0
    window: int = 0
    ends_at_ms: int = 0
    level: int = 0
    rolled_at_ms: int = 0
    forgiven: int = 0


def new_counter(limit: str, definition: Limit, now_ms: int) -> Counter:
    """A limit nobody has used yet: window 0, nothing held, bucket full."""
    return Counter(
        limit=limit,
        metric=definition.metric.value,
        kind=definition.kind,
        unit=_UNITS[definition.metric],
        period_ms=definition.period_ms,
        anchor_ms=definition.anchor_ms,
        cap=definition.cap,
        level=definition.cap * definition.period_ms,
        rolled_at_ms=now_ms,
    )


def roll(counter: Counter, now_ms: int) -> None:
    """Bring a counter to now: a window that passed is used 0 and keeps its holds; a bucket refills.

    Rolling twice is rolling once, and rolling in steps is rolling at once: it never matters when it happens.
    """
    kind = counter.kind
    if kind is WINDOW:
        if now_ms >= counter.ends_at_ms:
            window = window_id(counter.period_ms, counter.anchor_ms, now_ms)
            if window > counter.window:
                counter.window = window
                counter.used = 0
            counter.ends_at_ms = window_ends_ms(counter.period_ms, counter.anchor_ms, window)
    elif kind is not CONCURRENCY and kind is not ENQUEUED:
        elapsed_ms = now_ms - counter.rolled_at_ms
        if elapsed_ms > 0:
            counter.rolled_at_ms = now_ms
            cap = counter.cap
            if cap:
                full = cap * counter.period_ms
                if elapsed_ms >= -(-(full - counter.level) // cap):
                    counter.level = full
                else:
                    counter.level += cap * elapsed_ms


def recap(counter: Counter, cap: int, now_ms: int) -> None:
    """Give a counter a new cap: so far it refilled under the old one, and a bucket holds no more than full."""
    roll(counter, now_ms)
    counter.cap = cap
    counter.level = min(counter.level, cap * counter.period_ms)


def available(counter: Counter) -> int:
    """What may still be reserved of a rolled counter; negative while over its cap or in debt."""
    kind = counter.kind
    if kind is WINDOW:
        return counter.cap - counter.used - counter.held
    if kind is CONCURRENCY or kind is ENQUEUED:
        return counter.cap - counter.held
    return counter.level // counter.period_ms


def resets_in_ms(counter: Counter, now_ms: int) -> int:
    """Until a rolled counter's window ends or its bucket is full; 0 for places and for a cap of 0."""
    kind = counter.kind
    if kind is WINDOW:
        return counter.ends_at_ms - now_ms
    if kind is CONCURRENCY or kind is ENQUEUED or not counter.cap:
        return 0
    return -(-(counter.cap * counter.period_ms - counter.level) // counter.cap)


def never_fits(counter: Counter, amount: int) -> bool:
    """Whether no waiting will ever help; nothing at all fits a cap of 0."""
    return amount > counter.cap or not counter.cap


def refusal(counter: Counter, total: int) -> Refusal:
    """Why a rolled counter refuses a hold whose total would be ``total``."""
    if never_fits(counter, total):
        return Refusal.NEVER
    kind = counter.kind
    if kind is CONCURRENCY or kind is ENQUEUED or (kind is WINDOW and counter.used + total <= counter.cap):
        return Refusal.HELD
    return Refusal.USED_UP


def retry_after_ms(counter: Counter, amount: int, refused: Refusal, now_ms: int) -> int:
    """How long until ``amount`` may fit a rolled counter that refuses it; 0 if it never will."""
    if refused is Refusal.NEVER:
        return 0
    if refused is Refusal.HELD:
        return RETRY_HELD_MS
    if counter.kind is WINDOW:
        return counter.ends_at_ms - now_ms
    return -(-(amount * counter.period_ms - counter.level) // counter.cap)


def hold(counter: Counter, amount: int) -> None:
    """Take a hold, whether or not it fits; a bucket must be rolled."""
    kind = counter.kind
    if kind is WINDOW or kind is CONCURRENCY or kind is ENQUEUED:
        counter.held += amount
    else:
        pour(counter, -amount)


def pour(counter: Counter, amount: int) -> None:
    """Return ``amount`` to a rolled bucket, or take it if negative: at most full, and no debt below the floor."""
    level = min(counter.level + amount * counter.period_ms, counter.cap * counter.period_ms)
    if level < -AMOUNT_MAX:
        counter.forgiven = min(counter.forgiven - AMOUNT_MAX - level, AMOUNT_MAX)
        level = -AMOUNT_MAX
    counter.level = level


def reading(counter: Counter, now_ms: int) -> Reading:
    """A rolled counter, for the rate-limit headers: ``available``, never negative, and ``resets_in_ms`` in one."""
    kind, cap = counter.kind, counter.cap
    if kind is WINDOW:
        left, reset_ms = cap - counter.used - counter.held, counter.ends_at_ms - now_ms
    elif kind is RATE or kind is STRICT_RATE:
        level, period_ms = counter.level, counter.period_ms
        left, reset_ms = level // period_ms, -(-(cap * period_ms - level) // cap) if cap else 0
    else:
        left, reset_ms = cap - counter.held, 0
    return Reading(counter.limit, cap, left if left > 0 else 0, reset_ms)


def standing(counter: Counter, now_ms: int) -> LimitStanding:
    """A rolled counter, for people and the audit."""
    return LimitStanding(
        limit=counter.limit,
        metric=counter.metric,
        kind=counter.kind.value,
        cap=counter.cap,
        used=counter.used,
        held=counter.held,
        available=max(0, available(counter)),
        window=counter.window,
        resets_in_ms=resets_in_ms(counter, now_ms),
    )
