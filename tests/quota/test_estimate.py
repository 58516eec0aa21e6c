"""Strict sizes are bounds, learned sizes are what such requests used, and never more than the bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.quota import Model, ReservePolicy
from penstock.quota.estimate import (
    BODY_UNBOUNDED,
    EDGES,
    Estimator,
    completion_q95,
    learned_prompt,
    observe,
    strict_prompt,
)
from tests.quota.desk import Desk

MODEL = Model(name="m", context=1_000, template_tokens=7, tokens_per_byte_max=3)


def seen(completions: list[int], *, prompt: int = 10, body_bytes: int = 40) -> Estimator:
    estimator = Estimator()
    for completion in completions:
        observe(estimator, prompt=prompt, completion=completion, body_bytes=body_bytes)
    return estimator


def test_a_prompt_is_bounded_by_its_bytes_then_by_the_context_of_each() -> None:
    assert strict_prompt(MODEL, 100, 1, None) == 300 + 7
    assert strict_prompt(MODEL, 333, 1, None) == 999 + 7
    assert strict_prompt(MODEL, 334, 1, None) == 1_000 + 7
    assert strict_prompt(MODEL, 334, 2, None) == 1_002 + 14
    assert strict_prompt(MODEL, BODY_UNBOUNDED, 3, None) == 3_000 + 21


def test_a_prompt_that_was_counted_is_its_own_bound() -> None:
    assert strict_prompt(MODEL, 5, 1, 123) == 123
    assert strict_prompt(MODEL, 5, 1, 0) == 0


def test_the_edges_are_64_and_rise() -> None:
    assert len(EDGES) == 64
    assert list(EDGES) == sorted(set(EDGES))
    assert (EDGES[0], EDGES[1], EDGES[-2], EDGES[-1]) == (16, 18, 196_043, 1 << 31)


def test_below_20_samples_nothing_is_claimed() -> None:
    assert completion_q95(seen([100] * 19)) is None
    assert learned_prompt(seen([100] * 19), 40) is None
    assert completion_q95(seen([100] * 20)) == 106
    assert learned_prompt(seen([100] * 20), 40) == 10


def test_q95_is_the_smallest_edge_that_covers_95_of_100() -> None:
    assert completion_q95(seen([16] * 95 + [5_000] * 5)) == 16
    assert completion_q95(seen([16] * 94 + [5_000] * 6)) == next(edge for edge in EDGES if edge >= 5_000)
    assert completion_q95(seen([17] * 20)) == 18


def test_the_estimator_forgets_by_halving_at_1024() -> None:
    estimator = seen([100] * 1_023)
    assert (estimator.count, estimator.prompt_tokens, estimator.prompt_bytes) == (1_023, 10_230, 40_920)
    observe(estimator, prompt=10, completion=16, body_bytes=40)
    assert estimator.count == sum(estimator.bins) == 511
    assert (estimator.prompt_tokens, estimator.prompt_bytes) == (5_120, 20_480)


def test_a_body_that_says_nothing_about_its_prompt_teaches_nothing_about_it() -> None:
    estimator = seen([100] * 20, body_bytes=BODY_UNBOUNDED)
    assert learned_prompt(estimator, 100) is None
    assert completion_q95(estimator) == 106
    assert (estimator.prompt_tokens, estimator.prompt_bytes) == (0, 0)


def test_nothing_is_claimed_of_a_prompt_that_its_bytes_do_not_bound() -> None:
    assert learned_prompt(seen([100] * 20), BODY_UNBOUNDED) is None
    assert learned_prompt(seen([100] * 20), BODY_UNBOUNDED - 1) == 536_870_912


def test_the_prompt_ratio_is_rounded_up_twice() -> None:
    assert learned_prompt(seen([1] * 20, prompt=1, body_bytes=3), 1_000) == 334
    assert learned_prompt(seen([1] * 20, prompt=1, body_bytes=3), 1) == 1


@given(st.lists(st.integers(0, 1 << 31), min_size=20, max_size=60))
def test_q95_covers_95_of_100_and_the_edge_below_does_not(completions: list[int]) -> None:
    q95 = completion_q95(seen(completions))
    assert q95 is not None
    assert 100 * sum(each <= q95 for each in completions) >= 95 * len(completions)
    below = [edge for edge in EDGES if edge < q95]
    assert not below or 100 * sum(each <= below[-1] for each in completions) < 95 * len(completions)


def learned() -> Desk:
    desk = Desk({"acme/tokens/day": 1_000_000}, reserve=ReservePolicy.LEARNED)
    for number in range(20):
        desk.reserve(f"r{number}", prompt_tokens=None, outputs_bound=2_000)
        desk.settle(f"r{number}", 50, 100)
    return desk


def test_learned_holds_what_such_requests_used() -> None:
    desk = learned()
    assert desk.reserve("next", prompt_tokens=None, outputs_bound=2_000).tokens_held == 50 + 106
    assert desk.reserve("exact", prompt_tokens=60, outputs_bound=2_000).tokens_held == 60 + 106


def test_learned_never_holds_more_than_strict() -> None:
    desk = learned()
    assert desk.reserve("small", prompt_tokens=None, outputs_bound=5).tokens_held == 50 + 5
    assert desk.reserve("even", prompt_tokens=None, outputs_bound=106).tokens_held == 50 + 106
    assert desk.reserve("image", prompt_tokens=None, body_bytes=BODY_UNBOUNDED, outputs_bound=5).tokens_held == 8_207
    for number in range(100):
        desk.reserve(f"x{number}", prompt_tokens=None, body_bytes=1)
        desk.settle(f"x{number}", 8_000, 40)
    assert desk.reserve("tiny", prompt_tokens=None, body_bytes=10, outputs_bound=5).tokens_held == 20 + 5


def test_learned_learns_each_model_apart_and_from_late_settles_too() -> None:
    desk = learned()
    assert desk.reserve("other", model="other", prompt_tokens=None, outputs_bound=2_000).tokens_held == 100 + 2_000
    assert desk.organisation.estimators["m"].count == 20
    desk.reserve("late")
    desk.later(60_000).settle("late", 50, 100)
    assert desk.organisation.estimators["m"].count == 21


def test_strict_learns_nothing_and_posts_teach_nothing() -> None:
    desk = Desk({"acme/tokens/day": 1_000_000})
    desk.reserve()
    desk.settle()
    assert desk.organisation.estimators == {}
    assert learned().post("lost").state == "posted"


def test_learned_without_any_sample_holds_the_bound() -> None:
    desk = Desk({"acme/tokens/day": 1_000_000}, reserve=ReservePolicy.LEARNED)
    assert desk.reserve(prompt_tokens=None, outputs_bound=2_000).tokens_held == 510 + 2_000
