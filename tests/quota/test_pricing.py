"""Costs are exact integers, rounded up once."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from penstock.quota import Price
from penstock.quota.pricing import cost_nanos, cost_nanos_max, cost_nanos_min

picos = st.integers(0, 1 << 30)
tokens = st.integers(0, 1 << 31)
prices = st.builds(Price, prompt_picos=picos, cached_picos=picos, completion_picos=picos, request_picos=picos)


@given(prices, tokens, tokens, st.integers(0, 100))
def test_a_cost_is_the_exact_sum_rounded_up_once(
    price: Price, prompt: int, completion: int, cached_percent: int
) -> None:
    cached = prompt * cached_percent // 100
    exact = Fraction(price.prompt_picos, 1000) * (prompt - cached)
    exact += Fraction(price.cached_picos, 1000) * cached
    exact += Fraction(price.completion_picos, 1000) * completion + Fraction(price.request_picos, 1000)
    cost = cost_nanos(price, prompt, cached, completion)
    assert 0 <= cost - exact < 1
    assert cost_nanos_min(price, prompt, completion) <= cost <= cost_nanos_max(price, prompt, completion)


def test_the_hold_and_the_expiry_take_the_dearer_and_the_cheaper_price_of_a_prompt() -> None:
    dear = Price(prompt_picos=1_000, cached_picos=3_000)
    cheap = Price(prompt_picos=3_000, cached_picos=1_000)
    for price in (dear, cheap):
        assert (cost_nanos_min(price, 10, 0), cost_nanos_max(price, 10, 0)) == (10, 30)


def test_the_greatest_cost_stays_exact_in_a_double() -> None:
    price = Price(prompt_picos=1 << 30, cached_picos=1 << 30, completion_picos=1 << 30, request_picos=1 << 40)
    assert cost_nanos_max(price, 1 << 31, 0) < 1 << 52
