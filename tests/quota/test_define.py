"""Definitions change under running requests; the clock never goes back; the state is whole or says that it is not."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.quota import (
    Define,
    Definitions,
    Hold,
    Inspect,
    Key,
    Kind,
    Limit,
    LimitStanding,
    Metric,
    Model,
    NotReady,
    Organisation,
    Price,
    Ready,
    Refused,
    Reserved,
    parse_limit_id,
)
from penstock.quota.operations import Done
from tests.quota.desk import LEASE_MS, T0, Desk, definitions

DAY, MINUTE = "acme/tokens/day", "acme/tokens/minute"


def define(desk: Desk, version: int, given: Definitions) -> Any:
    call = Define(organisation="acme", caller_now_ms=desk.now_ms, version=version, definitions=given)
    return desk.apply(call)


def test_an_older_version_is_refused_and_the_same_again_is_fine() -> None:
    desk = Desk({DAY: 5})
    assert define(desk, 7, definitions({DAY: 6})) == Done()
    assert isinstance(define(desk, 6, definitions({DAY: 7})), Refused)
    assert isinstance(define(desk, 7, definitions({DAY: 7})), Refused)
    assert define(desk, 7, definitions({DAY: 6})) == Done()
    assert (desk.standing(DAY).cap, desk.organisation.version) == (6, 7)
    assert isinstance(define(Desk(), 0, definitions({})), Refused)
    assert isinstance(Organisation("acme").apply(
        Define(organisation="acme", caller_now_ms=T0, version=0, definitions=Definitions()), time_ms=T0
    ), Refused)  # fmt: skip


def test_a_new_limit_starts_unused_and_a_new_bucket_full() -> None:
    desk = Desk({DAY: 1_000})
    desk.reserve()
    desk.later(5).define({DAY: 1_000, "acme/tokens/hour": 500, MINUTE: 600})
    assert (desk.used("acme/tokens/hour"), desk.held("acme/tokens/hour")) == (0, 0)
    assert (desk.available(MINUTE), desk.organisation.counters[MINUTE].rolled_at_ms) == (600, T0 + 5)


def test_a_limit_that_leaves_and_returns_continues_where_it_was() -> None:
    desk = Desk({DAY: 1_000, MINUTE: 600})
    desk.reserve()
    desk.settle()
    desk.define({})
    assert desk.reserve("r2").readings == ()
    assert [(each.limit, each.cap, each.used) for each in desk.inspect().limits] == [(DAY, 0, 100)]
    desk.later(1_000).define({DAY: 1_000, MINUTE: 600})
    assert (desk.used(DAY), desk.available(MINUTE)) == (100, 510)


def test_a_limit_that_left_is_shown_while_anything_is_held_or_used_of_it() -> None:
    desk = Desk({"acme/concurrency/concurrent": 3, MINUTE: 60})
    desk.reserve(prompt_tokens=10)
    desk.define({})
    assert desk.inspect().limits == (
        LimitStanding("acme/concurrency/concurrent", "concurrency", "concurrency", 0, 0, 1, 0, 0, 0),
    )
    desk.settle()
    assert desk.inspect().limits == ()


def test_a_bucket_refills_under_its_old_cap_until_the_new_one_comes() -> None:
    desk = Desk({MINUTE: 600})
    desk.reserve(prompt_tokens=600, outputs_bound=0)
    desk.later(10_000).define({MINUTE: 60_000})
    assert desk.available(MINUTE) == 100
    desk.later(1_000).define({MINUTE: 60})
    assert desk.level(MINUTE) == 60 * 60_000
    desk.define({MINUTE: 0})
    assert (desk.level(MINUTE), desk.later(9_000).available(MINUTE)) == (0, 0)


def test_a_lowered_cap_refuses_new_work_and_touches_no_hold() -> None:
    desk = Desk({DAY: 1_000})
    desk.reserve("r1")
    desk.reserve("r2")
    desk.settle("r2")
    desk.define({DAY: 150})
    assert (desk.held(DAY), desk.used(DAY), desk.available(DAY)) == (100, 100, 0)
    assert desk.reserve("r3").available == 0
    desk.settle("r1", completion=0)
    assert desk.used(DAY) == 160


def test_plans_are_made_anew_when_limits_change() -> None:
    desk = Desk({DAY: 1_000})
    desk.reserve("r1")
    desk.define({DAY: 1_000, "acme/tokens/hour": 10})
    assert desk.reserve("r2").limit == "acme/tokens/hour"


def limits_of(count: int, text: str = "acme/tokens/window-{}-0") -> dict[str, int]:
    return {text.format(60_000 + number): 1 for number in range(count)}


@pytest.mark.parametrize(
    ("more", "keys"),
    [
        ({"acme/tokens/day/m": 1}, {}),
        ({"acme/tokens/day/undefined": 1}, {}),
        ({"acme:team:search/tokens/day": 1}, {"k1": Key(id="k1", team="search")}),
        ({"acme:key:k1/tokens/day": 1}, {"k1": Key(id="k1")}),
        ({"acme/tokens/hour": 1}, {}),
    ],
)
def test_32_limits_on_one_request_are_possible_and_33_are_not(more: dict[str, int], keys: dict[str, Key]) -> None:
    desk = Desk()
    foreign = {"acme:team:ads/tokens/day": 1, "acme:key:k9/tokens/day": 1}
    if any("day/" in each for each in more):  # on one model, so that one on another never meets it
        foreign["acme/tokens/hour/other"] = 1
    refused = define(desk, 2, definitions({**limits_of(32), **more}, keys=keys))
    assert isinstance(refused, Refused)
    assert "33 limits on one request" in refused.why
    assert define(desk, 2, definitions({**limits_of(31), **more, **foreign}, keys=keys)) == Done()


TOKENS, WINDOW, RATE = Metric.TOKENS, Kind.WINDOW, Kind.RATE


def bound(**fields: Any) -> Limit:
    return Limit(**{"owner": "acme", "metric": TOKENS, "kind": WINDOW, "cap": 1, "period_ms": 60_000, **fields})


UNFIT = [
    bound(owner="zeta"),
    bound(owner="acmeter"),
    bound(owner="acme:team:a/b"),
    bound(metric=Metric.CONCURRENCY),
    bound(kind=Kind.CONCURRENCY, period_ms=0),
    bound(metric=Metric.COST, kind=RATE),
    bound(metric=Metric.COST, kind=Kind.STRICT_RATE),
    bound(period_ms=-1),
    bound(period_ms=(1 << 52) + 1),
    bound(anchor_ms=-1),
    bound(anchor_ms=60_000),
    bound(period_ms=0, anchor_ms=1),
    bound(metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY),
    bound(metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, period_ms=0, anchor_ms=1),
    bound(kind=RATE, period_ms=0),
    bound(kind=RATE, period_ms=(1 << 21) + 1),
    bound(kind=RATE, anchor_ms=1),
    bound(cap=-1),
    bound(cap=(1 << 52) + 1),
    bound(kind=RATE, cap=(1 << 52) // 60_000 + 1),
    bound(metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, period_ms=0, cap=(1 << 52) + 1),
]

FIT = [
    bound(owner="acme:team:a"),
    bound(owner="acme:key:k"),
    bound(period_ms=1 << 52, anchor_ms=(1 << 52) - 1, cap=1 << 52),
    bound(period_ms=0, cap=0),
    bound(metric=Metric.COST, anchor_ms=59_999),
    bound(metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, period_ms=0, cap=1 << 52),
    bound(kind=RATE, period_ms=1, cap=1 << 52),
    bound(kind=RATE, period_ms=1 << 21, cap=1 << 31),
    bound(kind=Kind.STRICT_RATE, cap=(1 << 52) // 60_000),
]


@pytest.mark.parametrize("limit", UNFIT, ids=str)
def test_limits_out_of_bounds_are_refused(limit: Limit) -> None:
    answer = define(Desk(), 2, Definitions(limits=(limit,)))
    assert isinstance(answer, Refused)
    assert answer.why.startswith("limit ")


@pytest.mark.parametrize("limit", FIT, ids=str)
def test_limits_at_their_bounds_are_fine(limit: Limit) -> None:
    desk = Desk()
    assert define(desk, 2, Definitions(limits=(limit,))) == Done()
    assert desk.inspect().limits[0].available == limit.cap


def test_a_limit_defined_twice_is_refused() -> None:
    answer = define(Desk(), 2, Definitions(limits=(bound(cap=1), bound(cap=2))))
    assert answer == Refused("limit acme/tokens/window-60000-0 is defined twice")


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [("context", 1, 1 << 31), ("template_tokens", 0, 1 << 31), ("tokens_per_byte_max", 1, 1 << 10),
     ("prompt_picos", 0, 1 << 30), ("cached_picos", 0, 1 << 30), ("completion_picos", 0, 1 << 30),
     ("request_picos", 0, 1 << 40)],
)  # fmt: skip
def test_models_stay_within_what_the_arithmetic_can_carry(field: str, least: int, most: int) -> None:
    def model(value: int) -> Model:
        if field.endswith("picos"):
            return Model(name="m", context=1, price=Price(**{field: value}))
        return Model(**{"name": "m", "context": 1, field: value})  # type: ignore[arg-type]

    desk = Desk()
    for value in (least - 1, most + 1):
        answer = define(desk, 2, Definitions(models={"m": model(value)}))
        assert isinstance(answer, Refused)
        assert field in answer.why
    for version, value in enumerate((least, most), start=2):
        assert define(desk, version, Definitions(models={"m": model(value)})) == Done()


def test_models_and_keys_go_by_their_own_names() -> None:
    assert isinstance(define(Desk(), 2, Definitions(models={"m": Model(name="n", context=1)})), Refused)
    assert isinstance(define(Desk(), 2, Definitions(keys={"k": Key(id="j")})), Refused)


def test_a_refused_define_changes_nothing() -> None:
    desk = Desk({DAY: 5})
    desk.later(1_000)
    define(desk, 2, definitions({DAY: -1}))
    assert (desk.organisation.version, desk.standing(DAY).cap, desk.organisation.clock_ms) == (1, 5, T0)


def test_ready_comes_after_define_and_epochs_only_rise() -> None:
    fresh = Organisation("acme")
    assert isinstance(fresh.apply(Ready(organisation="acme", caller_now_ms=T0, epoch=1), time_ms=T0), Refused)
    assert (fresh.marked, fresh.clock_ms) == (False, 0)
    desk = Desk(epoch=None)
    assert desk.ready(0) == desk.ready(0) == Done()
    assert isinstance(desk.ready(-1), Refused)
    assert desk.ready(3) == desk.ready(3) == Done()
    assert isinstance(desk.ready(2), Refused)
    assert isinstance(desk.ready(0), Refused)
    assert desk.inspect().epoch == 3
    assert desk.later(5).ready(4) == Done()
    assert desk.organisation.clock_ms == T0 + 5


def now_of(desk: Desk, *, time_ms: int, caller_now_ms: int) -> int:
    desk.organisation.apply(
        Ready(organisation="acme", caller_now_ms=caller_now_ms, epoch=1),
        time_ms=time_ms,
    )
    return desk.organisation.clock_ms


def test_now_never_goes_back_and_no_one_clock_can_drag_it_ahead() -> None:
    desk = Desk()
    assert now_of(desk, time_ms=T0 + 9, caller_now_ms=T0) == T0 + 9
    assert now_of(desk, time_ms=T0 + 5, caller_now_ms=T0 + 5) == T0 + 9
    assert now_of(desk, time_ms=T0 + 10**9, caller_now_ms=T0 + 10) == T0 + 10 + 30_000
    assert now_of(desk, time_ms=T0 + 40_000, caller_now_ms=T0 + 10**9) == T0 + 40_000
    assert now_of(desk, time_ms=T0 + 40_000, caller_now_ms=0) == T0 + 40_000


def test_inspect_shows_limits_and_holds_in_order_and_writes_nothing() -> None:
    desk = Desk({MINUTE: 600, "acme/concurrency/concurrent": 2, DAY: 1_000})
    desk.reserve("r2")
    desk.enqueue("r1", model="other", key="k2", prompt_tokens=0)
    desk.later(10_000)
    found = desk.inspect()
    day_ends_in_ms = 86_400_000 - desk.now_ms % 86_400_000
    assert (found.now_ms, found.epoch, desk.organisation.clock_ms) == (T0 + 10_000, 1, T0)
    assert found.limits == (
        LimitStanding("acme/concurrency/concurrent", "concurrency", "concurrency", 2, 0, 1, 1, 0, 0),
        LimitStanding(DAY, "tokens", "window", 1_000, 0, 140, 860, T0 // 86_400_000, day_ends_in_ms),
        LimitStanding(MINUTE, "tokens", "rate", 600, 0, 0, 600, 0, 0),
    )
    assert found.holds == (
        Hold("r1", None, "k2", "other", "queue", 40, ((DAY, 40),), T0 + 600_000, False),
        Hold("r2", "search", "k1", "m", "realtime", 100, (("acme/concurrency/concurrent", 1), (DAY, 100)),
             T0 + LEASE_MS, True),
    )  # fmt: skip
    assert desk.level(MINUTE) == 500 * 60_000


def test_holds_are_shown_in_pages_in_the_order_of_their_deadlines() -> None:
    desk = Desk()
    desk.enqueue("z", job_deadline_ms=T0 + 1_000)
    for each in ("a", "b"):
        desk.enqueue(each, job_deadline_ms=T0 + 2_000)
    page, shown = desk.page(2), []
    while page:
        shown.append([each.reservation for each in page])
        page = desk.page(2, after=page[-1])
    assert shown == [["z", "a"], ["b"]]


def test_inspect_answers_only_for_a_state_that_is_whole() -> None:
    desk = Desk(epoch=None)
    assert desk.apply(Inspect(organisation="acme", caller_now_ms=T0)) == NotReady()
    desk.ready(0)
    assert desk.inspect().epoch == 0


def test_a_call_for_another_organisation_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="a call for zeta was given to acme"):
        Desk().apply(Inspect(organisation="zeta", caller_now_ms=T0))


def test_weeks_months_and_anchors_end_where_the_calendar_says() -> None:
    limits = ["acme/tokens/week", "acme/tokens/month", "acme/tokens/window-86400000-3600000"]
    desk = Desk(dict.fromkeys(limits, 1_000))
    ends_ms = {each.limit: desk.now_ms + each.resets_in_ms for each in desk.inspect().limits}
    monday_ms, december_ms = 1_700_438_400_000, 1_701_388_800_000
    assert ends_ms == {limits[0]: monday_ms, limits[1]: december_ms, limits[2]: 1_700_006_400_000 + 3_600_000}
    assert isinstance(desk.reserve(), Reserved)
    assert parse_limit_id(limits[2]).anchor_ms == 3_600_000
