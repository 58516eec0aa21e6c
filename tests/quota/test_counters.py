"""Counters count exactly: a bucket against exact fractions, however the time between is cut up."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from penstock.quota import parse_limit_id
from penstock.quota.counters import AMOUNT_MAX, Counter, new_counter, pour, recap, resets_in_ms, roll

PERIODS_MS = st.sampled_from([1, 7, 1_000, 60_000, 1 << 21])
STEPS_MS = st.lists(st.integers(0, 100_000), min_size=1, max_size=6)


def bucket(cap: int, period_ms: int) -> Counter:
    limit = parse_limit_id(f"acme/tokens/rate-{period_ms}")
    counter = new_counter("acme/tokens/rate", limit, 0)
    recap(counter, cap, 0)
    counter.level = cap * period_ms
    return counter


@given(st.integers(0, 10_000), PERIODS_MS, st.integers(-(1 << 31), 1 << 31), STEPS_MS)
def test_rolling_in_steps_is_rolling_at_once_and_exact(
    cap: int, period_ms: int, amount: int, steps_ms: list[int]
) -> None:
    stepwise, at_once = bucket(cap, period_ms), bucket(cap, period_ms)
    pour(stepwise, amount)
    pour(at_once, amount)
    began, now_ms = Fraction(at_once.level, period_ms), 0
    for step_ms in steps_ms:
        now_ms += step_ms
        roll(stepwise, now_ms)
    roll(at_once, now_ms)
    assert stepwise == at_once
    assert Fraction(at_once.level, period_ms) == min(Fraction(cap), began + Fraction(cap * now_ms, period_ms))


def test_a_bucket_that_just_became_full_is_full_and_no_fuller() -> None:
    counter = bucket(170, 60_000)
    pour(counter, -100)
    full_in_ms = resets_in_ms(counter, 0)
    assert full_in_ms == 35_295  # 6,000,000 / 170, rounded up
    roll(counter, full_in_ms - 1)
    assert counter.level == 170 * 60_000 - 100 * 60_000 + 170 * 35_294
    roll(counter, full_in_ms)
    assert counter.level == 170 * 60_000


def test_a_counter_never_rolls_back() -> None:
    counter = bucket(60, 60_000)
    pour(counter, -60)
    roll(counter, 1_000)
    roll(counter, 500)
    assert (counter.level, counter.rolled_at_ms) == (60_000, 1_000)


@given(st.integers(0, 1 << 21), st.lists(st.integers(-(1 << 31), 1 << 31), max_size=6))
def test_a_bucket_stays_between_its_floor_and_full_and_forgives_the_rest(cap: int, amounts: list[int]) -> None:
    counter = bucket(cap, 1 << 21)
    exact, forgiven = counter.level, 0
    for amount in amounts:
        pour(counter, amount)
        exact = min(exact + (amount << 21), cap << 21)
        forgiven += max(0, -AMOUNT_MAX - exact)
        exact = max(exact, -AMOUNT_MAX)
        assert (counter.level, counter.forgiven) == (exact, min(forgiven, AMOUNT_MAX))
