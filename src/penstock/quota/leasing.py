"""While a request runs: touch renews its lease and records progress, cancel asks it to stop, published lets it go."""

from __future__ import annotations

from penstock.quota.charging import free_concurrency
from penstock.quota.expiring import NOT_READY, OPEN, begin, find
from penstock.quota.finishing import void_open
from penstock.quota.operations import (
    Cancel,
    CancelAnswer,
    Cancelled,
    Done,
    Duplicate,
    Invalid,
    Lane,
    Published,
    PublishedAnswer,
    Touch,
    TouchAnswer,
    Touched,
    Unknown,
)
from penstock.quota.state import LEASE_MS, TOKENS_MAX, Account, lease_ends_ms, open_until


def touch(account: Account, call: Touch, time_ms: int) -> TouchAnswer:
    """Renew the lease of a request that runs, and record what it produced so far, by maximum."""
    if not account.marked:
        return NOT_READY
    prompt, completion = call.prompt, call.completion
    if prompt < 0 or completion < 0 or prompt + completion > TOKENS_MAX:
        return Invalid(f"progress of {prompt} and {completion} tokens; allowed are 0 to {TOKENS_MAX} together")
    now_ms = begin(account, call, time_ms)
    reservation = find(account, call.reservation, now_ms)
    if reservation is None:
        return Unknown()
    if reservation.state is not OPEN:
        return Duplicate(reservation.state)
    reservation.touched_prompt = max(reservation.touched_prompt, prompt)
    reservation.touched_completion = max(reservation.touched_completion, completion)
    account.changed.add(reservation.id)
    if reservation.cancelled:
        return Cancelled()
    if reservation.running:
        open_until(account, reservation, lease_ends_ms(reservation.job_deadline_ms, now_ms))
    return Touched(reservation.due_at_ms)


def published(account: Account, call: Published, time_ms: int) -> PublishedAnswer:
    """The result is safe with the broker: no longer in flight, only its settle is still to come."""
    if not account.marked:
        return NOT_READY
    now_ms = begin(account, call, time_ms)
    reservation = find(account, call.reservation, now_ms)
    if reservation is None:
        return Unknown()
    if reservation.state is not OPEN:
        return Duplicate(reservation.state)
    if not reservation.published:
        reservation.published, reservation.running, reservation.started = True, False, True
        free_concurrency(account, reservation)
        open_until(account, reservation, max(reservation.job_deadline_ms, now_ms + LEASE_MS))
        account.changed.add(reservation.id)
    return Done()


def cancel(account: Account, call: Cancel, time_ms: int) -> CancelAnswer:
    """Void a job that waits; mark a request that runs, so that its next touch is told."""
    if not account.marked:
        return NOT_READY
    now_ms = begin(account, call, time_ms)
    reservation = find(account, call.reservation, now_ms)
    if reservation is None:
        return Unknown()
    if reservation.state is not OPEN:
        return Duplicate(reservation.state)
    if reservation.lane is Lane.QUEUE and not reservation.running and not reservation.published:
        void_open(account, reservation, now_ms, "cancelled")
    else:
        reservation.cancelled = True
        account.changed.add(reservation.id)
    return Done()
