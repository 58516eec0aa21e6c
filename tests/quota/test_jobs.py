"""A queued job holds its budget while it waits, and its rates and its place in flight only when it runs."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.quota import (
    Cancelled,
    ClockSkew,
    Duplicate,
    Gone,
    Invalid,
    Lane,
    Never,
    Refused,
    Run,
    State,
    Swept,
    Touched,
    UsageSource,
    Wait,
)
from penstock.quota.operations import Done
from tests.quota.desk import LEASE_MS, REMEMBER_MS, T0, Desk

DAY, MINUTE, PER_MINUTE, FLIGHT = (
    "acme/tokens/day", "acme/tokens/minute", "acme/requests/minute", "acme/concurrency/concurrent",
)  # fmt: skip
LIMITS = {DAY: 10_000, MINUTE: 600, PER_MINUTE: 60, FLIGHT: 2}


def running(desk: Desk, reservation: str = "j1", **fields: Any) -> Desk:
    desk.enqueue(reservation, **fields)
    assert isinstance(desk.acquire(reservation), Run)
    desk.take_events()
    return desk


def test_acquire_takes_rates_and_a_place_and_runs_for_a_lease() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    desk.take_events()
    desk.organisation.changed.clear()
    desk.later(5)
    assert desk.acquire() == Run(T0 + 5 + LEASE_MS)
    assert desk.organisation.changed == {"j1"}
    assert (desk.held(DAY), desk.available(MINUTE), desk.available(PER_MINUTE), desk.available(FLIGHT)) == (
        100, 500, 59, 1,
    )  # fmt: skip
    assert desk.inspect().holds[0].acquired is True
    (event,) = desk.take_events()
    assert (event.kind, event.reservation, event.occurred_at_ms, event.tokens_held) == ("acquired", "j1", T0 + 5, 100)


def test_a_redelivery_runs_again_without_a_second_debit() -> None:
    desk = running(Desk(LIMITS))
    before = [(each.limit, each.available) for each in desk.inspect().limits]
    assert desk.acquire() == Run(T0 + LEASE_MS)
    assert [(each.limit, each.available) for each in desk.inspect().limits] == before
    assert desk.take_events() == []
    assert desk.later(1_000).acquire() == Run(T0 + 1_000 + LEASE_MS)


def test_a_running_jobs_lease_ends_at_its_own_deadline_at_most() -> None:
    desk = Desk(LIMITS)
    desk.enqueue(job_deadline_ms=T0 + 1_000)
    assert desk.acquire() == Run(T0 + 1_000)


def test_a_job_waits_for_a_place_and_for_its_rates_and_takes_nothing_meanwhile() -> None:
    desk = Desk(LIMITS)
    desk.reserve("r1", outputs_bound=500)
    desk.reserve("r2", outputs_bound=-0, prompt_tokens=0)
    desk.enqueue("j1")
    before = desk.inspect()
    desk.take_events()
    assert desk.acquire() == Wait(6_000)  # 40 tokens are left of the 100 that it needs
    assert desk.inspect() == before
    desk.later(6_000)
    assert desk.acquire() == Wait(1_000)  # both places are taken
    desk.void("r2")
    assert isinstance(desk.acquire(), Run)
    assert [each.kind for each in desk.take_events()] == ["voided", "acquired"]


def test_the_longest_wait_decides() -> None:
    desk = Desk({**LIMITS, "acme:key:k1/tokens/minute": 120})
    desk.reserve("r1", outputs_bound=60)
    desk.enqueue("j1")
    assert desk.acquire() == Wait(50_000)


def test_a_job_above_a_lowered_cap_is_voided_and_told_never_again_and_again() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    desk.take_events()
    desk.define({**LIMITS, MINUTE: 99})
    assert desk.acquire() == Never(MINUTE)
    (event,) = desk.take_events()
    assert (event.kind, event.reason) == ("voided", f"its cap was lowered: {MINUTE}")
    assert desk.held(DAY) == 0
    desk.define(LIMITS)
    assert desk.acquire() == Never(MINUTE)
    assert desk.cancel("j1") == Duplicate(State.VOIDED)


def test_windows_and_the_key_are_not_checked_again() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    desk.define({**LIMITS, DAY: 1}, keys={})
    assert isinstance(desk.acquire(key_mac="rotated"), Run)


@pytest.mark.parametrize("end", ["void", "settle", "cancel", "expire", "published"])
def test_what_has_ended_is_gone(end: str) -> None:
    desk = Desk(LIMITS)
    desk.enqueue(job_deadline_ms=T0 + 1_000)
    if end == "expire":
        desk.later(1_000)
    else:
        getattr(desk, end)("j1")
    assert desk.acquire() == Gone()


def test_a_job_cancelled_while_it_runs_is_gone_for_others_and_told_at_its_touch() -> None:
    desk = running(Desk(LIMITS))
    desk.cancel("j1")
    assert desk.acquire() == Gone()
    assert desk.touch("j1") == Cancelled()


def test_a_cancelled_queued_job_is_voided_at_once() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    desk.take_events()
    assert desk.cancel("j1") == Done()
    assert (desk.held(DAY), desk.take_events()[0].reason) == (0, "cancelled")
    assert desk.cancel("j1") == Duplicate(State.VOIDED)


def test_a_silent_executors_job_returns_to_queued_with_its_hold_and_progress() -> None:
    desk = running(Desk(LIMITS))
    desk.touch("j1", completion=5)
    desk.organisation.changed.clear()
    assert desk.later(LEASE_MS).sweep() == Swept(1)
    assert desk.organisation.changed == {"j1"}
    assert desk.take_events() == []
    (hold,) = desk.inspect().holds
    assert (hold.acquired, hold.deadline_ms, hold.amounts) == (False, T0 + 600_000, ((DAY, 100),))
    assert desk.available(FLIGHT) == 2
    desk.now_ms = T0 + 600_000
    desk.sweep()
    (event,) = desk.take_events()
    assert (event.kind, event.usage.prompt, event.usage.completion) == ("expired", 60, 5)


def test_a_job_that_returned_takes_its_place_again_and_pays_its_rates_once() -> None:
    desk = running(Desk({**LIMITS, MINUTE: 60_000, FLIGHT: 1}))
    desk.later(LEASE_MS).sweep()
    desk.reserve("r1", prompt_tokens=0, outputs_bound=0)
    assert desk.acquire() == Wait(1_000)
    desk.settle("r1", 0, 0)
    level = desk.level(MINUTE)
    assert isinstance(desk.acquire(), Run)
    assert (desk.level(MINUTE), desk.available(FLIGHT)) == (level, 0)
    assert [each.kind for each in desk.take_events()] == ["posted", "acquired"]
    desk.settle("j1", 60, 0)
    assert desk.available(FLIGHT) == 1


def test_a_job_nobody_ran_is_charged_nothing_when_it_expires() -> None:
    desk = Desk(LIMITS)
    desk.enqueue(job_deadline_ms=T0 + 1_000)
    desk.touch("j1", prompt=5, completion=5)
    desk.take_events()
    desk.later(1_000).sweep()
    (event,) = desk.take_events()
    assert (event.kind, event.charge.tokens, event.charge.requests, event.amounts) == ("expired", 0, 0, ())
    assert event.usage.source is UsageSource.NONE
    assert desk.settle("j1").state is State.LATE
    assert desk.used(DAY) == 100


def test_a_job_that_runs_expires_at_its_own_deadline() -> None:
    desk = running(Desk(LIMITS), job_deadline_ms=T0 + 1_000)
    desk.later(1_000).sweep()
    assert desk.take_events()[0].charge.tokens == 60


def test_nobody_runs_a_cancelled_job_again_so_it_expires_with_its_lease() -> None:
    desk = running(Desk(LIMITS))
    desk.cancel("j1")
    desk.later(LEASE_MS).sweep()
    (event,) = desk.take_events()
    assert (event.kind, event.reason, desk.held(DAY)) == ("expired", "cancelled", 0)


def test_touch_renews_a_running_job_and_not_a_queued_one() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    assert desk.touch("j1") == Touched(T0 + 600_000)
    desk.acquire()
    assert desk.later(7).touch("j1") == Touched(T0 + 7 + LEASE_MS)
    desk.published("j1")
    assert desk.later(7).touch("j1") == Touched(T0 + 600_000)


def test_published_frees_the_place_and_keeps_the_budget_until_settled() -> None:
    desk = running(Desk(LIMITS))
    desk.organisation.changed.clear()
    assert desk.published() == Done()
    assert desk.organisation.changed == {"j1"}
    assert (desk.available(FLIGHT), desk.held(DAY)) == (2, 100)
    assert desk.acquire() == Gone()
    assert desk.settle("j1").state is State.POSTED
    assert desk.published() == Duplicate(State.POSTED)


def test_a_published_result_has_at_least_one_lease_to_be_settled() -> None:
    desk = running(Desk(LIMITS), job_deadline_ms=T0 + 1_000)
    desk.later(999).published()
    desk.later(LEASE_MS - 1).published()
    assert desk.sweep() == Swept(0)
    assert desk.later(1).sweep() == Swept(1)
    assert desk.take_events()[0].charge.tokens == 60


def test_a_published_job_is_not_voided_by_a_cancel() -> None:
    desk = running(Desk(LIMITS))
    desk.published()
    assert desk.cancel("j1") == Done()
    assert desk.held(DAY) == 100


def test_published_tells_that_the_job_ran_though_its_lease_had_passed() -> None:
    desk = Desk(LIMITS)
    desk.enqueue(job_deadline_ms=T0 + 1_000)
    desk.published()
    desk.take_events()
    desk.later(LEASE_MS).sweep()
    assert desk.take_events()[0].charge.tokens == 60


def test_an_unknown_job_of_this_epoch_or_past_its_deadline_is_gone() -> None:
    desk = Desk(LIMITS, epoch=3)
    assert desk.acquire(epoch=3) == Gone()
    assert desk.acquire(epoch=2, job_deadline_ms=T0) == desk.acquire(epoch=2, job_deadline_ms=0) == Gone()
    assert desk.acquire(epoch=4) == Wait(1_000)
    assert desk.organisation.reservations == {}


def test_a_job_of_an_older_epoch_is_held_again_past_any_cap_and_runs() -> None:
    desk = Desk({DAY: 50, MINUTE: 50, PER_MINUTE: 60, FLIGHT: 0, "acme:team:search/tokens/day": 9}, epoch=3)
    assert desk.acquire(epoch=2) == Run(T0 + LEASE_MS)
    assert (desk.held(DAY), desk.held("acme:team:search/tokens/day"), desk.held(FLIGHT)) == (100, 100, 1)
    assert (desk.level(MINUTE), desk.available(PER_MINUTE)) == (-50 * 60_000, 59)
    assert [each.kind for each in desk.take_events()] == ["acquired"]
    assert desk.acquire(epoch=2) == Run(T0 + LEASE_MS)
    desk.settle("j1", 60, 0)
    assert (desk.held(FLIGHT), desk.level(MINUTE), desk.used(DAY)) == (0, -10 * 60_000, 60)


def test_a_lost_job_that_cannot_be_sized_is_refused() -> None:
    desk = Desk(LIMITS, epoch=3)
    assert isinstance(desk.acquire(epoch=2, model="unknown"), Invalid)
    assert isinstance(desk.acquire(epoch=2, prompt_tokens=1, outputs_bound=1 << 31), Invalid)
    assert isinstance(desk.acquire(epoch=2, prompt_tokens=0, outputs_bound=1 << 31, key="gone"), Run)
    assert desk.organisation.reservations["j1"].team is None


def test_acquire_checks_its_arguments_and_clock() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    assert desk.acquire(caller_now_ms=T0 - 30_001) == desk.acquire(caller_now_ms=T0 + 30_001) == ClockSkew()
    assert isinstance(desk.acquire(lane=Lane.REALTIME), Invalid)
    assert isinstance(desk.acquire(body_bytes=-1), Invalid)
    assert isinstance(desk.acquire(fingerprint="f2"), Invalid)
    desk.reserve("r1")
    assert isinstance(desk.acquire("r1"), Invalid)
    assert isinstance(desk.acquire(caller_now_ms=T0 - 30_000), Run)
    assert isinstance(desk.acquire(caller_now_ms=T0 + 30_000), Run)


def test_with_a_marker_and_no_epoch_acquire_waits() -> None:
    desk = Desk(LIMITS, epoch=None)
    desk.ready(0)
    assert desk.acquire() == Wait(1_000)


def test_reassert_forces_the_hold_of_a_running_request_and_debits_no_rate() -> None:
    desk = Desk({**LIMITS, DAY: 50, FLIGHT: 0})
    assert desk.reassert("r1", prompt=3, completion=4) == Done()
    assert (desk.held(DAY), desk.held(FLIGHT), desk.available(MINUTE), desk.available(PER_MINUTE)) == (100, 1, 600, 60)
    assert desk.take_events() == []
    assert desk.reassert("r1") == Duplicate(State.OPEN)
    assert desk.touch("r1") == Touched(T0 + LEASE_MS)
    desk.later(LEASE_MS).sweep()
    assert desk.take_events()[0].usage.completion == 4
    assert desk.available(MINUTE) == 600
    desk.reassert("r2", prompt_tokens=None, prompt=3)
    desk.reassert("r3", prompt=1 << 31)
    desk.later(LEASE_MS).sweep()
    assert [each.usage.prompt for each in desk.take_events()] == [3, 1 << 31]


def test_reassert_of_a_queued_job_that_runs_makes_it_running() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    desk.later(10)
    assert desk.reassert("j1", lane=Lane.QUEUE, acquired=False) == Duplicate(State.OPEN)
    assert desk.reassert("j1", lane=Lane.QUEUE, completion=9) == Done()
    assert (desk.held(DAY), desk.available(FLIGHT), desk.available(MINUTE)) == (100, 1, 600)
    assert desk.acquire() == Run(T0 + 10 + LEASE_MS)
    assert desk.organisation.reservations["j1"].touched_completion == 9
    assert desk.reassert("j1", lane=Lane.QUEUE) == Duplicate(State.OPEN)


def test_reassert_of_a_job_that_waits_makes_it_wait_again() -> None:
    desk = Desk(LIMITS)
    assert desk.reassert("j1", lane=Lane.QUEUE, acquired=False) == Done()
    (hold,) = desk.inspect().holds
    assert (hold.acquired, hold.deadline_ms, hold.amounts) == (False, T0 + 600_000, ((DAY, 100),))
    assert isinstance(desk.acquire(), Run)
    assert desk.available(MINUTE) == 500


def test_reassert_of_a_job_that_waits_keeps_what_it_had_done() -> None:
    desk = Desk(LIMITS)
    desk.reassert("j1", lane=Lane.QUEUE, acquired=False, prompt=3, completion=7)
    desk.acquire()
    desk.later(LEASE_MS).sweep()
    desk.later(600_000).sweep()
    assert desk.take_events()[-1].usage.completion == 7


def test_reassert_of_what_has_ended_or_was_published_is_a_duplicate() -> None:
    desk = running(Desk(LIMITS))
    desk.published()
    assert desk.reassert("j1", lane=Lane.QUEUE) == Duplicate(State.OPEN)
    desk.settle("j1")
    assert desk.reassert("j1", lane=Lane.QUEUE) == Duplicate(State.POSTED)
    desk.reserve("r1")
    desk.void("r1")
    assert desk.reassert("r1") == Duplicate(State.VOIDED)


def test_reassert_refuses_a_record_not_renewed_for_one_lease() -> None:
    desk = Desk(LIMITS)
    assert isinstance(desk.reassert("r1", renewed_at_ms=T0 - LEASE_MS), Refused)
    assert isinstance(desk.reassert("r1", job_deadline_ms=T0), Refused)
    assert desk.reassert("r1", renewed_at_ms=T0 - LEASE_MS + 1, job_deadline_ms=T0 + 1) == Done()
    desk.enqueue("j1")
    assert isinstance(desk.reassert("j1", lane=Lane.QUEUE, renewed_at_ms=T0 - LEASE_MS), Refused)
    assert desk.reassert("j1", lane=Lane.QUEUE, renewed_at_ms=T0 - LEASE_MS + 1) == Done()


@pytest.mark.parametrize(
    "fields",
    [{"body_bytes": -1}, {"prompt": -1}, {"completion": -1}, {"prompt": 1, "completion": 1 << 31}, {"model": "unknown"},
     {"prompt_tokens": 1, "outputs_bound": 1 << 31}],
)  # fmt: skip
def test_reassert_refuses_what_is_absurd(fields: dict[str, Any]) -> None:
    desk = Desk(LIMITS)
    assert isinstance(desk.reassert("r1", **fields), Refused)
    assert desk.organisation.reservations == {}


def test_void_of_a_running_job_returns_everything() -> None:
    desk = running(Desk(LIMITS))
    desk.void("j1")
    assert (desk.held(DAY), desk.available(MINUTE), desk.available(PER_MINUTE), desk.available(FLIGHT)) == (
        0,
        600,
        60,
        2,
    )
    assert desk.later(REMEMBER_MS).acquire() == Gone()
