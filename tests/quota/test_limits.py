"""A limit's identity is text that can be read back, and windows are where people expect them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.quota import Kind, Limit, Metric, limit_id, parse_limit_id, window_ends_ms, window_id
from penstock.quota.limits import MONDAY_MS, MONTH_MS, WEEK_MS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

NAMED = [
    ("acme/tokens/second", Metric.TOKENS, Kind.RATE, 1_000, 0),
    ("acme/tokens/minute", Metric.TOKENS, Kind.RATE, 60_000, 0),
    ("acme/requests/second", Metric.REQUESTS, Kind.STRICT_RATE, 1_000, 0),
    ("acme/requests/minute", Metric.REQUESTS, Kind.STRICT_RATE, 60_000, 0),
    ("acme/tokens/hour", Metric.TOKENS, Kind.WINDOW, 3_600_000, 0),
    ("acme/requests/day", Metric.REQUESTS, Kind.WINDOW, 86_400_000, 0),
    ("acme/cost/week", Metric.COST, Kind.WINDOW, 604_800_000, 345_600_000),
    ("acme/cost/month", Metric.COST, Kind.WINDOW, 0, 0),
    ("acme/concurrency/concurrent", Metric.CONCURRENCY, Kind.CONCURRENCY, 0, 0),
    ("acme/tokens/rate-5000", Metric.TOKENS, Kind.RATE, 5_000, 0),
    ("acme/tokens/strict_rate-60000", Metric.TOKENS, Kind.STRICT_RATE, 60_000, 0),
    ("acme/requests/rate-60000", Metric.REQUESTS, Kind.RATE, 60_000, 0),
    ("acme/tokens/window-18000000-0", Metric.TOKENS, Kind.WINDOW, 18_000_000, 0),
    ("acme/tokens/window-604800000-0", Metric.TOKENS, Kind.WINDOW, 604_800_000, 0),
    ("acme/tokens/window-86400000-3600000", Metric.TOKENS, Kind.WINDOW, 86_400_000, 3_600_000),
]


@pytest.mark.parametrize(("text", "metric", "kind", "period_ms", "anchor_ms"), NAMED, ids=[row[0] for row in NAMED])
def test_an_id_names_owner_metric_and_period(
    text: str, metric: Metric, kind: Kind, period_ms: int, anchor_ms: int
) -> None:
    limit = Limit(owner="acme", metric=metric, kind=kind, period_ms=period_ms, anchor_ms=anchor_ms, cap=0)
    assert limit_id(limit) == text
    assert parse_limit_id(text) == limit


limits = st.builds(
    Limit,
    owner=st.sampled_from(["acme", "acme:team:search", "acme:key:k1"]),
    metric=st.sampled_from(Metric),
    kind=st.sampled_from([Kind.RATE, Kind.STRICT_RATE, Kind.WINDOW]),
    period_ms=st.sampled_from([0, 1, 1_000, 60_000, 3_600_000, 86_400_000, 604_800_000, 18_000_000]),
    model=st.none() | st.sampled_from(["chat-small", "meta-llama/Llama-3.1-8B-Instruct", "a/b/c/d"]),
    cap=st.just(0),
)


@given(limits, limits)
def test_two_limits_share_an_id_only_if_they_are_one(one: Limit, other: Limit) -> None:
    assert parse_limit_id(limit_id(one)) == one
    assert (limit_id(one) == limit_id(other)) is (one == other)


def test_the_cap_is_no_part_of_the_identity() -> None:
    limit = parse_limit_id("acme/tokens/day")
    assert limit_id(limit) == limit_id(
        Limit(owner="acme", metric=Metric.TOKENS, kind=limit.kind, period_ms=86_400_000, cap=7)
    )


NO_IDS = ["", "acme", "acme/tokens", "acme/apples/day", "acme/tokens/fortnight", "acme/tokens/window-1",
          "acme/tokens/rate-1-2", "acme/tokens/window-x-0"]  # fmt: skip


@pytest.mark.parametrize("text", NO_IDS)
def test_what_is_no_id_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is no limit's id; expected owner/metric/period"):
        parse_limit_id(text)


instants = st.datetimes(datetime(1970, 1, 1), datetime(2399, 12, 31), timezones=st.just(UTC))


def to_ms(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)


@given(instants)
def test_months_are_those_of_the_calendar(moment: datetime) -> None:
    month = window_id(MONTH_MS, 0, to_ms(moment))
    assert month == moment.year * 12 + moment.month - 1
    following = datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
    assert window_ends_ms(MONTH_MS, 0, month) == to_ms(following)


@pytest.mark.parametrize("year", [1970, 1999, 2000, 2001, 2023, 2024, 2100, 2400])
def test_a_month_ends_at_midnight_and_not_a_millisecond_sooner(year: int) -> None:
    for month in range(year * 12, year * 12 + 12):
        ends_ms = window_ends_ms(MONTH_MS, 0, month)
        assert window_id(MONTH_MS, 0, ends_ms - 1) == month
        assert window_id(MONTH_MS, 0, ends_ms) == month + 1


@given(instants)
def test_weeks_begin_on_monday(moment: datetime) -> None:
    ends_ms = window_ends_ms(WEEK_MS, MONDAY_MS, window_id(WEEK_MS, MONDAY_MS, to_ms(moment)))
    ends = EPOCH + timedelta(milliseconds=ends_ms)
    assert ends.weekday() == 0
    assert (ends.hour, ends.minute, ends.second, ends.microsecond) == (0, 0, 0, 0)
    assert timedelta(0) < ends - moment <= timedelta(days=7)
