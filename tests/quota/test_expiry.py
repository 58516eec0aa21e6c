"""Leases: who still works keeps its hold, who went silent loses it and pays the least it can have used."""

from __future__ import annotations

import pytest

from penstock.quota import (
    Amount,
    Cancelled,
    Charge,
    Duplicate,
    Invalid,
    State,
    Swept,
    Touched,
    Unknown,
    Usage,
    UsageSource,
)
from penstock.quota.operations import Done, NotReady
from tests.quota.desk import LEASE_MS, REMEMBER_MS, T0, Desk

LIMITS = {"acme/tokens/day": 10_000, "acme/requests/day": 100, "acme/cost/day": 10**9, "acme/tokens/minute": 6_000,
          "acme/requests/minute": 60, "acme/concurrency/concurrent": 20}  # fmt: skip
DAY = T0 // 86_400_000


def test_a_lease_passes_at_its_deadline_and_not_a_millisecond_sooner() -> None:
    desk = Desk(LIMITS)
    desk.reserve()
    assert desk.later(LEASE_MS - 1).sweep() == Swept(0)
    assert desk.held("acme/tokens/day") == 100
    assert desk.later(1).sweep() == Swept(1)
    assert (desk.held("acme/tokens/day"), desk.held("acme/concurrency/concurrent")) == (0, 0)
    assert desk.settle().state is State.LATE


def test_touch_renews_the_lease_up_to_the_requests_own_deadline() -> None:
    desk = Desk(LIMITS)
    desk.reserve(job_deadline_ms=T0 + 100_000)
    assert desk.later(30_000).touch() == Touched(T0 + 90_000)
    assert desk.later(30_000).touch() == Touched(T0 + 100_000)
    assert desk.later(39_999).touch() == Touched(T0 + 100_000)
    assert desk.later(1).touch() == Duplicate(State.EXPIRED)


def test_an_overdue_reservation_expires_in_the_first_call_that_names_it() -> None:
    for name in ("touch", "settle", "void", "cancel", "extend", "published"):
        desk = Desk(LIMITS)
        for number in range(6):
            desk.reserve(f"r{number}", prompt_tokens=0, outputs_bound=0)
        desk.later(LEASE_MS)
        answer = getattr(desk, name)("r5")
        states = [desk.organisation.reservations[f"r{number}"].state for number in range(6)]
        assert states[:5] == [State.EXPIRED] * 4 + [State.OPEN]  # four inline, and its own
        assert states[5] is (State.LATE if name == "settle" else State.EXPIRED)
        assert name == "settle" or answer == Duplicate(State.EXPIRED)
    assert desk.reserve("r5") == Duplicate(State.EXPIRED)


def test_expiry_charges_the_lower_bound_at_the_cheaper_price_and_one_request() -> None:
    desk = Desk(LIMITS)
    desk.reserve(prompt_tokens=None, outputs_bound=4_000)
    desk.touch(prompt=10, completion=20)
    desk.touch(prompt=5, completion=30)
    desk.touch(prompt=12, completion=3)
    assert desk.organisation.changed == {"r1"}
    desk.later(LEASE_MS).sweep()
    (event,) = desk.take_events()
    cost = 12 * 1_000 + 30 * 4_000 + 5_000
    assert (event.kind, event.usage, event.charge) == (
        "expired",
        Usage(12, 30, 0, UsageSource.LOCAL),
        Charge(42, 1, cost),
    )
    assert event.amounts == (
        Amount("acme/cost/day", DAY, cost), Amount("acme/requests/day", DAY, 1), Amount("acme/tokens/day", DAY, 42),
    )  # fmt: skip
    assert (event.tokens_held, event.reason, event.occurred_at_ms) == (4_510, "deadline", T0 + LEASE_MS)


