"""What governs an organisation: its definitions, whether its state is whole, and how it stands."""

from __future__ import annotations

from dataclasses import replace

from penstock.quota.charging import held_amounts
from penstock.quota.counters import new_counter, recap, roll, standing
from penstock.quota.expiring import NOT_READY, OPEN, instant
from penstock.quota.limits import limit_id
from penstock.quota.operations import (
    Define,
    DefineAnswer,
    Done,
    Hold,
    Inspect,
    InspectAnswer,
    Inspected,
    Lane,
    LimitStanding,
    Look,
    LookAnswer,
    Ready,
    Refused,
    Seen,
    Unknown,
)
from penstock.quota.plans import fault_in
from penstock.quota.state import Account, Reservation

PAGE_MAX = 10_000


def define(account: Account, call: Define, time_ms: int) -> DefineAnswer:
    """Set limits, keys, models and prices. Open holds stay as they are; a limit that left keeps its counter."""
    if call.version < max(1, account.version):
        return Refused(f"version {call.version} is older than {account.version}; read the definitions again")
    if call.version == account.version:
        if call.definitions == account.definitions:
            return Done()
        return Refused(f"version {call.version} is taken by other definitions; use a higher one")
    if fault := fault_in(account.name, call.definitions):
        return Refused(fault)
    now_ms = account.clock_ms = instant(account, call, time_ms)
    account.version, account.definitions = call.version, call.definitions
    account.defined = {limit_id(limit): limit for limit in call.definitions.limits}
    for each, limit in account.defined.items():
        counter = account.counters.get(each)
        if counter is None:
            account.counters[each] = new_counter(each, limit, now_ms)
        else:
            recap(counter, limit.cap, now_ms)
    account.plans.clear()
    return Done()


def ready(account: Account, call: Ready, time_ms: int) -> DefineAnswer:
    """Declare the state whole: with the marker only, everything but reserve and acquire works; with an epoch, all."""
    if not account.version:
        return Refused("nothing is defined yet; define first")
    if call.epoch < account.epoch:
        return Refused(f"epoch {call.epoch} is below {account.epoch}, in which admissions run already")
    if call.restored is not None and call.restored != account.restored:
        return Refused("the state is not what this rebuild restored: it was lost on the way; restore it again")
    account.clock_ms = instant(account, call, time_ms)
    account.marked, account.epoch = True, call.epoch
    return Done()


def inspect(account: Account, call: Inspect, time_ms: int) -> InspectAnswer:
    """Every limit, rolled to now, and every open hold. Writes nothing, sweeps nothing."""
    if not account.marked:
        return NOT_READY
    now_ms = instant(account, call, time_ms)
    limits = (_standing(account, each, now_ms) for each in sorted(account.counters))
    return Inspected(
        now_ms=now_ms,
        epoch=account.epoch,
        limits=tuple(each for each in limits if each.limit in account.defined or each.used or each.held),
        holds=tuple(_hold(account, each) for each in _page(account, call)),
    )


def _page(account: Account, call: Inspect) -> list[Reservation]:
    still_open = [each for _, each in sorted(account.reservations.items()) if each.state is OPEN]
    if call.holds_max is None:
        return still_open
    after = (max(0, call.after_ms or 0), call.after or "")
    behind = [each for each in still_open if (each.due_at_ms, each.id) > after]
    page = max(0, min(call.holds_max, PAGE_MAX))
    return sorted(behind, key=lambda each: (each.due_at_ms, each.id))[:page]


def look(account: Account, call: Look, time_ms: int) -> LookAnswer:
    """One reservation as it is stored. Writes nothing, sweeps nothing."""
    if not account.marked:
        return NOT_READY
    found = account.reservations.get(call.reservation)
    if found is None:
        return Unknown()
    is_known = found.fingerprint is not None  # else it was voided before its reserve came
    return Seen(
        state=found.state,
        model=found.model,
        key=found.key,
        lane=found.lane.value if is_known else "",
        running=found.state is OPEN and found.running,
        started=found.started or (found.lane is Lane.REALTIME and is_known),
        published=found.published,
        cancelled=found.cancelled,
        deadline_ms=found.due_at_ms if found.state is OPEN else 0,
        job_deadline_ms=found.job_deadline_ms,
        touched_prompt=found.touched_prompt,
        touched_completion=found.touched_completion,
    )


def _standing(account: Account, limit: str, now_ms: int) -> LimitStanding:
    """A limit that left the definitions admits nothing that would ask it: it shows a cap of 0."""
    counter = replace(account.counters[limit])
    roll(counter, now_ms)
    if limit not in account.defined:
        counter.cap = 0
    return standing(counter, now_ms)


def _hold(account: Account, reservation: Reservation) -> Hold:
    amounts = held_amounts(reservation)
    limits = sorted(reservation.windows + reservation.concurrency)
    return Hold(
        reservation=reservation.id,
        team=reservation.team,
        key=reservation.key,
        model=reservation.model,
        lane=reservation.lane.value,
        tokens_held=reservation.tokens_held,
        amounts=tuple((each, amounts[account.counters[each].unit]) for each in limits),
        deadline_ms=reservation.due_at_ms,
        acquired=reservation.running,
    )
