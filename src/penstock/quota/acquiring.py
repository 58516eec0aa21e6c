"""A queued job's claim to run, and the holds that are forced again after the store lost them."""

from __future__ import annotations

from penstock.quota.admitting import (
    enqueue,
    fault_in,
    first_refusal,
    make_reservation,
    plan_for,
    size_of,
)
from penstock.quota.charging import free_concurrency, held_amounts, record
from penstock.quota.counters import hold, roll
from penstock.quota.events import EventKind
from penstock.quota.expiring import NOT_READY, OPEN, begin, find
from penstock.quota.finishing import void_open
from penstock.quota.operations import (
    Acquire,
    AcquireAnswer,
    ClockSkew,
    Done,
    Duplicate,
    Gone,
    Invalid,
    Lane,
    Never,
    Reassert,
    ReassertAnswer,
    Refusal,
    Refused,
    Reserve,
    Run,
    State,
    Wait,
)
from penstock.quota.state import (
    LEASE_MS,
    SKEW_MAX_MS,
    TOKENS_MAX,
    Account,
    Reservation,
    lease_ends_ms,
    open_until,
)

WAIT_FOR_EPOCH_MS = 1_000


def acquire(account: Account, call: Acquire, time_ms: int) -> AcquireAnswer:
    """Claim a queued job: its rates and its place in flight are taken only here."""
    if not account.marked:
        return NOT_READY
    if not account.epoch:
        return Wait(WAIT_FOR_EPOCH_MS)
    if not -SKEW_MAX_MS <= call.caller_now_ms - time_ms <= SKEW_MAX_MS:
        return ClockSkew()
    if call.lane is not Lane.QUEUE:
        return Invalid("only a queued job is acquired; this names the realtime lane")
    if fault := fault_in(call):
        return Invalid(fault)
    now_ms = begin(account, call, time_ms)
    reservation = find(account, call.reservation, now_ms)
    if reservation is None:
        return _acquire_unknown(account, call, now_ms)
    if reservation.never is not None:
        return Never(reservation.never)
    if reservation.state is not OPEN or reservation.published or reservation.cancelled:
        return Gone()
    if reservation.fingerprint not in (None, call.fingerprint) or reservation.lane is not Lane.QUEUE:
        return Invalid("the id is known for another request")
    if not reservation.running:
        refused = _claim(account, reservation, now_ms)
        if refused is not None:
            return refused
    return _run(account, reservation, now_ms)


def _claim(account: Account, reservation: Reservation, now_ms: int) -> Never | Wait | None:
    """Take rates, the first time, and concurrency; None if all admit."""
    plan = plan_for(account, reservation.team, reservation.key, reservation.model)
    counters = plan.concurrency_counters if reservation.started else plan.run_counters
    amounts = held_amounts(reservation)
    worst = first_refusal(counters, amounts, amounts, now_ms)
    if worst is not None:
        wait_ms, counter, refusal = worst
        if refusal is not Refusal.NEVER:
            return Wait(wait_ms)
        reservation.never = counter.limit
        void_open(account, reservation, now_ms, f"its cap was lowered: {counter.limit}")
        return Never(counter.limit)
    free_concurrency(account, reservation)
    for counter in counters:
        hold(counter, amounts[counter.unit])
    if not reservation.started:
        reservation.rates = plan.rates
    reservation.concurrency = plan.concurrency
    reservation.running = reservation.started = True
    record(account, reservation, EventKind.ACQUIRED, now_ms)
    return None


def _run(account: Account, reservation: Reservation, now_ms: int) -> Run:
    open_until(account, reservation, lease_ends_ms(reservation.job_deadline_ms, now_ms))
    account.changed.add(reservation.id)
    return Run(reservation.due_at_ms)


