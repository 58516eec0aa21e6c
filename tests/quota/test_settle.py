"""Settle posts what was used, once; void undoes; a late settle only adds."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.quota import (
    Amount,
    Charge,
    Duplicate,
    Event,
    EventKind,
    Invalid,
    Model,
    Price,
    Settled,
    State,
    Unknown,
    Usage,
    UsageSource,
)
from penstock.quota.operations import Done
from tests.quota.desk import LEASE_MS, PRICE, REMEMBER_MS, T0, Desk

DAY = T0 // 86_400_000
ALL = {"acme/tokens/day": 1_000, "acme/requests/day": 10, "acme/cost/day": 10_000_000, "acme/tokens/minute": 600,
       "acme/requests/minute": 60, "acme/tokens/strict_rate-60000": 600, "acme/concurrency/concurrent": 3}  # fmt: skip
NO_USAGE = Usage(0, 0, 0, UsageSource.NONE)


def event(desk: Desk) -> Event:
    (only,) = desk.take_events()
    return only


def test_settle_frees_the_hold_and_posts_what_was_used() -> None:
    desk = Desk(ALL)
    desk.reserve()
    cost = 30 * 2_000 + 30 * 1_000 + 20 * 4_000 + 5_000
    assert desk.settle(prompt=60, completion=20, cached=30) == Settled(State.POSTED, cost)
    assert [(each.limit, each.used, each.held, each.available) for each in desk.inspect().limits] == [
        ("acme/concurrency/concurrent", 0, 0, 3),
        ("acme/cost/day", cost, 0, 10_000_000 - cost),
        ("acme/requests/day", 1, 0, 9),
        ("acme/requests/minute", 0, 0, 59),
        ("acme/tokens/day", 80, 0, 920),
        ("acme/tokens/minute", 0, 0, 520),
        ("acme/tokens/strict_rate-60000", 0, 0, 500),
    ]
    assert event(desk) == Event(
        kind=EventKind.POSTED, reservation="r1", organisation="acme", team="search", key="k1", model="m",
        lane="realtime", occurred_at_ms=T0, usage=Usage(60, 20, 30), charge=Charge(80, 1, cost),
        amounts=(Amount("acme/cost/day", DAY, cost), Amount("acme/requests/day", DAY, 1),
                 Amount("acme/tokens/day", DAY, 80)),
        price=PRICE, tokens_held=100, job_deadline_ms=T0 + 600_000,
    )  # fmt: skip


def test_a_settle_above_the_hold_is_posted_in_full() -> None:
    desk = Desk(ALL)
    desk.reserve()
    desk.settle(prompt=60, completion=940)
    assert desk.used("acme/tokens/day") == 1_000
    assert desk.level("acme/tokens/minute") == desk.level("acme/tokens/strict_rate-60000") == -400 * 60_000
    assert desk.available("acme/tokens/minute") == 0
    assert desk.reserve("r2").retry_after_ms == (desk.now_ms // 86_400_000 + 1) * 86_400_000 - desk.now_ms


def test_settle_posts_to_the_window_of_its_own_moment() -> None:
    desk = Desk({"acme/tokens/hour": 1_000})
    desk.reserve(job_deadline_ms=T0 + 100_000_000)
    for _ in range(60):
        desk.later(59_999).touch()
    desk.settle()
    assert event(desk).amounts == (Amount("acme/tokens/hour", T0 // 3_600_000 + 1, 100),)
    assert (desk.used("acme/tokens/hour"), desk.held("acme/tokens/hour")) == (100, 0)


def test_a_settle_at_the_first_moment_of_a_window_is_posted_to_it() -> None:
    desk = Desk({"acme/tokens/hour": 1_000})
    desk.later(3_600_000 - T0 % 3_600_000 - 1)
    desk.reserve("r1", job_deadline_ms=desk.now_ms + LEASE_MS)
    desk.reserve("r2", job_deadline_ms=desk.now_ms + LEASE_MS)
    desk.settle("r1")
    desk.later(1).settle("r2")
    assert [each.amounts[0].window - T0 // 3_600_000 for each in desk.take_events()] == [0, 1]
    assert desk.used("acme/tokens/hour") == 100


def test_what_a_call_changes_is_named_for_the_store() -> None:
    desk = Desk(ALL)
    for name in ("settle", "void", "touch"):
        desk.reserve(name)
        desk.organisation.changed.clear()
        getattr(desk, name)(name)
        assert desk.organisation.changed == {name}
    desk.later(LEASE_MS).sweep()
    desk.organisation.changed.clear()
    desk.settle("touch")
    assert desk.organisation.changed == {"touch"}


def test_a_passed_window_is_used_0_and_keeps_its_holds() -> None:
    desk = Desk({"acme/tokens/day": 1_000})
    desk.reserve("r1")
    desk.settle("r1")
    desk.enqueue("j1", job_deadline_ms=T0 + 10**9)
    desk.later(86_400_000)
    standing = desk.standing("acme/tokens/day")
    assert (standing.used, standing.held, standing.window, standing.available) == (0, 100, DAY + 1, 900)


def test_a_refund_never_lifts_a_bucket_above_full() -> None:
    desk = Desk({"acme/tokens/minute": 600})
    desk.reserve()
    desk.later(10_000).settle(completion=0)
    assert desk.level("acme/tokens/minute") == 600 * 60_000


def test_a_refund_is_clamped_to_the_full_of_the_present_cap() -> None:
    desk = Desk({"acme/tokens/minute": 600})
    desk.reserve(outputs_bound=540)
    desk.define({"acme/tokens/minute": 50})
    desk.settle(prompt=0, completion=0)
    assert desk.level("acme/tokens/minute") == 50 * 60_000


def test_a_settle_that_used_nothing_still_counts_a_request() -> None:
    desk = Desk(ALL)
    desk.reserve()
    assert desk.settle(prompt=0, completion=0) == Settled(State.POSTED, 5_000)
    assert [each.limit for each in event(desk).amounts] == ["acme/cost/day", "acme/requests/day"]


def test_settle_twice_posts_once() -> None:
    desk = Desk(ALL)
    desk.reserve()
    desk.settle()
    before = desk.inspect()
    assert desk.settle(completion=7) == Duplicate(State.POSTED)
    assert desk.inspect() == before
    assert len(desk.take_events()) == 1


def test_of_an_unknown_id_settle_touch_extend_cancel_and_published_say_so() -> None:
    desk = Desk(ALL)
    for answer in (desk.settle(), desk.touch(), desk.extend(total_tokens=1), desk.cancel(), desk.published()):
        assert answer == Unknown()


@pytest.mark.parametrize(
    ("prompt", "completion", "cached"),
    [(-1, 5, 0), (5, -1, 0), (5, 5, -1), (5, 5, 6), (1 << 31, 1, 0), (0, (1 << 31) + 1, 0)],
)
def test_absurd_usage_is_refused_and_changes_nothing(prompt: int, completion: int, cached: int) -> None:
    desk = Desk(ALL)
    desk.reserve()
    before = desk.inspect()
    assert isinstance(desk.settle(prompt=prompt, completion=completion, cached=cached), Invalid)
    assert isinstance(desk.post("r2", Usage(prompt, completion, cached)), Invalid)
    assert desk.inspect() == before


def test_usage_at_its_bound_is_posted() -> None:
    desk = Desk({"acme/tokens/day": 1 << 52})
    desk.reserve()
    assert desk.settle(prompt=5, cached=5, completion=(1 << 31) - 5).state is State.POSTED
    assert desk.used("acme/tokens/day") == 1 << 31


def test_prices_are_fixed_when_reserved() -> None:
    desk = Desk(ALL)
    desk.reserve()
    desk.define(ALL, models={})
    assert desk.settle().cost_nanos == 60 * 2_000 + 40 * 4_000 + 5_000


def test_void_charges_nothing_and_returns_even_strict_rates() -> None:
    desk = Desk(ALL)
    before = desk.inspect()
    desk.reserve()
    assert desk.void(reason="refused upstream") == Done()
    assert desk.inspect() == before
    only = event(desk)
    assert (only.kind, only.usage, only.charge, only.amounts) == ("voided", NO_USAGE, Charge(), ())
    assert (only.tokens_held, only.reason, only.price) == (100, "refused upstream", PRICE)
    assert desk.void() == Duplicate(State.VOIDED)
    assert desk.settle() == Duplicate(State.VOIDED)


def test_a_reserve_that_arrives_after_its_void_finds_it() -> None:
    desk = Desk(ALL)
    assert desk.void() == Done()
    assert desk.take_events() == []
    assert desk.organisation.changed == {"r1"}
    assert desk.reserve() == Duplicate(State.VOIDED)
    assert desk.held("acme/tokens/day") == 0
    desk.later(REMEMBER_MS - 1).sweep()
    assert desk.reserve(job_deadline_ms=T0 + 10**9) == Duplicate(State.VOIDED)
    desk.later(1).sweep()
    assert desk.reserve(job_deadline_ms=T0 + 10**9).tokens_held == 100


def expired(desk: Desk, **fields: Any) -> None:
    desk.reserve(**fields)
    desk.touch(prompt=10, completion=20)
    desk.later(LEASE_MS).sweep()


def test_a_late_settle_adds_what_the_expiry_did_not_charge() -> None:
    desk = Desk(ALL)
    expired(desk, prompt_tokens=None, body_bytes=50)
    charged = event(desk)
    assert charged.charge == Charge(30, 1, 10 * 1_000 + 20 * 4_000 + 5_000)
    cost = 60 * 2_000 + 40 * 4_000 + 5_000
    assert desk.settle() == Settled(State.LATE, cost - charged.charge.cost_nanos)
    late = event(desk)
    assert (late.kind, late.usage, late.tokens_held) == ("late", Usage(50, 20, 0), 0)
    assert late.charge == Charge(70, 0, cost - charged.charge.cost_nanos)
    assert [(each.limit, each.amount) for each in late.amounts] == [
        ("acme/cost/day", cost - charged.charge.cost_nanos), ("acme/tokens/day", 70),
    ]  # fmt: skip
    assert desk.used("acme/requests/day") == 1
    assert desk.used("acme/cost/day") == cost
    assert desk.settle() == Duplicate(State.LATE)


def test_a_late_settle_never_gives_back() -> None:
    desk = Desk(ALL)
    expired(desk, prompt_tokens=None)
    desk.take_events()
    assert desk.settle(prompt=5, completion=5) == Settled(State.LATE, 0)
    late = event(desk)
    assert (late.charge, late.usage, late.amounts) == (Charge(), Usage(0, 0, 0), ())
    assert desk.used("acme/tokens/day") == 30


def test_a_late_settle_is_debited_from_rates_beyond_what_they_already_paid() -> None:
    desk = Desk({"acme/tokens/minute": 600, "acme/tokens/strict_rate-60000": 600})
    expired(desk, job_deadline_ms=T0 + LEASE_MS)
    assert desk.level("acme/tokens/minute") == 600 * 60_000
    desk.settle(prompt=60, completion=40)
    assert desk.level("acme/tokens/minute") == 580 * 60_000  # 60 were known and 20 touched: 20 more
    assert desk.available("acme/tokens/strict_rate-60000") == 600  # the whole hold was never returned
    again = Desk({"acme/tokens/minute": 600, "acme/tokens/strict_rate-60000": 600})
    expired(again)
    again.settle(prompt=60, completion=90)
    assert again.level("acme/tokens/minute") == 530 * 60_000
    assert again.level("acme/tokens/strict_rate-60000") == 550 * 60_000


def test_a_strict_rate_pays_once_for_what_was_touched_above_the_hold() -> None:
    desk = Desk({"acme/tokens/strict_rate-60000": 60_000})
    desk.reserve()
    desk.touch(prompt=60, completion=100)
    desk.later(LEASE_MS).sweep()
    assert desk.level("acme/tokens/strict_rate-60000") == (60_000 - 60) * 60_000
    desk.settle(prompt=60, completion=110)
    assert desk.level("acme/tokens/strict_rate-60000") == (60_000 - 70) * 60_000


def test_debt_has_a_floor_and_what_was_forgiven_is_recorded() -> None:
    limit = "acme/tokens/rate-2097152"
    desk = Desk({limit: 1_000})
    desk.reserve()
    desk.settle(prompt=1 << 31, completion=0)
    assert desk.level(limit) == 1_000 * (1 << 21) - (1 << 52)
    desk.reserve("r2", key="k2")
    counter = desk.organisation.counters[limit]
    assert counter.forgiven == 0
    for number in range(2):
        desk.enqueue(f"j{number}")
        desk.organisation.reservations[f"j{number}"].rates = (limit,)
        desk.settle(f"j{number}", prompt=1 << 31, completion=0)
        assert counter.level == -(1 << 52)
    assert counter.forgiven == 1 << 52


def test_a_limit_that_left_still_gets_back_what_was_held() -> None:
    desk = Desk({"acme/tokens/day": 1_000})
    desk.reserve()
    desk.define({})
    assert (desk.held("acme/tokens/day"), desk.standing("acme/tokens/day").cap) == (100, 0)
    desk.settle()
    assert (desk.used("acme/tokens/day"), desk.held("acme/tokens/day")) == (100, 0)


def test_post_charges_an_unknown_id_to_windows_only_past_any_cap_and_once() -> None:
    desk = Desk({**ALL, "acme/tokens/day": 1})
    cost = 60 * 2_000 + 40 * 4_000 + 5_000
    assert desk.post() == Settled(State.POSTED, cost)
    only = event(desk)
    assert (only.kind, only.charge, only.tokens_held) == ("posted", Charge(100, 1, cost), 0)
    assert (only.usage, only.team, only.price) == (Usage(60, 40), "search", PRICE)
    assert [each.amount for each in only.amounts] == [cost, 1, 100]
    assert (desk.used("acme/tokens/day"), desk.held("acme/tokens/day")) == (100, 0)
    assert (desk.available("acme/tokens/minute"), desk.available("acme/concurrency/concurrent")) == (600, 3)
    assert desk.post() == desk.settle() == Duplicate(State.POSTED)


def test_post_of_an_id_that_expired_long_ago_adds_what_was_not_charged() -> None:
    desk = Desk(ALL)
    expired(desk)
    before = event(desk)
    assert (before.charge.tokens, before.charge.requests) == (80, 1)
    desk.later(REMEMBER_MS).sweep()
    desk.define(ALL, models={"m": Model(name="m", context=9)})
    cost = 60 * 2_000 + 40 * 4_000 + 5_000
    added = cost - before.charge.cost_nanos
    assert desk.post(usage=Usage(60, 40, 0), before=before) == Settled(State.LATE, added)
    late = event(desk)
    assert (late.kind, late.charge, late.usage) == ("late", Charge(20, 0, added), Usage(0, 20, 0))
    assert desk.used("acme/tokens/day") == 100


def test_post_after_an_expiry_that_charged_nothing_is_a_first_posting() -> None:
    desk = Desk(ALL)
    desk.enqueue("r1", job_deadline_ms=T0 + 1_000)
    desk.take_events()
    desk.later(1_000).sweep()
    before = event(desk)
    assert before.charge == Charge()
    desk.later(REMEMBER_MS).sweep()
    assert desk.post(before=before).state is State.POSTED
    assert event(desk).kind == "posted"


def test_post_of_a_known_id_is_settle() -> None:
    desk = Desk(ALL)
    desk.reserve()
    assert desk.post().state is State.POSTED
    assert desk.held("acme/tokens/day") == 0
    expired(desk, reservation="r2")
    assert desk.post("r2").state is State.LATE


def test_post_needs_a_defined_model_and_sound_arguments() -> None:
    desk = Desk(ALL)
    assert isinstance(desk.post(model="unknown"), Invalid)
    assert isinstance(desk.post(body_bytes=-1), Invalid)
    assert desk.organisation.reservations == {}


def test_post_knows_the_team_by_the_key_and_does_without_a_key() -> None:
    desk = Desk({"acme:team:search/tokens/day": 1_000, "acme/tokens/day": 1_000})
    desk.post("r1", key="gone")
    assert (event(desk).team, desk.used("acme:team:search/tokens/day")) == (None, 0)
    desk.post("r2")
    assert desk.used("acme:team:search/tokens/day") == 100


def test_a_price_of_nothing_costs_nothing() -> None:
    desk = Desk(ALL, models={"m": Model(name="m", context=8_192, price=Price())})
    desk.reserve()
    assert desk.settle() == Settled(State.POSTED, 0)