def test_a_prompt_known_exactly_is_charged_even_if_no_touch_told() -> None:
    desk = Desk(LIMITS)
    desk.reserve(prompt_tokens=60)
    desk.touch(prompt=10)
    desk.later(LEASE_MS).sweep()
    assert desk.take_events()[0].charge.tokens == 60
    desk.reserve("r2", prompt_tokens=60)
    desk.touch("r2", prompt=70)
    desk.later(LEASE_MS).sweep()
    assert desk.take_events()[0].charge.tokens == 70


def test_a_request_nobody_heard_of_again_costs_one_request() -> None:
    desk = Desk(LIMITS)
    desk.reserve(prompt_tokens=None)
    desk.later(LEASE_MS).sweep()
    (event,) = desk.take_events()
    assert (event.usage, event.charge) == (Usage(0, 0, 0, UsageSource.NONE), Charge(0, 1, 5_000))


def test_a_rate_is_not_returned_what_a_silent_request_was_seen_to_use() -> None:
    desk = Desk({"acme/tokens/minute": 60_000, "acme/tokens/strict_rate-60000": 60_000})
    desk.reserve(prompt_tokens=0, outputs_bound=50_000, job_deadline_ms=T0 + 1)
    desk.touch(completion=20_000)
    desk.later(1).sweep()
    assert desk.level("acme/tokens/minute") == 40_000 * 60_000 + 60_000
    assert desk.available("acme/tokens/strict_rate-60000") == 10_001


def test_progress_that_adds_up_to_too_much_is_charged_at_the_bound() -> None:
    desk = Desk({"acme/tokens/day": 1 << 52})
    desk.reserve()
    desk.touch(prompt=1 << 31)
    desk.touch(completion=1 << 31)
    desk.later(LEASE_MS).sweep()
    assert desk.used("acme/tokens/day") == 1 << 31


@pytest.mark.parametrize(("prompt", "completion"), [(-1, 0), (0, -1), (1, 1 << 31), ((1 << 31) + 1, 0)])
def test_absurd_progress_is_refused(prompt: int, completion: int) -> None:
    desk = Desk(LIMITS)
    desk.reserve()
    desk.later(1)
    assert isinstance(desk.touch(prompt=prompt, completion=completion), Invalid)
    assert desk.organisation.reservations["r1"].due_at_ms == T0 + LEASE_MS


def test_a_call_sweeps_four_and_a_sweep_as_many_as_it_is_told() -> None:
    desk = Desk(LIMITS)
    for number in range(12):
        desk.reserve(f"r{number:02}", prompt_tokens=0, outputs_bound=0)
        desk.later(1)
    desk.later(LEASE_MS)
    desk.touch("unknown")
    assert sorted(each.reservation for each in desk.take_events()) == ["r00", "r01", "r02", "r03"]
    assert desk.sweep(0) == desk.sweep(-1) == Swept(0)
    assert desk.sweep(3) == Swept(3)
    assert [each.reservation for each in desk.take_events()] == ["r04", "r05", "r06"]
    assert desk.sweep() == Swept(5)
    assert desk.sweep() == Swept(0)


def test_what_is_due_together_goes_by_id() -> None:
    desk = Desk(LIMITS)
    for each in ("b", "a", "c"):
        desk.reserve(each)
    desk.later(LEASE_MS).sweep(2)
    assert [each.reservation for each in desk.take_events()] == ["a", "b"]


def test_renewed_leases_cost_the_sweep_nothing() -> None:
    desk = Desk(LIMITS)
    desk.reserve("a")
    for _ in range(10):
        desk.later(1_000).touch("a")
    desk.reserve("b")
    desk.later(LEASE_MS - 1)
    desk.touch("a")
    assert desk.later(1).sweep(1) == Swept(1)
    assert desk.take_events()[0].reservation == "b"