def _acquire_unknown(account: Account, call: Acquire, now_ms: int) -> AcquireAnswer:
    """The same epoch knew it and forgot it, so it has ended; one of an older epoch was lost, and is held again."""
    if now_ms >= call.job_deadline_ms or call.epoch == account.epoch:
        return Gone()
    if call.epoch > account.epoch:
        return Wait(WAIT_FOR_EPOCH_MS)
    reservation = _make_again(account, call)
    if isinstance(reservation, str):
        return Invalid(reservation)
    plan = plan_for(account, reservation.team, reservation.key, reservation.model)
    amounts = held_amounts(reservation)
    for counter in plan.run_counters:
        roll(counter, now_ms)
        hold(counter, amounts[counter.unit])
    reservation.rates, reservation.concurrency = plan.rates, plan.concurrency
    reservation.running = reservation.started = True
    record(account, reservation, EventKind.ACQUIRED, now_ms)
    return _run(account, reservation, now_ms)


def _make_again(account: Account, call: Acquire | Reserve) -> Reservation | str:
    """A reservation that was lost, with its window holds, past the cap if it must; or why that is impossible."""
    model = account.definitions.models.get(call.model)
    if model is None:
        return f"model {call.model} is not defined for {account.name}"
    size = size_of(account, call, model)
    if size[1] > TOKENS_MAX:
        return f"needs {size[1]} tokens; at most {TOKENS_MAX} are possible in one request"
    key = account.definitions.key(call.key)
    reservation = make_reservation(account, call, None if key is None else key.team, model, size)
    plan = plan_for(account, reservation.team, reservation.key, reservation.model)
    amounts = held_amounts(reservation)
    for counter in plan.window_counters:
        hold(counter, amounts[counter.unit])
    reservation.windows = plan.windows
    return reservation


def reassert(account: Account, call: Reassert, time_ms: int) -> ReassertAnswer:
    """Force a hold again that the store lost. Rates are not debited: their buckets started empty."""
    if not account.marked:
        return NOT_READY
    arguments = call.arguments
    if fault := fault_in(arguments):
        return Refused(fault)
    if call.prompt < 0 or call.completion < 0 or call.prompt + call.completion > TOKENS_MAX:
        return Refused(
            f"progress of {call.prompt} and {call.completion} tokens; allowed are 0 to {TOKENS_MAX} together"
        )
    now_ms = begin(account, call, time_ms)
    reservation = find(account, arguments.reservation, now_ms)
    if reservation is None:
        if now_ms >= min(call.renewed_at_ms + LEASE_MS, arguments.job_deadline_ms):
            return Refused("its lease or its own deadline has passed; settle or post it instead")
        made = _make_again(account, arguments)
        if isinstance(made, str):
            return Refused(made)
        reservation = made
    elif not _waits(reservation) or not call.acquired:
        return Duplicate(reservation.state)
    elif now_ms >= call.renewed_at_ms + LEASE_MS:
        return Refused("its lease has passed; acquire it again")
    reservation.touched_prompt = max(reservation.touched_prompt, call.prompt)
    reservation.touched_completion = max(reservation.touched_completion, call.completion)
    if arguments.lane is Lane.QUEUE and not call.acquired:
        enqueue(reservation, plan_for(account, reservation.team, reservation.key, reservation.model))
        open_until(account, reservation, reservation.job_deadline_ms)
    else:
        _force_running(account, reservation, now_ms)
    return Done()


def _waits(reservation: Reservation) -> bool:
    """Whether it is a queued job that nobody runs."""
    is_job = reservation.state is State.OPEN and reservation.lane is Lane.QUEUE
    return is_job and not reservation.running and not reservation.published


def _force_running(account: Account, reservation: Reservation, now_ms: int) -> None:
    plan = plan_for(account, reservation.team, reservation.key, reservation.model)
    free_concurrency(account, reservation)
    for counter in plan.concurrency_counters:
        hold(counter, 1)
    reservation.concurrency = plan.concurrency
    reservation.running = reservation.started = True
    _run(account, reservation, now_ms)
