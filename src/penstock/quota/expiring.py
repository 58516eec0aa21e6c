"""What time does to reservations: every operation begins here.

An open reservation whose deadline passed expires, or, if it is a job whose executor went silent, returns to queued.
One that is no longer open is forgotten after a while; that frees memory and happens in the same sweep.
"""

from __future__ import annotations

from heapq import heappop
from typing import Any

from penstock.quota.charging import NO_USAGE, close, free_concurrency, record
from penstock.quota.counters import Amounts
from penstock.quota.events import EventKind, Usage, UsageSource
from penstock.quota.operations import Call, Lane, NotReady, State, Sweep, SweepAnswer, Swept
from penstock.quota.pricing import cost_nanos_min
from penstock.quota.state import SKEW_MAX_MS, SWEEP_INLINE, TOKENS_MAX, Account, Reservation, leave_open, open_until

NOT_READY = NotReady()
OPEN = State.OPEN


def instant(account: Account, call: Call[Any], time_ms: int) -> int:
    """The instant that an operation happens at, Unix milliseconds.

    Never back, and never further ahead than both the store and, by 30 s, the caller say: one clock that jumps
    ahead cannot drag the organisation along.
    """
    return max(account.clock_ms, min(time_ms, call.caller_now_ms + SKEW_MAX_MS))


def begin(account: Account, call: Call[Any], time_ms: int) -> int:
    """Move the clock on and sweep a little; answers now. Nothing was written before it."""
    now_ms = account.clock_ms = instant(account, call, time_ms)
    deadlines = account.deadlines
    if deadlines and deadlines[0][0] <= now_ms:
        _expire_due(account, now_ms, SWEEP_INLINE)
    forgets = account.forgets
    if forgets and forgets[0][0] <= now_ms:
        _forget_due(account, now_ms, SWEEP_INLINE)
    return now_ms


def find(account: Account, reservation_id: str, now_ms: int) -> Reservation | None:
    """The reservation as it is now: expired first, if the sweep has not come to it yet."""
    reservation = account.reservations.get(reservation_id)
    if reservation is not None and reservation.state is OPEN and now_ms >= reservation.due_at_ms:
        pass_deadline(account, reservation, now_ms)
    return reservation


def sweep(account: Account, call: Sweep, time_ms: int) -> SweepAnswer:
    """Expire up to ``count_max`` due reservations, and forget as many."""
    if not account.marked:
        return NOT_READY
    now_ms = account.clock_ms = instant(account, call, time_ms)
    _forget_due(account, now_ms, call.count_max)
    return Swept(_expire_due(account, now_ms, call.count_max))


def _expire_due(account: Account, now_ms: int, count_max: int) -> int:
    deadlines, count = account.deadlines, 0
    while deadlines and deadlines[0][0] <= now_ms and count < count_max:
        due_at_ms, reservation_id = heappop(deadlines)
        reservation = account.reservations.get(reservation_id)
        if reservation is not None and reservation.state is OPEN and reservation.due_at_ms == due_at_ms:
            pass_deadline(account, reservation, now_ms)
            count += 1
    return count


def _forget_due(account: Account, now_ms: int, count_max: int) -> None:
    forgets, count = account.forgets, 0
    while forgets and forgets[0][0] <= now_ms and count < count_max:
        due_at_ms, reservation_id = heappop(forgets)
        reservation = account.reservations.get(reservation_id)
        if reservation is not None and reservation.state is not OPEN and reservation.due_at_ms == due_at_ms:
            del account.reservations[reservation_id]
            account.changed.add(reservation_id)
            count += 1


def pass_deadline(account: Account, reservation: Reservation, now_ms: int) -> None:
    """An open reservation's deadline has come.

    A job whose executor went silent before the job's own deadline waits for another executor: it keeps its window
    holds and its progress, and its rates stay debited. Nobody will run a cancelled job again, so it expires.
    """
    account.changed.add(reservation.id)
    is_job = reservation.lane is Lane.QUEUE
    if is_job and reservation.running and not reservation.cancelled and now_ms < reservation.job_deadline_ms:
        free_concurrency(account, reservation)
        reservation.running = False
        open_until(account, reservation, reservation.job_deadline_ms)
    else:
        _expire(account, reservation, now_ms)


def _expire(account: Account, reservation: Reservation, now_ms: int) -> None:
    """Charge the lower bound of what was used: a late settle only ever adds."""
    usage, charge = NO_USAGE, (0, 0, 0)
    if reservation.started or reservation.lane is not Lane.QUEUE:
        usage, charge = _lower_bound(reservation)
    amounts = close(account, reservation, charge, now_ms)
    reservation.charged_prompt, reservation.charged_completion = usage.prompt, usage.completion
    reservation.charged_tokens, reservation.charged_requests, reservation.charged_cost_nanos = charge
    record(
        account,
        reservation,
        EventKind.EXPIRED,
        now_ms,
        usage=usage,
        charge=charge,
        amounts=amounts,
        reason="cancelled" if reservation.cancelled else "deadline",
    )
    leave_open(account, reservation, State.EXPIRED, now_ms)


def _lower_bound(reservation: Reservation) -> tuple[Usage, Amounts]:
    prompt = max(reservation.prompt_tokens or 0, reservation.touched_prompt)
    completion = min(reservation.touched_completion, TOKENS_MAX - prompt)
    source = UsageSource.LOCAL if prompt or completion else UsageSource.NONE
    charge = (prompt + completion, 1, cost_nanos_min(reservation.price, prompt, completion))
    return Usage(prompt, completion, 0, source), charge
