"""Which server takes the next request."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from penstock.lanes.upstreams import (
    EJECTED_FIRST_S,
    EJECTED_MOST_S,
    FAILURES_MAX,
    RETRIES_MOST,
    RETRY_COST,
    SEEN_MIN,
    Balance,
    RetryBudget,
    Verdict,
)


def fail(balance: Balance, index: int, *, now_s: float = 0.0, times: int = FAILURES_MAX) -> list[bool | None]:
    others = {0, 1, 2} - {index}
    results = []
    for _ in range(times):
        assert balance.pick(now_s=now_s, avoid=others) == index
        results.append(balance.done(index, Verdict.FAILED, now_s=now_s))
    return results


def test_the_least_busy_one_is_first() -> None:
    balance = Balance([1, 1, 1])
    assert sorted(balance.pick(now_s=0) for _ in range(3)) == [0, 1, 2]  # type: ignore[type-var]
    balance.done(1, Verdict.WORKED, now_s=0)
    assert balance.pick(now_s=0) == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_equally_busy_ones_share_by_weight(weights: list[int]) -> None:
    balance = Balance(weights)
    chosen: Counter[int | None] = Counter()
    for _ in range(sum(weights) * 3):
        index = balance.pick(now_s=0)
        chosen[index] += 1
        balance.done(index or 0, Verdict.WORKED, now_s=0)
    assert chosen == {index: weight * 3 for index, weight in enumerate(weights)}


def test_three_failures_in_a_row_eject_and_a_success_between_does_not() -> None:
    balance = Balance([1, 1])
    assert fail(balance, 0, times=2) == [None, None]
    balance.pick(now_s=0, avoid={1})
    balance.done(0, Verdict.WORKED, now_s=0)
    assert fail(balance, 0, times=3) == [None, None, False]
    assert {balance.pick(now_s=0) for _ in range(5)} == {1}


def test_an_ejected_one_is_tried_by_one_request_after_its_time_and_comes_back() -> None:
    balance = Balance([1, 1])
    fail(balance, 0)
    later_s = EJECTED_FIRST_S
    picks = [balance.pick(now_s=later_s) for _ in range(4)]
    assert picks.count(0) == 1
    assert balance.done(0, Verdict.WORKED, now_s=later_s) is True
    assert balance.pick(now_s=later_s) == 0


def test_each_failed_trial_doubles_the_wait_up_to_a_bound() -> None:
    balance = Balance([1, 1])
    fail(balance, 0)
    now_s, waits = 0.0, []
    for wait_s in (1, 2, 4, 8, 16, 32, 60, 60):
        waits.append(wait_s)
        assert balance.pick(now_s=now_s + wait_s - 0.001) == 1
        balance.done(1, Verdict.WORKED, now_s=now_s)
        now_s += wait_s
        assert fail(balance, 0, now_s=now_s, times=1) == [None]
    assert max(waits) == EJECTED_MOST_S


def test_a_trial_that_showed_nothing_is_repeated() -> None:
    balance = Balance([1, 1])
    fail(balance, 0)
    assert balance.pick(now_s=1, avoid={1}) == 0
    balance.done(0, Verdict.NOTHING, now_s=1)
    assert balance.pick(now_s=1) == 0


def test_when_all_are_ejected_the_first_to_come_back_is_tried_anyway() -> None:
    balance = Balance([1, 1])
    fail(balance, 1, now_s=0.0)
    fail(balance, 0, now_s=0.5)
    assert balance.pick(now_s=0.6) == 1


def test_none_is_left_when_all_are_to_be_avoided() -> None:
    assert Balance([1, 1]).pick(now_s=0, avoid={0, 1}) is None


def test_one_that_fails_every_other_request_is_ejected_though_never_thrice_in_a_row() -> None:
    balance = Balance([1, 1])
    ejected_after = 0
    for number in range(1, 100):
        assert balance.pick(now_s=0, avoid={1}) == 0
        verdict = Verdict.FAILED if number % 2 == 0 else Verdict.WORKED
        if balance.done(0, verdict, now_s=0) is False:
            ejected_after = number
            break
    assert ejected_after == SEEN_MIN


def test_one_that_fails_a_third_of_its_requests_stays() -> None:
    balance = Balance([1, 1])
    for number in range(90):
        balance.pick(now_s=0, avoid={1})
        assert balance.done(0, Verdict.FAILED if number % 3 == 0 else Verdict.WORKED, now_s=0) is None


def test_an_old_record_counts_no_longer_once_it_is_back() -> None:
    balance = Balance([1, 1])
    fail(balance, 0)
    assert balance.pick(now_s=EJECTED_FIRST_S) in (0, 1)
    balance.pick(now_s=EJECTED_FIRST_S)
    assert balance.done(0, Verdict.WORKED, now_s=EJECTED_FIRST_S) is True
    assert fail(balance, 0, times=2) == [None, None]


def test_a_trial_whose_client_left_shows_nothing_and_another_may_try() -> None:
    balance = Balance([1, 1])
    fail(balance, 0)
    assert 0 in [balance.pick(now_s=EJECTED_FIRST_S) for _ in range(2)]
    assert balance.done(0, Verdict.NOTHING, now_s=EJECTED_FIRST_S) is None
    assert 0 in [balance.pick(now_s=EJECTED_FIRST_S) for _ in range(3)]


def test_a_fifth_of_the_requests_may_be_sent_again_and_ten_at_once() -> None:
    budget = RetryBudget()
    assert [budget.spend() for _ in range(RETRIES_MOST + 1)] == [True] * RETRIES_MOST + [False]
    again = 0
    for _ in range(1000):
        budget.earn()
        again += budget.spend()
    assert again == 1000 // RETRY_COST
