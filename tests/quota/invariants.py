"""The invariants of the quota, each a sentence and a check of it.

They take what every store can give, ``Inspected`` and the ledger's rows, so that tests of whole systems use them too.
Where an invariant is about one step, it takes the state before and after. Those that need a copy of the state to try
things on are in ``tests.quota.world``.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from typing import Any

from penstock.quota import (
    ClockSkew,
    Denied,
    Duplicate,
    Event,
    EventKind,
    Gone,
    Inspected,
    Invalid,
    Mismatch,
    NoKey,
    NotReady,
    OutOfScope,
    Refused,
    Reserved,
    Run,
    State,
    Unknown,
    Wait,
)

REFUSALS = (Denied, Duplicate, Mismatch, NoKey, OutOfScope, NotReady, ClockSkew, Invalid, Unknown, Wait, Gone, Refused)

_LEAVES_OPEN = (EventKind.POSTED, EventKind.VOIDED, EventKind.EXPIRED)
_TERMINAL = (State.POSTED, State.VOIDED, State.LATE)


def held_is_the_sum_of_open_reservations(state: Inspected) -> None:
    """1. held(limit) = sum of open reservations naming it."""
    sums: Tally[str] = Tally()
    for hold in state.holds:
        sums.update(dict(hold.amounts))
    assert {each.limit: each.held for each in state.limits if each.held} == {k: v for k, v in sums.items() if v}


def used_and_held_stay_within_the_cap(state: Inspected, allowed: Mapping[str, int] | None = None) -> None:
    """2. used + held <= cap, plus declared overage, late, expired, forced posts and lowered caps.

    Args:
        allowed: By limit, how much was declared; nothing in strict mode without faults.
    """
    for each in state.limits:
        if each.kind in ("window", "concurrency"):
            assert each.used + each.held <= each.cap + (allowed or {}).get(each.limit, 0), each


def buckets_stay_within_their_caps(state: Inspected) -> None:
    """3. a bucket never exceeds its cap. (That it equals the model bit for bit is shown by comparing the two.)"""
    for each in state.limits:
        if each.kind in ("rate", "strict_rate"):
            assert 0 <= each.available <= each.cap, each


def window_sums(rows: Iterable[Event]) -> dict[tuple[str, int], int]:
    """What rows posted, by limit and window."""
    sums: Tally[tuple[str, int]] = Tally()
    for row in rows:
        for each in row.amounts:
            sums[each.limit, each.window] += each.amount
    return dict(sums)


def used_is_what_the_ledger_says(state: Inspected, sums: Mapping[tuple[str, int], int]) -> None:
    """4. per window limit and window: ledger at the last rebuild + outbox since = used; after a drain, sum = used."""
    for each in state.limits:
        if each.kind == "window":
            assert each.used == sums.get((each.limit, each.window), 0), each


def a_refusal_changes_no_counter(before: Inspected, answer: Any, after: Inspected) -> None:
    """5. DENY or an error changes no counter beyond rolling and sweeping, which come first.

    ``before`` and ``after`` are of one instant, and nothing was due.
    """
    if isinstance(answer, REFUSALS):
        assert before == after, answer


def every_id_leaves_open_once(rows: Iterable[Event]) -> None:
    """6. while an id is remembered, it leaves OPEN once. ``rows``: of ids that were never forgotten."""
    left = Tally(row.reservation for row in rows if row.kind in _LEAVES_OPEN)
    late = Tally(row.reservation for row in rows if row.kind is EventKind.LATE)
    assert [each for each, count in left.items() if count > 1] == []
    assert [each for each, count in late.items() if count > 1 or not left[each]] == []


def terminal_states_never_change(before: Mapping[str, State], after: Mapping[str, State]) -> None:
    """6. ... and terminal never changes: until it is forgotten, and only the expired can become late."""
    for each, state in before.items():
        now = after.get(each, state)
        assert now is state or state is State.OPEN or (state is State.EXPIRED and now is State.LATE), (each, state, now)
        assert each in after or state is not State.OPEN, f"{each} was open, and is gone"
        assert state not in _TERMINAL or now is state


def nothing_goes_back(before: Inspected, after: Inspected) -> None:
    """8. within an epoch, clock, window ids, and used within a window never decrease."""
    assert before.now_ms <= after.now_ms
    limits = {each.limit: each for each in after.limits}
    for was in before.limits:
        now = limits.get(was.limit)
        if now is not None:
            assert was.window <= now.window, (was, now)
            assert was.used <= now.used or was.window < now.window, (was, now)


def nothing_stays_open_past_its_deadline(swept: Inspected) -> None:
    """9. nothing stays open past deadline + sweep. ``swept``: a sweep of everything came last, at that instant."""
    assert [each for each in swept.holds if each.deadline_ms <= swept.now_ms] == []


def nothing_is_admitted_without_an_epoch(answer: Any, epoch: int) -> None:
    """10. no admission without an epoch."""
    assert epoch > 0 or not isinstance(answer, Reserved | Run)


def other_organisations_are_untouched(before: Any, after: Any) -> None:
    """11. an operation of one organisation touches no other."""
    assert before == after


def all_has_come_to_rest(state: Inspected, outbox: Iterable[Event]) -> None:
    """12. when all stop, held reaches 0 and the outbox is empty."""
    assert state.holds == ()
    assert [each for each in state.limits if each.held] == []
    assert list(outbox) == []
