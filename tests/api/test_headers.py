"""Rate-limit headers: the tightest limit of each metric, in both families."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from penstock.api.headers import go_duration, rate_headers, retry_headers
from penstock.quota.operations import Reading

UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


def headers_of(*readings: Reading) -> dict[str, str]:
    found = [(name.decode(), value.decode()) for name, value in rate_headers(readings)]
    assert len(dict(found)) == len(found)
    return dict(found)


@given(duration_ms=st.integers(0, 10**12))
def test_a_go_duration_reads_back_exactly(duration_ms: int) -> None:
    text = go_duration(duration_ms).decode()
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s)", text)
    assert "".join(number + unit for number, unit in parts) == text
    assert sum(round(float(number) * UNITS_MS[unit]) for number, unit in parts) == duration_ms


def test_the_least_available_limit_of_a_metric_is_shown() -> None:
    shown = headers_of(
        Reading("acme/tokens/minute", 1000, 500, 30_000),
        Reading("acme/tokens/month", 5000, 499, 86_400_000),
        Reading("acme:team:search/tokens/day", 9000, 9000, 1),
    )
    assert shown["x-ratelimit-limit-tokens"] == "5000"
    assert shown["x-ratelimit-remaining-tokens"] == "499"
    assert shown["x-ratelimit-reset-tokens"] == "24h0m0s"
    assert shown["ratelimit-policy"] == '"tpmonth";q=5000'
    assert shown["ratelimit"] == '"tpmonth";r=499;t=86400'


def test_of_equally_tight_limits_the_one_that_resets_last_is_shown() -> None:
    one, other = Reading("acme/requests/minute", 10, 5, 10), Reading("acme/requests/day", 20, 5, 11)
    assert headers_of(one, other) == headers_of(other, one)
    assert headers_of(one, other)["x-ratelimit-limit-requests"] == "20"


def test_cost_and_concurrency_have_no_such_headers() -> None:
    assert headers_of(Reading("acme/cost/month", 1, 1, 1), Reading("acme/concurrency/concurrent", 1, 1, 0)) == {}


def test_a_changed_cap_is_seen_at_once() -> None:
    assert headers_of(Reading("acme/tokens/hour", 10, 1, 1))["ratelimit-policy"] == '"tph";q=10;w=3600'
    assert headers_of(Reading("acme/tokens/hour", 20, 1, 1))["ratelimit-policy"] == '"tph";q=20;w=3600'


def test_an_unusual_period_is_named_by_its_length() -> None:
    shown = headers_of(Reading("acme/tokens/rate-90000", 10, 1, 1))
    assert shown["ratelimit-policy"] == '"tp90000ms";q=10;w=90'


def test_waits_are_rounded_up_to_whole_seconds() -> None:
    assert retry_headers(1) == [(b"retry-after-ms", b"1"), (b"retry-after", b"1")]
    assert retry_headers(1001)[1] == (b"retry-after", b"2")
