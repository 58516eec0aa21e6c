"""Reserve: check the key, size the request, check every limit, then hold all or nothing. Extend holds more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.quota.charging import held_amounts, record
from penstock.quota.counters import (
    ENQUEUED,
    Amounts,
    Counter,
    available,
    hold,
    never_fits,
    reading,
    refusal,
    retry_after_ms,
    roll,
)
from penstock.quota.definitions import SUBJECT, Key, Model, ReservePolicy
from penstock.quota.estimate import completion_q95, learned_prompt, strict_prompt
from penstock.quota.events import EventKind
from penstock.quota.expiring import NOT_READY, OPEN, begin, find
from penstock.quota.operations import (
    ClockSkew,
    Denied,
    Duplicate,
    Extend,
    ExtendAnswer,
    Extended,
    Invalid,
    Lane,
    Mismatch,
    NoKey,
    OutOfScope,
    Reading,
    Refusal,
    Reserve,
    ReserveAnswer,
    ReserveArguments,
    Reserved,
    Unknown,
)
from penstock.quota.plans import Plan, make_plan, owners_of
from penstock.quota.pricing import cost_nanos_max
from penstock.quota.state import SKEW_MAX_MS, TOKENS_MAX, Account, Reservation, lease_ends_ms, open_until

Size = tuple[int, int, int]  # prompt tokens, all tokens, nano-dollars
_FOREVER_MS = 1 << 53


def reserve(account: Account, call: Reserve, time_ms: int) -> ReserveAnswer:
    """The door. Whatever it answers but OK changes no counter beyond rolling and sweeping."""
    if not account.epoch:
        return NOT_READY
    if not -SKEW_MAX_MS <= call.caller_now_ms - time_ms <= SKEW_MAX_MS:
        return ClockSkew()
    if fault := fault_in(call):
        return Invalid(fault)
    now_ms = begin(account, call, time_ms)
    known = find(account, call.reservation, now_ms)
    definitions = account.definitions
    key = definitions.key(call.key)
    if key is None or not is_valid(key, call.key_mac, now_ms):
        return NoKey()
    if key.models is not None and call.model not in key.models:
        return OutOfScope("model")
    if key.routes is not None and call.route not in key.routes:
        return OutOfScope("route")
    if known is not None:
        return _again(account, call, known, now_ms)
    if call.job_deadline_ms <= now_ms:
        return Invalid("the request's own deadline has passed; nothing was reserved")
    model = definitions.models.get(call.model)
    if model is None:
        return Invalid(f"model {call.model} is not defined for {account.name}")
    size = size_of(account, call, model)
    _, tokens, cost = size
    if tokens > TOKENS_MAX:
        return Invalid(f"needs {tokens} tokens; at most {TOKENS_MAX} are possible in one request")
    if key.cost_nanos_max is not None and cost > key.cost_nanos_max:
        return OutOfScope("cost")
    plan = plan_for(account, key.team, call.key, call.model)
    amounts = (tokens, 1, cost)
    denied = _check(plan, call.lane, amounts, now_ms)
    if denied is not None:
        return denied
    return _admit(account, call, key.team, model, plan, size, now_ms)


def fault_in(call: ReserveArguments[Any]) -> str | None:
    """What makes arguments unfit, whatever the state; None if nothing does."""
    if not 0 <= call.body_bytes < TOKENS_MAX:
        return f"body_bytes is {call.body_bytes}; allowed are 0 to {TOKENS_MAX - 1}"
    if not 1 <= call.prompts <= TOKENS_MAX:
        return f"prompts is {call.prompts}; allowed are 1 to {TOKENS_MAX}"
    if call.prompt_tokens is not None and not 0 <= call.prompt_tokens <= TOKENS_MAX:
        return f"prompt_tokens is {call.prompt_tokens}; allowed are 0 to {TOKENS_MAX}"
    if not 0 <= call.outputs_bound <= TOKENS_MAX:
        return f"outputs_bound is {call.outputs_bound}; allowed are 0 to {TOKENS_MAX}"
    if not 0 <= call.job_deadline_ms <= 1 << 52:
        return f"job_deadline_ms is {call.job_deadline_ms}; allowed are 0 to 2^52"
    return None


def is_valid(key: Key, mac: str, now_ms: int) -> bool:
    """Whether the credential is this key's, and the key is good now.

    Args:
        mac: Lower-case hex; empty for a verified subject, which has no secret.
    """
    if key.revoked or (key.expires_at_ms and now_ms >= key.expires_at_ms):
        return False
    if key.verified:
        return mac == ""
    if not mac:
        return False
    return any(mac == each and (not expires_at_ms or now_ms < expires_at_ms) for each, expires_at_ms in key.macs)


def _again(account: Account, call: Reserve, known: Reservation, now_ms: int) -> ReserveAnswer:
    if known.fingerprint is not None and known.fingerprint != call.fingerprint:
        return Mismatch()
    if known.state is not OPEN or known.nonce != call.nonce:
        return Duplicate(known.state)
    plan = plan_for(account, known.team, known.key, known.model)
    stand = readings(plan.counters, now_ms)
    return Reserved(known.due_at_ms, known.tokens_held, stand, account.epoch, account.definitions.shard)


def size_of(account: Account, call: ReserveArguments[Any], model: Model) -> Size:
    """How much to hold: the bound, or under a learned policy what such requests used, if that is less."""
    prompt = strict_prompt(model, call.body_bytes, call.prompts, call.prompt_tokens)
    completion = call.outputs_bound
    if account.definitions.reserve is ReservePolicy.LEARNED:
        estimator = account.estimators.get(model.name)
        if estimator is not None:
            q95 = completion_q95(estimator)
            if q95 is not None:
                completion = min(completion, q95)
            likely = learned_prompt(estimator, call.body_bytes) if call.prompt_tokens is None else None
            if likely is not None:
                prompt = min(prompt, likely)
    return prompt, prompt + completion, cost_nanos_max(model.price, prompt, completion)


def plan_for(account: Account, team: str | None, key: str, model: str) -> Plan:
    """The limits that such a request falls under, remembered until the next define."""
    key = key.partition(SUBJECT)[0]  # subjects share their key's limits, and there may be any number of them
    plan = account.plans.get((team, key, model))
    if plan is None:
        owners = owners_of(account.name, team, key)
        plan = make_plan(account.counters, account.defined, owners, model)
        account.plans[team, key, model] = plan
    return plan


def _check(plan: Plan, lane: Lane, amounts: Amounts, now_ms: int) -> Denied | None:
    """None if all limits admit; else the one with the longest wait, ties by id.

    A queued job takes rates and concurrency only when it runs; what will never fit is refused at once.
    """
    if lane is Lane.REALTIME:
        worst = first_refusal(plan.counters, amounts, amounts, now_ms)
    else:
        worst = first_refusal((*plan.window_counters, *plan.enqueued_counters), amounts, amounts, now_ms)
        for counter in plan.run_counters:
            if never_fits(counter, amounts[counter.unit]):
                roll(counter, now_ms)
                worst = longer(worst, (_FOREVER_MS, counter, Refusal.NEVER))
    if worst is None:
        return None
    return denial(worst, plan.counters, amounts, now_ms)


Refused = tuple[int, Counter, Refusal]  # the wait, of which counter, why


def first_refusal(counters: Iterable[Counter], amounts: Amounts, totals: Amounts, now_ms: int) -> Refused | None:
    """Roll and check every counter; ``amounts`` are to be added, so that ``totals`` are held."""
    worst = None
    for counter in counters:
        if now_ms >= counter.ends_at_ms:  # always, but of a window that goes on
            roll(counter, now_ms)
        amount = amounts[counter.unit]
        if amount > available(counter) or not counter.cap:
            refused = refusal(counter, totals[counter.unit])
            wait_ms = _FOREVER_MS if refused is Refusal.NEVER else retry_after_ms(counter, amount, refused, now_ms)
            worst = longer(worst, (wait_ms, counter, refused))
    return worst


def longer(worst: Refused | None, other: Refused) -> Refused:
    """The refusal with the longer wait, ties by limit id."""
    if worst is None or (-other[0], other[1].limit) < (-worst[0], worst[1].limit):
        return other
    return worst


def denial(worst: Refused, counters: tuple[Counter, ...], amounts: Amounts, now_ms: int) -> Denied:
    """DENY, in the words of the limit that refused."""
    _, counter, refused = worst
    amount = amounts[counter.unit]
    return Denied(
        limit=counter.limit,
        refusal=refused,
        amount=amount,
        available=max(0, available(counter)),
        retry_after_ms=retry_after_ms(counter, amount, refused, now_ms),
        readings=readings(counters, now_ms),
    )


def readings(counters: Iterable[Counter], now_ms: int) -> tuple[Reading, ...]:
    """Each limit as it stands, for the headers: what bounds the queue is no limit of the request itself."""
    found = []
    for counter in counters:
        if counter.kind is not ENQUEUED:
            roll(counter, now_ms)
            found.append(reading(counter, now_ms))
    return tuple(found)


def _admit(
    account: Account, call: Reserve, team: str | None, model: Model, plan: Plan, size: Size, now_ms: int
) -> Reserved:
    reservation = make_reservation(account, call, team, model, size)
    amounts = held_amounts(reservation)
    reservation.windows = plan.windows
    if call.lane is Lane.REALTIME:
        for counter in plan.window_counters:
            counter.held += amounts[counter.unit]
        for counter in plan.run_counters:
            hold(counter, amounts[counter.unit])
        reservation.rates, reservation.concurrency = plan.rates, plan.concurrency
        reservation.running = True
        open_until(account, reservation, lease_ends_ms(call.job_deadline_ms, now_ms))
        stand = tuple([reading(counter, now_ms) for counter in plan.counters])  # the check has rolled them
    else:
        for counter in plan.window_counters:
            hold(counter, amounts[counter.unit])
        enqueue(reservation, plan)
        open_until(account, reservation, call.job_deadline_ms)
        record(account, reservation, EventKind.RESERVED, now_ms)
        stand = readings(plan.counters, now_ms)  # rolls what a job has not asked
    return Reserved(reservation.due_at_ms, reservation.tokens_held, stand, account.epoch, account.definitions.shard)


def enqueue(reservation: Reservation, plan: Plan) -> None:
    """A job that nobody has started takes its place in the queue."""
    amounts = held_amounts(reservation)
    for counter in plan.enqueued_counters:
        hold(counter, amounts[counter.unit])
    reservation.concurrency = plan.enqueued


def make_reservation(
    account: Account, call: ReserveArguments[Any], team: str | None, model: Model, size: Size
) -> Reservation:
    """A new open reservation that holds nothing yet."""
    prompt, tokens, cost = size
    reservation = Reservation(
        id=call.reservation,
        state=OPEN,
        fingerprint=call.fingerprint,
        nonce=call.nonce,
        team=team,
        key=call.key,
        model=call.model,
        lane=call.lane,
        price=model.price,
        body_bytes=call.body_bytes,
        prompt_tokens=call.prompt_tokens,
        prompt_held=prompt,
        tokens_held=tokens,
        cost_held=cost,
        job_deadline_ms=call.job_deadline_ms,
    )
    account.reservations[call.reservation] = reservation
    account.changed.add(call.reservation)
    return reservation


def extend(account: Account, call: Extend, time_ms: int) -> ExtendAnswer:
    """Raise a hold to a total: all the limits that it holds, or none. One that left the definitions is not asked."""
    if not account.marked:
        return NOT_READY
    if not 0 <= call.total_tokens <= TOKENS_MAX:
        return Invalid(f"total_tokens is {call.total_tokens}; allowed are 0 to {TOKENS_MAX}")
    now_ms = begin(account, call, time_ms)
    reservation = find(account, call.reservation, now_ms)
    if reservation is None:
        return Unknown()
    if reservation.state is not OPEN:
        return Duplicate(reservation.state)
    more = call.total_tokens - reservation.tokens_held
    if more <= 0:
        return Extended(reservation.tokens_held)
    cost = cost_nanos_max(reservation.price, reservation.prompt_held, call.total_tokens - reservation.prompt_held)
    key = account.definitions.key(reservation.key)
    if key is not None and key.cost_nanos_max is not None and cost > key.cost_nanos_max:
        return Invalid(f"would cost up to {cost} nano-dollars; the key allows {key.cost_nanos_max} for one request")
    amounts = (more, 0, cost - reservation.cost_held)
    places = () if reservation.running else reservation.concurrency
    counters = tuple(account.counters[each] for each in sorted(reservation.windows + reservation.rates + places))
    concerned = [each for each in counters if amounts[each.unit]]
    asked = [each for each in concerned if each.limit in account.defined]
    worst = first_refusal(asked, amounts, (call.total_tokens, 1, cost), now_ms)
    if worst is not None:
        return denial(worst, counters, amounts, now_ms)
    for counter in concerned:
        roll(counter, now_ms)
        hold(counter, amounts[counter.unit])
    reservation.tokens_held, reservation.cost_held = call.total_tokens, cost
    account.changed.add(reservation.id)
    return Extended(reservation.tokens_held)
