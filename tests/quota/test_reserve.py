"""Reserve holds all limits or none, and says which one refused and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.quota import (
    ClockSkew,
    Denied,
    Duplicate,
    Invalid,
    Key,
    Lane,
    Mismatch,
    Model,
    NoKey,
    NotReady,
    OutOfScope,
    Reading,
    Refusal,
    Reserved,
    State,
)
from tests.quota.desk import LEASE_MS, MAC, PRICE, T0, Desk

DAY_ENDS_IN_MS = 86_400_000 - T0 % 86_400_000
COST = 60 * 2_000 + 40 * 4_000 + 5_000  # nano-dollars of the desk's default request


def test_a_request_holds_every_limit_of_its_organisation_team_key_and_model() -> None:
    own = ["acme/tokens/day", "acme:team:search/tokens/day", "acme:key:k1/requests/day", "acme/tokens/hour/m",
           "acme:team:search/cost/month/m"]  # fmt: skip
    foreign = ["acme:team:ads/tokens/day", "acme:key:k2/tokens/day", "acme/tokens/hour/other"]
    desk = Desk(dict.fromkeys(own + foreign, 1_000_000))
    answer = desk.reserve()
    assert [each.limit for each in answer.readings] == sorted(own)
    assert {each.limit: each.held for each in desk.inspect().limits} == {
        **dict.fromkeys(foreign, 0), **dict.fromkeys(own, 100), own[2]: 1, own[4]: COST,
    }  # fmt: skip
    assert desk.inspect().holds[0].amounts == tuple(sorted((each, desk.held(each)) for each in own))


def test_what_is_reserved_shows_in_the_readings_at_once() -> None:
    desk = Desk({"acme/tokens/day": 1_000, "acme/tokens/minute": 600, "acme/requests/minute": 60,
                 "acme/cost/month": 1_000_000, "acme/concurrency/concurrent": 3})  # fmt: skip
    month_ends_in_ms = 1_701_388_800_000 - T0
    assert desk.reserve() == Reserved(
        deadline_ms=T0 + LEASE_MS,
        tokens_held=100,
        readings=(
            Reading("acme/concurrency/concurrent", 3, 2, 0),
            Reading("acme/cost/month", 1_000_000, 1_000_000 - COST, month_ends_in_ms),
            Reading("acme/requests/minute", 60, 59, 1_000),
            Reading("acme/tokens/day", 1_000, 900, DAY_ENDS_IN_MS),
            Reading("acme/tokens/minute", 600, 500, 10_000),
        ),
        epoch=1,
    )


def test_the_last_token_of_a_budget_can_be_reserved_and_not_one_more() -> None:
    desk = Desk({"acme/tokens/day": 200})
    assert isinstance(desk.reserve("r1"), Reserved)
    assert desk.reserve("r2", outputs_bound=41) == Denied(
        "acme/tokens/day", Refusal.HELD, 101, 100, 1_000, (Reading("acme/tokens/day", 200, 100, DAY_ENDS_IN_MS),)
    )
    assert isinstance(desk.reserve("r3"), Reserved)
    assert desk.available("acme/tokens/day") == 0


def test_one_refusal_leaves_every_other_limit_untouched() -> None:
    desk = Desk({"acme/tokens/day": 99, "acme/tokens/minute": 1_000, "acme/requests/minute": 10,
                 "acme/concurrency/concurrent": 1})  # fmt: skip
    before = desk.inspect()
    assert desk.reserve().limit == "acme/tokens/day"
    assert desk.inspect() == before
    assert desk.organisation.reservations == {}
    assert desk.take_events() == []


def test_a_window_that_is_used_up_says_when_it_ends() -> None:
    desk = Desk({"acme/tokens/day": 150})
    desk.reserve()
    desk.settle(completion=10)
    assert desk.reserve("r2") == Denied(
        "acme/tokens/day", Refusal.USED_UP, 100, 80, DAY_ENDS_IN_MS,
        (Reading("acme/tokens/day", 150, 80, DAY_ENDS_IN_MS),),
    )  # fmt: skip
    desk.later(DAY_ENDS_IN_MS - 1)
    assert desk.reserve("r3", job_deadline_ms=desk.now_ms + 1_000).retry_after_ms == 1
    desk.later(1)
    assert isinstance(desk.reserve("r4", job_deadline_ms=desk.now_ms + 1_000), Reserved)


def test_used_up_means_that_no_release_of_a_hold_would_help() -> None:
    desk = Desk({"acme/tokens/day": 200})
    desk.reserve()
    desk.settle()
    desk.reserve("r2", outputs_bound=0)
    assert desk.reserve("r3").refusal is Refusal.HELD
    assert desk.reserve("r4", outputs_bound=41).refusal is Refusal.USED_UP


def test_a_rate_says_to_the_millisecond_when_the_request_fits() -> None:
    desk = Desk({"acme/tokens/minute": 170})
    desk.reserve()
    denied = desk.reserve("r2")
    assert denied == Denied(
        "acme/tokens/minute", Refusal.USED_UP, 100, 70, 10_589, (Reading("acme/tokens/minute", 170, 70, 35_295),)
    )
    desk.later(denied.retry_after_ms - 1)
    assert desk.reserve("r3").retry_after_ms == 1
    desk.later(1)
    assert isinstance(desk.reserve("r4"), Reserved)


def test_more_than_a_cap_never_fits_and_outranks_every_wait() -> None:
    desk = Desk({"acme/tokens/day": 99, "acme/tokens/month": 100})
    desk.reserve(outputs_bound=30)
    assert desk.reserve("r2").refusal is Refusal.NEVER
    assert (desk.reserve("r3").limit, desk.reserve("r3").retry_after_ms) == ("acme/tokens/day", 0)
    assert desk.reserve("r4", outputs_bound=35).limit == "acme/tokens/day"


def test_a_cap_of_zero_admits_nothing_not_even_nothing() -> None:
    for limit in ("acme/cost/day", "acme/tokens/minute", "acme/concurrency/concurrent"):
        desk = Desk({limit: 0}, models={"m": Model(name="m", context=10)})
        assert desk.reserve(prompt_tokens=0, outputs_bound=0).refusal is Refusal.NEVER
        desk.later(120_000)
        assert desk.reserve(prompt_tokens=0, outputs_bound=0).refusal is Refusal.NEVER
        assert desk.standing(limit).resets_in_ms in (0, 86_400_000 - desk.now_ms % 86_400_000)


def test_a_free_request_fits_a_budget_that_is_just_used_up() -> None:
    desk = Desk({"acme/tokens/day": 100})
    desk.reserve()
    desk.settle()
    assert isinstance(desk.reserve("r2", prompt_tokens=0, outputs_bound=0), Reserved)


def test_the_refusal_named_has_the_longest_wait_and_ties_go_by_id() -> None:
    desk = Desk({"acme/tokens/hour": 150, "acme/tokens/day": 150, "acme/tokens/minute": 150})
    desk.reserve()
    desk.settle()
    assert desk.reserve("r2").limit == "acme/tokens/day"
    twins = Desk({"acme/tokens/hour/m": 150, "acme/tokens/hour": 150, "acme:key:k1/tokens/hour": 150})
    twins.reserve()
    twins.settle()
    assert twins.reserve("r2").limit == "acme/tokens/hour"


def test_requests_in_flight_are_bounded_and_free_again_at_once() -> None:
    desk = Desk({"acme/concurrency/concurrent": 2})
    desk.reserve("r1")
    desk.reserve("r2")
    assert desk.reserve("r3") == Denied(
        "acme/concurrency/concurrent", Refusal.HELD, 1, 0, 1_000, (Reading("acme/concurrency/concurrent", 2, 0, 0),)
    )
    desk.settle("r1")
    assert isinstance(desk.reserve("r3"), Reserved)


def test_reserve_twice_with_one_id_holds_once() -> None:
    desk = Desk({"acme/tokens/day": 1_000})
    first = desk.reserve()
    assert desk.reserve() == first
    assert desk.reserve(nonce="n2") == Duplicate(State.OPEN)
    assert desk.held("acme/tokens/day") == 100
    desk.settle()
    assert desk.reserve() == desk.reserve(nonce="n2") == Duplicate(State.POSTED)


def test_a_retry_is_answered_with_the_numbers_of_its_own_moment() -> None:
    desk = Desk({"acme/tokens/minute": 600})
    desk.reserve()
    again = desk.later(1_000).reserve()
    assert (again.deadline_ms, again.readings) == (T0 + LEASE_MS, (Reading("acme/tokens/minute", 600, 510, 9_000),))


def test_one_id_with_another_body_is_a_mismatch_in_every_state() -> None:
    desk = Desk()
    desk.reserve()
    assert desk.reserve(fingerprint="f2") == Mismatch()
    desk.settle()
    assert desk.reserve(fingerprint="f2") == Mismatch()


@pytest.mark.parametrize(
    ("fields", "credential"),
    [
        ({}, {"key": "unknown"}),
        ({}, {"key_mac": "wrong"}),
        ({}, {"key_mac": ""}),
        ({"revoked": True}, {}),
        ({"expires_at_ms": T0}, {}),
        ({"macs": ((MAC, T0),)}, {}),
        ({"macs": ()}, {}),
        ({"macs": (("", 0),)}, {"key_mac": ""}),
        ({"verified": True}, {}),
        ({"verified": True, "revoked": True}, {"key_mac": ""}),
    ],
)
def test_every_bad_credential_gets_one_and_the_same_answer(fields: dict[str, Any], credential: dict[str, Any]) -> None:
    key = Key(**{"id": "k1", "macs": ((MAC, 0),), **fields})
    desk = Desk(keys={"k1": key})
    assert desk.reserve(**credential) == NoKey()
    assert desk.reserve(**credential, model="unknown") == NoKey()


def test_two_secrets_of_one_key_live_until_each_expires() -> None:
    desk = Desk(keys={"k1": Key(id="k1", macs=(("new", 0), ("old", T0 + 2)), expires_at_ms=T0 + 4)})
    assert isinstance(desk.reserve("r1", key_mac="old"), Reserved)
    desk.later(1)
    assert isinstance(desk.reserve("r2", key_mac="old"), Reserved)
    desk.later(1)
    assert desk.reserve("r3", key_mac="old") == NoKey()
    desk.later(1)
    assert isinstance(desk.reserve("r4", key_mac="new"), Reserved)
    desk.later(1)
    assert desk.reserve("r5", key_mac="new") == NoKey()


def test_a_verified_subject_needs_no_mac() -> None:
    desk = Desk(keys={"k1": Key(id="k1", verified=True, expires_at_ms=T0 + 1)})
    assert isinstance(desk.reserve(key_mac=""), Reserved)


def test_a_verified_subject_passes_under_its_own_name_and_its_keys_limits() -> None:
    desk = Desk(
        {"acme:key:jwt.corp/tokens/day": 150, "acme:team:search/requests/day": 5},
        keys={"jwt.corp": Key(id="jwt.corp", team="search", verified=True), "k1": Key(id="k1", macs=((MAC, 0),))},
    )
    assert isinstance(desk.reserve("r1", key="jwt.corp~ann", key_mac=""), Reserved)
    assert {hold.key for hold in desk.inspect().holds} == {"jwt.corp~ann"}
    denied = desk.reserve("r2", key="jwt.corp~bob", key_mac="")
    assert isinstance(denied, Denied)
    assert denied.limit == "acme:key:jwt.corp/tokens/day"


@pytest.mark.parametrize(("key", "mac"), [("k1~ann", MAC), ("k1~ann", ""), ("~ann", ""), ("jwt.corp~ann", MAC)])
def test_only_a_verified_key_has_subjects(key: str, mac: str) -> None:
    keys = {"jwt.corp": Key(id="jwt.corp", verified=True), "k1": Key(id="k1", macs=((MAC, 0),))}
    assert Desk(keys=keys).reserve(key=key, key_mac=mac) == NoKey()


def test_a_key_reaches_only_what_its_scope_names() -> None:
    scope = Key(
        id="k1", macs=((MAC, 0),), models=frozenset({"m"}), routes=frozenset({"embeddings"}), cost_nanos_max=COST
    )
    desk = Desk(keys={"k1": scope})
    assert desk.reserve(model="other", route="embeddings") == OutOfScope("model")
    assert desk.reserve() == OutOfScope("route")
    assert desk.reserve(route="embeddings", outputs_bound=41) == OutOfScope("cost")
    assert isinstance(desk.reserve(route="embeddings"), Reserved)


@pytest.mark.parametrize(
    "fields",
    [
        {"body_bytes": -1},
        {"body_bytes": 1 << 31},
        {"prompts": 0},
        {"prompts": (1 << 31) + 1},
        {"prompt_tokens": -1},
        {"prompt_tokens": (1 << 31) + 1},
        {"outputs_bound": -1},
        {"outputs_bound": (1 << 31) + 1},
        {"job_deadline_ms": (1 << 52) + 1},
        {"job_deadline_ms": -1},
        {"job_deadline_ms": T0},
        {"model": "unknown"},
        {"prompt_tokens": 1, "outputs_bound": 1 << 31},
    ],
)
def test_arguments_out_of_bounds_are_refused_and_change_nothing(fields: dict[str, Any]) -> None:
    desk = Desk({"acme/tokens/day": 1 << 52})
    before = desk.inspect()
    assert isinstance(desk.reserve(**fields), Invalid)
    assert desk.inspect() == before


@pytest.mark.parametrize(
    "fields",
    [
        {"body_bytes": 0},
        {"body_bytes": (1 << 31) - 1},
        {"prompts": 1 << 31, "prompt_tokens": 0},
        {"prompt_tokens": 1 << 31, "outputs_bound": 0},
        {"prompt_tokens": 0, "outputs_bound": 1 << 31},
        {"job_deadline_ms": 1 << 52},
        {"job_deadline_ms": T0 + 1},
    ],
)
def test_arguments_at_their_bounds_are_fine(fields: dict[str, Any]) -> None:
    assert isinstance(Desk({"acme/tokens/day": 1 << 52}).reserve(**fields), Reserved)


def test_nothing_is_admitted_before_the_state_is_whole() -> None:
    desk = Desk({"acme/tokens/day": 1_000}, epoch=None)
    assert desk.reserve() == NotReady()
    desk.ready(0)
    assert desk.reserve() == NotReady()
    desk.ready(1)
    assert isinstance(desk.reserve(), Reserved)


@pytest.mark.parametrize("skew_ms", [-30_001, 30_001])
def test_a_caller_more_than_30_s_off_is_told_so(skew_ms: int) -> None:
    desk = Desk()
    assert desk.reserve(caller_now_ms=T0 + skew_ms) == ClockSkew()
    assert isinstance(desk.reserve(caller_now_ms=T0 + (30_000 if skew_ms > 0 else -30_000)), Reserved)


def test_the_lease_ends_no_later_than_the_requests_own_deadline() -> None:
    desk = Desk()
    assert desk.reserve("r1", job_deadline_ms=T0 + LEASE_MS + 1).deadline_ms == T0 + LEASE_MS
    assert desk.reserve("r2", job_deadline_ms=T0 + LEASE_MS - 1).deadline_ms == T0 + LEASE_MS - 1


def test_a_job_holds_windows_only_and_until_its_own_deadline() -> None:
    desk = Desk({"acme/tokens/day": 1_000, "acme/tokens/minute": 600, "acme/requests/minute": 60,
                 "acme/concurrency/concurrent": 3})  # fmt: skip
    answer = desk.enqueue()
    assert (answer.deadline_ms, answer.tokens_held) == (T0 + 600_000, 100)
    assert [each.available for each in answer.readings] == [3, 60, 900, 600]
    (event,) = desk.take_events()
    assert (event.kind, event.reservation, event.tokens_held, event.amounts) == ("reserved", "j1", 100, ())
    assert (event.team, event.key, event.model, event.lane) == ("search", "k1", "m", "queue")
    assert (event.occurred_at_ms, event.job_deadline_ms, event.price) == (T0, T0 + 600_000, PRICE)


def test_a_job_is_told_of_its_rates_as_they_are_now_though_it_pays_them_later() -> None:
    desk = Desk({"acme/tokens/minute": 600})
    desk.reserve()
    (reading,) = desk.later(1_000).enqueue().readings
    assert reading == Reading("acme/tokens/minute", 600, 510, 9_000)


def test_a_job_ignores_rates_that_are_low_now_and_refuses_those_it_will_never_fit() -> None:
    desk = Desk({"acme/tokens/minute": 100, "acme/concurrency/concurrent": 1, "acme/tokens/day": 200})
    desk.reserve()
    assert isinstance(desk.enqueue("j1"), Reserved)
    desk.later(600)
    assert desk.enqueue("j2", outputs_bound=41) == Denied(
        "acme/tokens/minute", Refusal.NEVER, 101, 1, 0,
        (Reading("acme/concurrency/concurrent", 1, 0, 0), Reading("acme/tokens/day", 200, 0, DAY_ENDS_IN_MS - 600),
         Reading("acme/tokens/minute", 100, 1, 59_400)),
    )  # fmt: skip
    assert desk.enqueue("j3").limit == "acme/tokens/day"


def test_a_realtime_reserve_writes_no_event() -> None:
    desk = Desk({"acme/tokens/day": 1_000})
    desk.reserve(lane=Lane.REALTIME)
    assert desk.take_events() == []
    assert desk.organisation.changed == {"r1"}
