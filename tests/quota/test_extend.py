"""Extend raises a hold that was an estimate: of every limit that it holds, or of none."""

from __future__ import annotations

import pytest

from penstock.quota import Denied, Duplicate, Extended, Invalid, Key, Refusal, State
from tests.quota.desk import LEASE_MS, MAC, PRICE, T0, Desk

DAY, MINUTE, COST = "acme/tokens/day", "acme/tokens/minute", "acme/cost/day"
LIMITS = {DAY: 1_000, MINUTE: 600, COST: 10**7, "acme/requests/day": 5, "acme/requests/minute": 60,
          "acme/concurrency/concurrent": 1}  # fmt: skip


def cost_of(completion: int) -> int:
    return (60 * PRICE.prompt_picos + completion * PRICE.completion_picos + PRICE.request_picos) // 1_000


def test_extend_holds_the_difference_of_tokens_and_cost_and_no_further_request() -> None:
    desk = Desk(LIMITS)
    desk.reserve()
    desk.organisation.changed.clear()
    assert desk.extend(total_tokens=250) == Extended(250)
    assert (desk.held(DAY), desk.held(COST), desk.held("acme/requests/day")) == (250, cost_of(190), 1)
    assert (desk.level(MINUTE), desk.available("acme/requests/minute")) == (350 * 60_000, 59)
    assert desk.organisation.changed == {"r1"}
    desk.settle(completion=10)
    assert (desk.used(DAY), desk.held(DAY), desk.held(COST), desk.available(MINUTE)) == (70, 0, 0, 530)
    assert desk.take_events()[0].tokens_held == 250


def test_a_smaller_or_equal_total_changes_nothing() -> None:
    desk = Desk(LIMITS)
    desk.reserve()
    before = desk.inspect()
    desk.organisation.changed.clear()
    assert desk.extend(total_tokens=100) == desk.extend(total_tokens=0) == Extended(100)
    assert desk.inspect() == before
    assert desk.organisation.changed == set()


def test_one_limit_that_refuses_leaves_all_as_they_were() -> None:
    desk = Desk({**LIMITS, COST: 10**12})
    desk.reserve()
    before = desk.inspect()
    answer = desk.extend(total_tokens=601)
    assert isinstance(answer, Denied)
    assert (answer.limit, answer.refusal, answer.amount, answer.available) == (MINUTE, Refusal.NEVER, 501, 500)
    assert desk.inspect() == before
    assert [each.limit for each in answer.readings] == sorted(set(LIMITS) - {"acme/concurrency/concurrent"})


def test_extend_says_why_and_how_long() -> None:
    desk = Desk({DAY: 300, MINUTE: 600})
    desk.reserve("r1")
    desk.reserve("r2")
    held = desk.extend(total_tokens=201)
    assert (held.limit, held.refusal, held.retry_after_ms, held.amount) == (DAY, Refusal.HELD, 1_000, 101)
    assert desk.extend(total_tokens=200) == Extended(200)
    desk.settle("r2")
    used = desk.extend(total_tokens=201)
    assert (used.refusal, used.retry_after_ms) == (Refusal.USED_UP, 86_400_000 - T0 % 86_400_000)
    slow = Desk({MINUTE: 600})
    slow.reserve("r1")
    slow.reserve("r2", outputs_bound=400)
    denied = slow.extend(total_tokens=141)
    assert (denied.refusal, denied.available, denied.retry_after_ms) == (Refusal.USED_UP, 40, 100)


def test_a_metric_that_does_not_grow_is_not_asked() -> None:
    desk = Desk(LIMITS)
    desk.reserve()
    desk.define({**LIMITS, "acme/requests/day": 0, "acme/requests/minute": 0, "acme/concurrency/concurrent": 0})
    assert desk.extend(total_tokens=101) == Extended(101)


def test_extend_holds_the_limits_of_the_reserve_not_those_defined_since() -> None:
    desk = Desk({DAY: 1_000})
    desk.reserve()
    desk.define({DAY: 1_000, "acme/tokens/hour": 1})
    assert desk.extend(total_tokens=200) == Extended(200)
    assert desk.held("acme/tokens/hour") == 0


def test_a_limit_that_left_is_held_on_and_not_asked() -> None:
    desk = Desk({DAY: 150, MINUTE: 150})
    desk.reserve(job_deadline_ms=T0 + 10**6)
    desk.later(20_000).define({})
    assert desk.extend(total_tokens=400) == Extended(400)
    assert (desk.held(DAY), desk.level(MINUTE)) == (400, -200 * 60_000)
    desk.settle(completion=0)
    assert (desk.held(DAY), desk.used(DAY), desk.level(MINUTE)) == (0, 60, 140 * 60_000)


def test_a_queued_job_is_extended_in_its_windows_and_pays_the_rate_when_it_runs() -> None:
    desk = Desk(LIMITS)
    desk.enqueue()
    assert desk.extend("j1", total_tokens=200) == Extended(200)
    assert (desk.held(DAY), desk.available(MINUTE)) == (200, 600)
    desk.acquire()
    assert desk.available(MINUTE) == 400


def test_the_keys_bound_on_cost_holds_for_extensions() -> None:
    key = Key(id="k1", macs=((MAC, 0),), cost_nanos_max=cost_of(50))
    desk = Desk(LIMITS, keys={"k1": key})
    desk.reserve()
    assert isinstance(desk.extend(total_tokens=111), Invalid)
    assert desk.extend(total_tokens=110) == Extended(110)
    desk.define(LIMITS, keys={})
    assert desk.extend(total_tokens=111) == Extended(111)


@pytest.mark.parametrize("total_tokens", [-1, (1 << 31) + 1])
def test_totals_out_of_bounds_are_refused(total_tokens: int) -> None:
    desk = Desk()
    desk.reserve()
    assert isinstance(desk.extend(total_tokens=total_tokens), Invalid)
    assert desk.extend(total_tokens=1 << 31) == Extended(1 << 31)


def test_what_has_ended_cannot_be_extended() -> None:
    desk = Desk(LIMITS)
    desk.reserve()
    desk.later(LEASE_MS)
    assert desk.extend(total_tokens=200) == Duplicate(State.EXPIRED)
    desk.settle()
    assert desk.extend(total_tokens=200) == Duplicate(State.LATE)
