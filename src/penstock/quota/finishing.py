"""How a reservation ends: settled with what was used, voided, or posted although nobody knows it any more."""

from __future__ import annotations

from penstock.quota.admitting import fault_in as fault_in_arguments
from penstock.quota.admitting import make_reservation, plan_for, size_of
from penstock.quota.charging import (
    cancel_out,
    charge_late,
    charged_amounts,
    close,
    less,
    post_windows,
    record,
)
from penstock.quota.counters import Amounts
from penstock.quota.definitions import ReservePolicy
from penstock.quota.estimate import Estimator, observe
from penstock.quota.events import Charge, EventKind, Usage
from penstock.quota.expiring import NOT_READY, OPEN, begin, find
from penstock.quota.operations import (
    Done,
    Duplicate,
    Invalid,
    Post,
    PostAnswer,
    Settle,
    SettleAnswer,
    Settled,
    State,
    Unknown,
    Void,
    VoidAnswer,
)
from penstock.quota.pricing import cost_nanos
from penstock.quota.state import TOKENS_MAX, Account, Reservation, leave_open


def settle(account: Account, call: Settle, time_ms: int) -> SettleAnswer:
    """Post what was really used: once, whether the reservation is still open or has expired."""
    if not account.marked:
        return NOT_READY
    usage = call.usage
    if fault := _fault_in_usage(usage):
        return Invalid(fault)
    now_ms = begin(account, call, time_ms)
    reservation = find(account, call.reservation, now_ms)
    if reservation is None:
        return Unknown()
    return _settle_known(account, reservation, usage, now_ms)


def _settle_known(account: Account, reservation: Reservation, usage: Usage, now_ms: int) -> SettleAnswer:
    if reservation.state is OPEN:
        actual = _actual(reservation, usage)
        amounts = close(account, reservation, actual, now_ms)
        record(account, reservation, EventKind.POSTED, now_ms, usage=usage, charge=actual, amounts=amounts)
        state = State.POSTED
    elif reservation.state is State.EXPIRED:
        whole = _actual(reservation, usage)
        actual = less(whole, charged_amounts(reservation))
        amounts = charge_late(account, reservation, whole, now_ms)
        added = _less_usage(usage, reservation.charged_prompt, 0, reservation.charged_completion)
        record(account, reservation, EventKind.LATE, now_ms, usage=added, charge=actual, amounts=amounts)
        state = State.LATE
    else:
        return Duplicate(reservation.state)
    if account.definitions.reserve is ReservePolicy.LEARNED:
        _learn(account, reservation, usage)
    leave_open(account, reservation, state, now_ms)
    account.changed.add(reservation.id)
    return Settled(state, actual[2])


def _fault_in_usage(usage: Usage) -> str | None:
    prompt, cached, completion = usage.prompt, usage.cached, usage.completion
    if prompt >= cached >= 0 <= completion and prompt + completion <= TOKENS_MAX:
        return None
    return (
        f"usage of {prompt} prompt, {cached} cached and {completion} completion tokens is absurd: "
        f"none may be negative, cached is a part of prompt, and together they are at most {TOKENS_MAX}"
    )


def _actual(reservation: Reservation, usage: Usage) -> Amounts:
    cost = cost_nanos(reservation.price, usage.prompt, usage.cached, usage.completion)
    return usage.prompt + usage.completion, 1, cost


def _less_usage(usage: Usage, prompt: int, cached: int, completion: int) -> Usage:
    """What a late event adds to the usage that was charged before."""
    return Usage(
        max(0, usage.prompt - prompt),
        max(0, usage.completion - completion),
        max(0, usage.cached - cached),
        usage.source,
    )


def _learn(account: Account, reservation: Reservation, usage: Usage) -> None:
    estimator = account.estimators.get(reservation.model)
    if estimator is None:
        estimator = account.estimators[reservation.model] = Estimator()
    observe(estimator, prompt=usage.prompt, completion=usage.completion, body_bytes=reservation.body_bytes)


def void(account: Account, call: Void, time_ms: int) -> VoidAnswer:
    """Undo a reservation that reached no backend. Of an absent id, its delayed reserve must find it voided."""
    if not account.marked:
        return NOT_READY
    now_ms = begin(account, call, time_ms)
    reservation = find(account, call.reservation, now_ms)
    if reservation is None:
        reservation = Reservation(id=call.reservation, state=State.VOIDED)
        account.reservations[call.reservation] = reservation
        leave_open(account, reservation, State.VOIDED, now_ms)
        account.changed.add(call.reservation)
        return Done()
    if reservation.state is not OPEN:
        return Duplicate(reservation.state)
    void_open(account, reservation, now_ms, call.reason)
    return Done()


def void_open(account: Account, reservation: Reservation, now_ms: int, reason: str) -> None:
    """Undo an open reservation: nothing is charged."""
    cancel_out(account, reservation, now_ms)
    record(account, reservation, EventKind.VOIDED, now_ms, reason=reason)
    leave_open(account, reservation, State.VOIDED, now_ms)
    account.changed.add(reservation.id)


def post(account: Account, call: Post, time_ms: int) -> PostAnswer:
    """Post the usage of an id that the store does not know: to windows only, past any cap, once.

    The caller makes sure that the outbox has drained and that the ledger has no posted, late or voided row of it.
    """
    if not account.marked:
        return NOT_READY
    arguments, usage = call.arguments, call.usage
    if fault := fault_in_arguments(arguments) or _fault_in_usage(usage):
        return Invalid(fault)
    now_ms = begin(account, call, time_ms)
    known = find(account, arguments.reservation, now_ms)
    if known is not None:
        answer = _settle_known(account, known, usage, now_ms)
        assert not isinstance(answer, Unknown)
        return answer
    model = account.definitions.models.get(arguments.model)
    if model is None:
        return Invalid(f"model {arguments.model} is not defined for {account.name}; define it, then post again")
    key = account.definitions.key(arguments.key)
    team = None if key is None else key.team
    reservation = make_reservation(account, arguments, team, model, size_of(account, arguments, model))
    before = call.already_charged
    if before is not None:
        reservation.price = before.price
    charged = (0, 0, 0) if before is None else (before.charge.tokens, before.charge.requests, before.charge.cost_nanos)
    actual = less(_actual(reservation, usage), charged)
    plan = plan_for(account, team, arguments.key, arguments.model)
    amounts = post_windows(plan.window_counters, actual, now_ms)
    state, kind, added = State.POSTED, EventKind.POSTED, usage
    if before is not None and before.charge != Charge():
        state, kind = State.LATE, EventKind.LATE
        added = _less_usage(usage, before.usage.prompt, before.usage.cached, before.usage.completion)
    reservation.tokens_held = 0
    record(account, reservation, kind, now_ms, usage=added, charge=actual, amounts=amounts)
    leave_open(account, reservation, state, now_ms)
    return Settled(state, actual[2])
