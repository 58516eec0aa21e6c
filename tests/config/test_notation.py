"""What is written as a sentence means one thing, and is written back as that sentence."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import notation
from penstock.config.notation import NotationError, Term, format_limit, parse_limit
from penstock.quota.definitions import Kind, Metric
from tests.config.strategies import terms


@given(terms())
def test_every_term_survives_its_sentence(term: Term) -> None:
    assert parse_limit(format_limit(term)) == term


@given(terms())
def test_every_canonical_sentence_matches_the_schemas_pattern(term: Term) -> None:
    assert re.search(notation.LIMIT_PATTERN, format_limit(term))


@given(st.integers(0, 10**15))
def test_every_amount_survives_its_notation(amount: int) -> None:
    assert notation.parse_amount(notation.format_amount(amount)) == amount


@given(st.integers(0, 10**12))
def test_every_duration_survives_its_notation(duration_ms: int) -> None:
    assert notation.parse_duration(notation.format_duration(duration_ms)) == duration_ms


@given(st.integers(0, 10**18), st.sampled_from([10**6, 10**9, 10**12]))
def test_every_sum_of_money_survives_its_notation(units: int, per_usd: int) -> None:
    assert notation.parse_usd(notation.format_usd(units, per_usd=per_usd), per_usd=per_usd) == units


@given(st.text(max_size=40))
def test_any_text_is_a_limit_or_is_refused_with_a_fix(text: str) -> None:
    refusal = ""
    try:
        term = parse_limit(text)
    except NotationError as error:
        refusal = str(error)
    else:
        assert parse_limit(format_limit(term)) == term
    assert not refusal or ("wanted" in refusal and ";" in refusal)


@pytest.mark.parametrize(
    ("sentence", "term"),
    [
        ("200k tokens/minute", Term(metric=Metric.TOKENS, kind=Kind.RATE, cap=200_000, period_ms=60_000)),
        ("600 requests/minute", Term(metric=Metric.REQUESTS, kind=Kind.STRICT_RATE, cap=600, period_ms=60_000)),
        ("5 requests/second", Term(metric=Metric.REQUESTS, kind=Kind.STRICT_RATE, cap=5, period_ms=1_000)),
        ("50M tokens/month", Term(metric=Metric.TOKENS, kind=Kind.WINDOW, cap=50_000_000, period_ms=0)),
        ("300 usd/month", Term(metric=Metric.COST, kind=Kind.WINDOW, cap=300_000_000_000, period_ms=0)),
        ("1.5k usd/month", Term(metric=Metric.COST, kind=Kind.WINDOW, cap=1_500_000_000_000, period_ms=0)),
        ("0.5 usd/day", Term(metric=Metric.COST, kind=Kind.WINDOW, cap=500_000_000, period_ms=86_400_000)),
        ("32 concurrent", Term(metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=32)),
        ("10k tokens/hour", Term(metric=Metric.TOKENS, kind=Kind.WINDOW, cap=10_000, period_ms=3_600_000)),
        ("10k requests/hour", Term(metric=Metric.REQUESTS, kind=Kind.WINDOW, cap=10_000, period_ms=3_600_000)),
        (
            "1M tokens/week",  # 345,600,000 ms: from Thursday, 1 January 1970, to the first Monday
            Term(metric=Metric.TOKENS, kind=Kind.WINDOW, cap=10**6, period_ms=604_800_000, anchor_ms=345_600_000),
        ),
        ("90 tokens/90 seconds", Term(metric=Metric.TOKENS, kind=Kind.RATE, cap=90, period_ms=90_000)),
        ("0 tokens/day", Term(metric=Metric.TOKENS, kind=Kind.WINDOW, cap=0, period_ms=86_400_000)),
    ],
)
def test_a_sentence_means_what_it_says(sentence: str, term: Term) -> None:
    assert parse_limit(sentence) == term


@pytest.mark.parametrize(
    "sentence",
    [
        "200000 tokens/minute",
        "200_000 tokens/minute",
        "200K tokens / minute",
        "0.2M token per minute",
        "  200k   tokens   per   minute ",
        "200ktokens/minute",
        "200k tokens/1 minute",
        "200k tokens/60 seconds",
    ],
)
def test_other_spellings_mean_the_same(sentence: str) -> None:
    assert format_limit(parse_limit(sentence)) == "200k tokens/minute"


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("200k tokens", "found '200k tokens' without a period, wanted one of second, minute, hour"),
        ("200k tokens", "write `200k tokens/minute` or `200k tokens/month`"),
        ("5 usd/minute", "money is limited in windows only; write `5 usd/hour` or longer"),
        ("200m tokens/minute", "write `200M`"),
        ("200k token/fortnight", "found the period 'fortnight'"),
        ("3 months", "found 'months' in '3 months', wanted tokens, requests, usd or concurrent"),
        ("1M tokens/3 months", "write `/month`, or `/90 days` for a fixed period"),
        ("1M tokens/0 days", "found the period '0 days'"),
        ("5 tokens/50 minutes", "wanted at most 34 minutes, or an hour or longer; write `5 tokens/hour`"),
        ("32 concurrent/minute", "wanted no period"),
        ("1.5 requests/second", "wanted a whole number; round it"),
        ("-5 tokens/minute", "found '-5'"),
        ("5000000 usd/month", "which is more than counters hold exactly (4503599.627370496 usd); lower it"),
        ("80B tokens/minute", "which is more than counters hold exactly (75059993789); lower it"),
        ("0.0000000001 usd/day", "which has more than 9 decimals"),
        ("many tokens/minute", "wanted a limit; write it as `200k tokens/minute`"),
        ("", "wanted a limit"),
    ],
)
def test_a_wrong_sentence_is_refused_with_what_was_found_wanted_and_a_fix(sentence: str, said: str) -> None:
    with pytest.raises(NotationError, match=re.escape(said)):
        parse_limit(sentence)


def test_the_largest_caps_that_counters_hold_are_accepted_and_one_more_is_not() -> None:
    assert parse_limit(f"{2**52} tokens/month").cap == 2**52
    assert parse_limit(f"{2**52 // 1000} tokens/second").cap == 2**52 // 1000
    for sentence in (f"{2**52 + 1} tokens/month", f"{2**52 // 1000 + 1} tokens/second", f"{2**52 + 1} concurrent"):
        with pytest.raises(NotationError, match="lower it"):
            parse_limit(sentence)


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [("60s", 60_000), ("500ms", 500), ("10m", 600_000), ("24h", 86_400_000), ("7d", 604_800_000), ("1.5s", 1_500)],
)
def test_durations(text: str, duration_ms: int) -> None:
    assert notation.parse_duration(text) == duration_ms


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("60", "without a unit, wanted ms, s, m, h or d; write `60s`"),
        ("60 sec", "the unit 'sec'"),
        ("soon", "wanted a duration"),
        ("1.5ms", "finer than a millisecond"),
    ],
)
def test_wrong_durations_are_refused(text: str, said: str) -> None:
    with pytest.raises(NotationError, match=re.escape(said)):
        notation.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("200k", 200_000), ("50M", 50_000_000), ("1.5M", 1_500_000), ("2_000_000", 2_000_000), (8192, 8192)],
)
def test_amounts(text: str | int, amount: int) -> None:
    assert notation.parse_amount(text) == amount


def test_an_amount_that_helm_printed_as_a_float_is_still_that_amount() -> None:
    assert notation.parse_amount(Decimal("5e+07")) == notation.parse_amount("5e+07") == 50_000_000


def test_prices_are_exact_where_floats_are_not() -> None:
    assert int(2.01 * 10**6) != 201 * 10**4, "the reason for decimals"
    for cents in range(0, 10_000, 7):
        assert notation.parse_usd(Decimal(cents) / 100, per_usd=10**6) == cents * 10**4


def test_a_price_finer_than_a_pico_dollar_per_token_is_refused_not_rounded() -> None:
    assert notation.parse_usd("0.000001", per_usd=10**6) == 1
    with pytest.raises(NotationError, match="more than 6 decimals; round it"):
        notation.parse_usd("0.0000001", per_usd=10**6)
