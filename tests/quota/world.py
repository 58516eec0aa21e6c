"""A world of organisations in which every step is checked against every invariant."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from penstock.quota import (
    Acquire,
    Call,
    ClockSkew,
    Event,
    EventKind,
    Inspect,
    Inspected,
    NotReady,
    Organisation,
    Reassert,
    Reservation,
    State,
    Sweep,
    Swept,
)
from penstock.quota.counters import roll
from tests.quota import invariants
from tests.quota.buckets import BucketOracle

FAR_MS = 10**13


def clone(organisation: Organisation) -> Organisation:
    """A copy that shares nothing that changes, and remembers nothing that can be worked out."""
    twin = Organisation(organisation.name)
    for field in fields(organisation):
        value = getattr(organisation, field.name)
        setattr(twin, field.name, value.copy() if isinstance(value, list | dict | set) else value)
    twin.reservations = {each: replace(record) for each, record in organisation.reservations.items()}
    twin.counters = {each: replace(counter) for each, counter in organisation.counters.items()}
    twin.estimators = {
        each: replace(estimator, bins=list(estimator.bins)) for each, estimator in organisation.estimators.items()
    }
    twin.plans = {}
    return twin


def facts(organisation: Organisation, now_ms: int) -> dict[str, Any]:
    """Everything that an answer could depend on, rolled to an instant."""
    rolled = {each: replace(counter) for each, counter in organisation.counters.items()}
    for counter in rolled.values():
        roll(counter, now_ms)
    return {
        "counters": rolled,
        "reservations": {each: replace(record) for each, record in organisation.reservations.items()},
        "outbox": list(organisation.outbox),
        "governed": (organisation.marked, organisation.epoch, organisation.version, organisation.definitions),
        "estimators": {each: replace(it, bins=list(it.bins)) for each, it in organisation.estimators.items()},
    }


class World:
    """Several organisations, the rows that they wrote, and what their buckets must hold."""

    def __init__(self, *names: str) -> None:
        self.organisations = {each: Organisation(each) for each in names}
        self.rows: dict[str, list[Event]] = {each: [] for each in names}
        self.oracles = {each: BucketOracle() for each in names}
        self.answers: set[str] = set()

    def step(self, call: Call[Any], time_ms: int) -> Any:
        """Apply a call, and check everything that can be checked of one step."""
        organisation = self.organisations[call.organisation]
        others = {each: facts(it, it.clock_ms) for each, it in self.organisations.items() if it is not organisation}
        _try_out(clone(organisation), call, time_ms)
        clock_ms = organisation.clock_ms
        before = _inspect(organisation)
        records = {each: replace(record) for each, record in organisation.reservations.items()}
        named = _named(call)
        was = organisation.reservations.get(named)
        answer = organisation.apply(call, time_ms=time_ms)
        rows, now_ms = organisation.outbox, organisation.clock_ms
        self.answers.add(f"{type(call).__name__} -> {type(answer).__name__}")
        record = organisation.reservations.get(named)
        is_new = record is not None and record is not was
        self.oracles[call.organisation].follow(call, answer, rows, record, is_new=is_new, now_ms=now_ms)
        self._check_buckets(organisation)
        self.rows[call.organisation] += rows
        organisation.outbox = []
        assert now_ms == clock_ms or (now_ms > clock_ms and not isinstance(answer, NotReady | ClockSkew))
        states = {each: record.state for each, record in records.items()}
        after_states = {each: record.state for each, record in organisation.reservations.items()}
        if not is_new:
            invariants.terminal_states_never_change(states, after_states)
        invariants.nothing_is_admitted_without_an_epoch(answer, organisation.epoch)
        for each, known in others.items():
            invariants.other_organisations_are_untouched(
                known, facts(self.organisations[each], self.organisations[each].clock_ms)
            )
        after = _inspect(organisation)
        if after is not None:
            invariants.held_is_the_sum_of_open_reservations(after)
            invariants.buckets_stay_within_their_caps(after)
            invariants.used_is_what_the_ledger_says(after, invariants.window_sums(self.rows[call.organisation]))
            if before is not None:
                invariants.nothing_goes_back(before, after)
                allowed = _declared(before, after, call, rows, records, is_new=is_new)
                allowed |= {each.limit: 1 << 53 for each in after.limits if each.limit not in organisation.defined}
                invariants.used_and_held_stay_within_the_cap(after, allowed)
        return answer

    def _check_buckets(self, organisation: Organisation) -> None:
        """3. ... and equals, bit for bit, what exact fractions say."""
        for each, bucket in self.oracles[organisation.name].buckets.items():
            counter = replace(organisation.counters[each])
            roll(counter, organisation.clock_ms)
            bucket.refill(organisation.clock_ms)
            assert counter.level == bucket.level * bucket.period_ms, each

    def come_to_rest(self) -> None:
        """Nobody calls any more; the keeper sweeps."""
        for organisation in self.organisations.values():
            call = Sweep(organisation=organisation.name, caller_now_ms=FAR_MS, count_max=10**9)
            answer = organisation.apply(call, time_ms=FAR_MS)
            if isinstance(answer, NotReady):
                continue
            assert isinstance(answer, Swept)
            self.rows[organisation.name] += organisation.outbox
            organisation.outbox = []
            rest = _inspect(organisation)
            assert rest is not None
            invariants.all_has_come_to_rest(rest, organisation.outbox)


def _inspect(organisation: Organisation) -> Inspected | None:
    call = Inspect(organisation=organisation.name, caller_now_ms=organisation.clock_ms)
    answer = organisation.apply(call, time_ms=organisation.clock_ms)
    return answer if isinstance(answer, Inspected) else None


def _named(call: Call[Any]) -> str:
    arguments = getattr(call, "arguments", call)
    return str(getattr(arguments, "reservation", ""))


def _try_out(organisation: Organisation, call: Call[Any], time_ms: int) -> None:
    """On a copy: sweep, then check what must hold of a call at an instant at which nothing is due.

    7. op(x); op(x) is op(x) at the same instant, apart from sweeping.
    """
    organisation.apply(
        Sweep(organisation=call.organisation, caller_now_ms=call.caller_now_ms, count_max=10**9), time_ms=time_ms
    )
    swept = _inspect(organisation)
    if swept is not None:
        invariants.nothing_stays_open_past_its_deadline(swept)
    known = facts(organisation, organisation.clock_ms)
    answer = organisation.apply(call, time_ms=time_ms)
    once = facts(organisation, organisation.clock_ms)
    after = _inspect(organisation)
    if swept is not None and after is not None:
        invariants.a_refusal_changes_no_counter(swept, answer, after)
    if isinstance(answer, invariants.REFUSALS):
        assert once == known, answer
    organisation.apply(call, time_ms=time_ms)
    assert facts(organisation, organisation.clock_ms) == once, answer


def _declared(
    before: Inspected,
    after: Inspected,
    call: Call[Any],
    rows: list[Event],
    records: dict[str, Reservation],
    *,
    is_new: bool,
) -> dict[str, int]:
    """What one step may take a limit above its cap, or further above than it was.

    A limit that was above its cap stays so until its window passes; rows carry overage, late and forced posts; a
    reassert and a lost job's acquire force their holds; a define may lower a cap.
    """
    limits = {each.limit: each for each in before.limits}
    allowed = {}
    for now in after.limits:
        was = limits.get(now.limit)
        over = max(0, was.used + was.held - was.cap) if was is not None else now.used + now.held
        if was is not None and was.cap > now.cap:
            over += was.cap - now.cap
        allowed[now.limit] = over
    for row in rows:
        record = records.get(row.reservation)
        for each in row.amounts:
            held = 0
            if record is not None and record.state is State.OPEN and row.kind is not EventKind.LATE:
                held = {"tokens": record.tokens_held, "requests": 1, "cost": record.cost_held}[each.limit.split("/")[1]]
            allowed[each.limit] = allowed.get(each.limit, 0) + max(0, each.amount - held)
    forced = is_new and isinstance(call, Acquire)
    if forced or isinstance(call, Reassert):
        for hold in after.holds:
            if hold.reservation == _named(call):
                for limit, amount in hold.amounts:
                    allowed[limit] = allowed.get(limit, 0) + amount
    return allowed
