"""After a crash the windows are what the ledger says, and whatever was open ends in the ordinary way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from penstock.quota import Done, Duplicate, EventKind, Gone, Refused, Reservation, Run, Settled, State, Swept, restore
from penstock.quota.counters import Counter
from penstock.quota.limits import DAY_MS
from penstock.quota.restore import current_since_ms
from tests.quota.desk import LEASE_MS, REMEMBER_MS, T0, Desk, definitions

DAY, MINUTE, FLIGHT, SLOW = (
    "acme/tokens/day", "acme/tokens/minute", "acme/concurrency/concurrent", "acme/tokens/strict_rate-60000",
)  # fmt: skip
LIMITS = {DAY: 1_000, MINUTE: 600, FLIGHT: 5, SLOW: 600, "acme/cost/month": 10**9, "acme/requests/day": 50}
TODAY = T0 // 86_400_000


def saved(desk: Desk, *, rows: Any = (), **fields: Any) -> Desk:
    """Lose the process: what comes back is what was written down."""
    lost = desk.organisation
    sums: dict[tuple[str, int], int] = {}
    for row in rows:
        for each in row.amounts:
            sums[each.limit, each.window] = sums.get((each.limit, each.window), 0) + each.amount
    given: dict[str, Any] = {
        "version": lost.version,
        "definitions": lost.definitions,
        "epoch": lost.epoch,
        "time_ms": desk.now_ms,
        "window_sums": sums,
        "tombstones": rows,
        "reservations": [each for each in lost.reservations.values() if each.state is State.OPEN],
        "buckets": {each.limit: (each.level, each.rolled_at_ms) for each in lost.counters.values() if each.level},
    }
    desk.organisation = restore("acme", **{**given, **fields})
    return desk


def busy() -> Desk:
    desk = Desk(LIMITS)
    desk.reserve("posted")
    desk.settle("posted", completion=10)
    desk.reserve("voided")
    desk.void("voided")
    desk.reserve("expired", job_deadline_ms=T0 + 1_000)
    desk.enqueue("waits")
    desk.enqueue("runs")
    desk.acquire("runs")
    desk.later(1_000).sweep()
    desk.reserve("open")
    desk.touch("open", completion=7)
    return desk


def test_what_was_written_down_comes_back_as_it_was() -> None:
    desk = busy()
    before = desk.inspect()
    assert saved(desk, rows=desk.take_events()).inspect() == before


def test_what_comes_back_goes_on_as_if_nothing_had_happened() -> None:
    whole, again = busy(), busy()
    saved(again, rows=again.take_events())
    whole.take_events()
    for desk in (whole, again):
        desk.settle("expired", 60, 40)
        desk.settle("open")
        desk.acquire("waits")
        desk.later(LEASE_MS).sweep()
        desk.settle("waits", 1, 1)
    assert again.inspect() == whole.inspect()
    assert again.take_events() == whole.take_events()
    for each in ("posted", "voided", "expired", "open"):
        assert again.reserve(each) == whole.reserve(each)


def test_opens_expire_at_their_last_touch_in_the_ordinary_sweep() -> None:
    desk = busy()
    saved(desk, rows=desk.take_events())
    assert desk.later(LEASE_MS).sweep() == Swept(2)
    (event,) = desk.take_events()
    assert (event.reservation, event.charge.tokens) == ("open", 67)
    assert desk.held(FLIGHT) == 0


def test_restoring_does_not_change_the_records_it_was_given() -> None:
    desk = busy()
    records = [replace(each) for each in desk.organisation.reservations.values()]
    kept = [replace(each) for each in records]
    saved(desk, reservations=records)
    desk.settle("open")
    assert records == kept


def test_a_record_that_a_row_contradicts_has_ended() -> None:
    desk = busy()
    stale = [replace(each) for each in desk.organisation.reservations.values() if each.id == "open"]
    desk.settle("open")
    rows = desk.take_events()
    saved(desk, rows=rows, reservations=stale)
    assert desk.inspect().holds == ()
    assert desk.settle("open") == Duplicate(State.POSTED)
    assert desk.reserve("open", fingerprint="f2").__class__.__name__ == "Mismatch"


def test_a_late_settle_after_a_crash_adds_only_what_was_not_charged() -> None:
    desk = busy()
    rows = desk.take_events()
    (expiry,) = [row for row in rows if row.kind == "expired"]
    assert expiry.charge.tokens == 60
    record = [each for each in desk.organisation.reservations.values() if each.id == "expired"]
    for records in (record, []):  # its record knows its rates; without it, its windows are worked out anew
        desk = busy()
        saved(desk, rows=rows, reservations=records)
        used, level = desk.used(DAY), desk.available(SLOW)
        assert desk.settle("expired", 60, 50) == Settled(
            State.LATE, 60 * 2_000 + 50 * 4_000 + 5_000 - expiry.charge.cost_nanos
        )
        assert (desk.used(DAY), level - desk.available(SLOW)) == (used + 50, 10 if records else 0)
        late = desk.take_events()[-1]
        assert (late.charge.requests, late.usage.prompt, late.usage.completion) == (0, 0, 50)
        assert (late.team, late.key, late.model, late.lane) == ("search", "k1", "m", "realtime")
        assert late.job_deadline_ms == T0 + 1_000


def test_the_last_row_of_a_reservation_decides() -> None:
    desk = busy()
    desk.settle("expired")
    saved(desk, rows=desk.take_events(), reservations=[])
    assert desk.settle("expired") == Duplicate(State.LATE)
    assert desk.acquire("waits") == Gone()  # a job that was only reserved or acquired is no tombstone


def test_tombstones_are_remembered_as_long_as_before() -> None:
    desk = busy()
    desk.settle("open")
    saved(desk, rows=desk.take_events(), reservations=[])
    desk.now_ms = T0 + 1_000 + REMEMBER_MS - 1
    desk.sweep()
    assert desk.cancel("open") == Duplicate(State.POSTED)
    desk.later(1).sweep()
    assert desk.organisation.reservations == {}


def test_tombstones_are_forgotten_in_order_whatever_the_order_of_their_rows() -> None:
    desk = Desk(LIMITS)
    for reservation, deadline_ms in (("c", 5 * REMEMBER_MS), ("b", 3 * REMEMBER_MS), ("a", 2 * REMEMBER_MS)):
        desk.enqueue(reservation, job_deadline_ms=T0 + deadline_ms)
        desk.settle(reservation)
    saved(desk, rows=desk.take_events(), reservations=[])
    left = []
    for _ in range(5):
        desk.later(REMEMBER_MS).sweep(1)
        left.append("".join(sorted(desk.organisation.reservations)))
    assert left == ["abc", "bc", "c", "c", ""]


def test_the_clock_does_not_start_before_the_newest_row() -> None:
    desk = saved(Desk(LIMITS), ledger_time_ms=T0 + 5_000)
    assert desk.inspect().now_ms == T0 + 5_000
    assert saved(Desk(LIMITS), ledger_time_ms=T0 - 5_000).inspect().now_ms == T0


def test_the_newest_window_counts_and_a_passed_one_does_not() -> None:
    sums = {(DAY, TODAY): 70, (DAY, TODAY - 1): 900, ("acme/requests/day", TODAY - 1): 9}
    desk = saved(Desk(LIMITS), window_sums=sums)
    assert (desk.used(DAY), desk.used("acme/requests/day")) == (70, 0)


def test_buckets_that_were_not_saved_start_empty_and_none_above_full() -> None:
    desk = saved(Desk(LIMITS), buckets={MINUTE: (10**12, T0 + 10**6)})
    assert (desk.available(MINUTE), desk.available(SLOW)) == (600, 0)
    saved(desk, buckets={MINUTE: (0, T0 + 10**6)})
    assert desk.later(1_000).available(MINUTE) == desk.available(SLOW) == 10


def test_a_bucket_refills_for_the_time_in_which_nobody_ran() -> None:
    desk = saved(Desk(LIMITS), buckets={MINUTE: (0, T0 - 30_000)})
    assert desk.available(MINUTE) == 300


def test_limits_that_are_named_but_no_longer_defined_return_with_cap_0() -> None:
    desk = busy()
    rows = desk.take_events()
    saved(desk, rows=rows, definitions=definitions({}))
    assert {(each.limit, each.cap, each.used, each.held) for each in desk.inspect().limits} == {
        (DAY, 0, 130, 300), ("acme/cost/month", 0, desk.used("acme/cost/month"), desk.held("acme/cost/month")),
        ("acme/requests/day", 0, 2, 3), (FLIGHT, 0, 0, 2),
    }  # fmt: skip
    desk.settle("open")
    assert (desk.used(DAY), desk.held(DAY)) == (230, 200)


def test_without_an_epoch_the_state_waits_for_its_marker() -> None:
    desk = saved(Desk(LIMITS), epoch=0)
    assert (desk.organisation.marked, desk.ready(0).__class__.__name__) == (False, "Done")


def test_a_voided_absent_id_comes_back_from_its_record() -> None:
    desk = Desk(LIMITS)
    desk.void("r1")
    saved(desk, reservations=list(desk.organisation.reservations.values()))
    assert desk.reserve("r1") == Duplicate(State.VOIDED)


def test_records_and_counters_are_plain_data_that_can_be_written_down() -> None:
    desk = busy()
    for each in desk.organisation.reservations.values():
        assert msgspec.json.decode(msgspec.json.encode(each), type=Reservation) == each
    for counter in desk.organisation.counters.values():
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(counter), type=Counter) == counter


def test_ready_names_what_was_restored_or_does_not_ask() -> None:
    desk = Desk(LIMITS)
    assert isinstance(desk.ready(2, restored="1 a"), Refused)
    assert desk.ready(2, restored="") == Done()
    saved(desk, restored="1 a", epoch=0)
    for other in ("", "1 b"):
        assert isinstance(desk.ready(3, restored=other), Refused)
    assert desk.ready(3, restored="1 a") == desk.ready(3) == Done()


def test_rows_are_summed_from_the_beginning_of_the_longest_window() -> None:
    days = 100 * DAY_MS
    longest = {f"acme/tokens/window-{days}-0": 1_000, DAY: 1_000, MINUTE: 600}
    assert current_since_ms(definitions({}), T0) == T0 - 31 * DAY_MS
    assert current_since_ms(definitions({DAY: 1_000, MINUTE: 600}), T0) == T0 - 31 * DAY_MS
    assert current_since_ms(definitions(longest), T0) == T0 // days * days < T0 - 31 * DAY_MS


def test_an_open_job_that_was_not_saved_waits_again_with_what_it_held() -> None:
    limits = {DAY: 1_000, "acme/tokens/enqueued": 350, "acme/cost/month": 10**12}
    desk = Desk(limits)
    desk.enqueue("j1")
    desk.enqueue("j2")
    desk.enqueue("overdue", job_deadline_ms=T0 + 5_000)
    rows = desk.take_events()
    assert [each.kind for each in rows] == [EventKind.RESERVED] * 3
    known = [each for each in desk.organisation.reservations.values() if each.id == "j2"]
    desk.later(5_000)
    saved(desk, jobs=rows, reservations=known)
    assert [each.reservation for each in desk.inspect().holds] == ["j1", "j2"]
    assert (desk.held(DAY), desk.held("acme/tokens/enqueued")) == (200, 200)
    assert desk.held("acme/cost/month") == 285_000 + 405_000  # as if every token of j1's could be completion
    desk.later(-1)
    saved(desk, jobs=rows, reservations=known)
    assert desk.held(DAY) == 300
    assert isinstance(desk.acquire("j1"), Run)
    assert desk.held("acme/tokens/enqueued") == 200
