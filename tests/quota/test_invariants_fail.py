"""Every invariant can be broken, and then it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.quota import Inspected, NoKey, Reserved, State
from tests.quota import invariants
from tests.quota.desk import LEASE_MS, Desk

DAY, MINUTE = "acme/tokens/day", "acme/tokens/minute"


def desk() -> Desk:
    made = Desk({DAY: 1_000, MINUTE: 600})
    made.reserve("r1")
    made.settle("r1")
    made.reserve("r2")
    return made


def broken(state: Inspected, limit: str, **fields: Any) -> Inspected:
    return replace(state, limits=tuple(replace(it, **fields) if it.limit == limit else it for it in state.limits))


SOUND = desk().inspect()
ROWS = desk().take_events()
LATER = replace(SOUND, now_ms=SOUND.now_ms + LEASE_MS)

BROKEN: list[tuple[str, Callable[[], None]]] = [
    ("1", lambda: invariants.held_is_the_sum_of_open_reservations(broken(SOUND, DAY, held=101))),
    ("1, of nothing", lambda: invariants.held_is_the_sum_of_open_reservations(replace(SOUND, holds=()))),
    ("2", lambda: invariants.used_and_held_stay_within_the_cap(broken(SOUND, DAY, cap=199))),
    ("2, allowed", lambda: invariants.used_and_held_stay_within_the_cap(broken(SOUND, DAY, cap=189), {DAY: 10})),
    ("3", lambda: invariants.buckets_stay_within_their_caps(broken(SOUND, MINUTE, available=601))),
    ("4", lambda: invariants.used_is_what_the_ledger_says(SOUND, invariants.window_sums(ROWS * 2))),
    ("4, of nothing", lambda: invariants.used_is_what_the_ledger_says(SOUND, {})),
    ("5", lambda: invariants.a_refusal_changes_no_counter(SOUND, NoKey(), broken(SOUND, DAY, used=101))),
    ("6", lambda: invariants.every_id_leaves_open_once(ROWS * 2)),
    ("6, terminal", lambda: invariants.terminal_states_never_change({"r": State.LATE}, {"r": State.POSTED})),
    ("6, late", lambda: invariants.terminal_states_never_change({"r": State.POSTED}, {"r": State.LATE})),
    ("6, reopened", lambda: invariants.terminal_states_never_change({"r": State.EXPIRED}, {"r": State.OPEN})),
    ("6, lost", lambda: invariants.terminal_states_never_change({"r": State.OPEN}, {})),
    ("8, clock", lambda: invariants.nothing_goes_back(LATER, SOUND)),
    ("8, used", lambda: invariants.nothing_goes_back(SOUND, broken(LATER, DAY, used=99))),
    ("8, window", lambda: invariants.nothing_goes_back(SOUND, broken(LATER, DAY, window=1))),
    ("9", lambda: invariants.nothing_stays_open_past_its_deadline(LATER)),
    ("10", lambda: invariants.nothing_is_admitted_without_an_epoch(Reserved(1, 1), 0)),
    ("11", lambda: invariants.other_organisations_are_untouched({"a": 1}, {"a": 2})),
    ("12, holds", lambda: invariants.all_has_come_to_rest(SOUND, [])),
    ("12, held", lambda: invariants.all_has_come_to_rest(replace(SOUND, holds=()), [])),
    ("12, outbox", lambda: invariants.all_has_come_to_rest(Desk().inspect(), ROWS)),
]


@pytest.mark.parametrize("check", [case[1] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_each_invariant_refuses_a_state_that_breaks_it(check: Callable[[], None]) -> None:
    with pytest.raises(AssertionError):
        check()


def test_every_invariant_holds_of_a_sound_state() -> None:
    invariants.held_is_the_sum_of_open_reservations(SOUND)
    invariants.used_and_held_stay_within_the_cap(SOUND)
    invariants.used_and_held_stay_within_the_cap(broken(SOUND, DAY, cap=190), {DAY: 10})
    invariants.buckets_stay_within_their_caps(SOUND)
    invariants.used_is_what_the_ledger_says(SOUND, invariants.window_sums(ROWS))
    invariants.a_refusal_changes_no_counter(SOUND, NoKey(), SOUND)
    invariants.a_refusal_changes_no_counter(SOUND, Reserved(1, 1), LATER)
    invariants.every_id_leaves_open_once(ROWS)
    invariants.terminal_states_never_change({"a": State.OPEN, "b": State.EXPIRED, "c": State.LATE}, {"a": State.LATE})
    invariants.nothing_goes_back(SOUND, broken(LATER, DAY, window=10**6, used=0))
    invariants.nothing_stays_open_past_its_deadline(SOUND)
    invariants.nothing_is_admitted_without_an_epoch(Reserved(1, 1), 1)
    invariants.all_has_come_to_rest(Desk().inspect(), [])