@pytest.mark.parametrize("end", ["settle", "void", "expire"])
def test_an_ended_reservation_is_remembered_15_minutes_and_until_its_own_deadline(end: str) -> None:
    for deadline_ms, remembered_ms in ((T0 + 1_000, REMEMBER_MS), (T0 + REMEMBER_MS + 5_000, REMEMBER_MS + 5_000)):
        desk = Desk(LIMITS)
        desk.enqueue("r1", job_deadline_ms=deadline_ms)
        if end == "expire":
            desk.later(deadline_ms - T0).sweep()
            remembered_ms = deadline_ms - T0 + REMEMBER_MS
        else:
            getattr(desk, end)()
        desk.take_events()
        desk.organisation.changed.clear()
        desk.now_ms = T0 + remembered_ms - 1
        assert desk.sweep() == Swept(0)
        assert isinstance(desk.cancel(), Duplicate)
        assert desk.organisation.changed == set()
        assert desk.later(1).sweep() == Swept(0)
        assert desk.organisation.changed == {"r1"}
        assert desk.cancel() == Unknown()


def test_each_call_forgets_four_beside_those_it_expires() -> None:
    desk = Desk(LIMITS)
    for number in range(6):
        desk.void(f"v{number}")
    desk.now_ms += REMEMBER_MS - LEASE_MS
    for number in range(6):
        desk.reserve(f"r{number}", prompt_tokens=0, outputs_bound=0, job_deadline_ms=desk.now_ms + 10**6)
    desk.later(LEASE_MS).touch("unknown")
    assert sorted(desk.organisation.reservations) == ["r0", "r1", "r2", "r3", "r4", "r5", "v4", "v5"]
    assert len(desk.take_events()) == 4
    desk.sweep(1)
    assert sorted(desk.organisation.reservations) == ["r0", "r1", "r2", "r3", "r4", "r5", "v5"]
    assert len(desk.take_events()) == 1
    desk.sweep()
    assert len(desk.organisation.reservations) == 6


def test_a_late_settle_is_remembered_anew() -> None:
    desk = Desk(LIMITS)
    desk.reserve(job_deadline_ms=T0 + 1_000)
    desk.later(1_000).sweep()
    desk.later(REMEMBER_MS - 1).settle()
    desk.later(REMEMBER_MS - 1).sweep()
    assert desk.settle() == Duplicate(State.LATE)
    desk.later(1).sweep()
    assert desk.settle() == Unknown()


def test_a_running_request_is_told_of_its_cancel_at_every_touch_and_not_renewed() -> None:
    desk = Desk(LIMITS)
    desk.reserve()
    desk.organisation.changed.clear()
    assert desk.cancel() == Done()
    assert desk.organisation.changed == {"r1"}
    assert desk.later(10_000).touch(completion=7) == Cancelled()
    assert desk.later(10_000).touch() == Cancelled()
    assert desk.cancel() == Done()
    assert desk.held("acme/tokens/day") == 100
    desk.later(LEASE_MS - 20_000).sweep()
    (event,) = desk.take_events()
    assert (event.reason, event.usage.completion) == ("cancelled", 7)


def test_a_cancelled_request_can_still_be_settled() -> None:
    desk = Desk(LIMITS)
    desk.reserve()
    desk.cancel()
    assert desk.settle().state is State.POSTED
    assert desk.cancel() == Duplicate(State.POSTED)
    assert desk.touch() == Duplicate(State.POSTED)


def test_without_a_marker_every_operation_but_define_and_ready_is_refused() -> None:
    desk = Desk(LIMITS, epoch=None)
    calls = (desk.reserve, desk.acquire, desk.settle, desk.void, desk.touch, desk.extend, desk.cancel, desk.published,
             desk.sweep, desk.reassert, desk.post)  # fmt: skip
    for call in calls:
        assert call() == NotReady()
    assert desk.organisation.reservations == {}
    assert desk.organisation.clock_ms == T0
    desk.ready(0)
    for call in calls[2:-2]:
        assert call() != NotReady()
    assert desk.reassert("r8") == Done()
    assert desk.post("r9").state is State.POSTED
