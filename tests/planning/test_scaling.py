"""The arithmetic of scaling: more load never wants fewer, dues are met in simulation, nothing flaps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.planning.scaling import Cause, Due, Load, Pool, decide, workers

POOL = Pool(tokens_per_second=2_500, cold_start_ms=10_000, drain_ms=60_000, replicas_min=0, replicas_max=10_000)

speeds = st.integers(1, 100_000)
dues = st.builds(
    Due,
    tokens=st.integers(0, 10**7),
    objective_in_ms=st.integers(-(10**6), 10**6),
    deadline_in_ms=st.integers(-(10**6), 10**8),
)
loads = st.builds(
    Load,
    backlog=st.lists(dues, max_size=6).map(tuple),
    arrivals_per_second=st.integers(0, 10**6),
    arrivals_deviation=st.integers(0, 10**6),
    cache_permille=st.none() | st.integers(0, 1_000),
)
pools = st.builds(
    lambda speed, cold, drain, least, more: Pool(
        tokens_per_second=speed,
        cold_start_ms=cold,
        drain_ms=drain,
        replicas_min=least,
        replicas_max=max(1, least + more),
    ),
    speeds,
    st.integers(0, 600_000),
    st.integers(1, 600_000),
    st.integers(0, 50),
    st.integers(0, 200),
)
there = st.integers(0, 300)


def due(tokens: int, objective_in_ms: int, deadline_in_ms: int = 10**8) -> Due:
    return Due(tokens=tokens, objective_in_ms=objective_in_ms, deadline_in_ms=deadline_in_ms)


def test_a_backlog_wants_what_drains_it_in_time_at_four_fifths_of_full_speed() -> None:
    # 300,000 tokens / (2,500 x 0.8 x 60 s) = 2.5
    decision = decide(POOL, Load(backlog=(due(300_000, 60_000),)), replicas=0)
    assert (decision.replicas, decision.backlog_permille, decision.cause) == (3, 2_500, Cause.BACKLOG)


def test_a_deadline_does_not_count_the_cold_start() -> None:
    # 300,000 / (2,500 x 0.8 x (40 s - 10 s)) = 5; the objective, here later than the deadline, wants 2.5
    decision = decide(POOL, Load(backlog=(due(300_000, 60_000, 40_000),)), replicas=0)
    assert (decision.replicas, decision.deadline_permille, decision.cause) == (5, 5_000, Cause.DEADLINE)


def test_arrivals_are_prepared_for_two_deviations_above_their_mean() -> None:
    decision = decide(POOL, Load(arrivals_per_second=4_000, arrivals_deviation=1_000), replicas=0)
    assert (decision.replicas, decision.arrivals_permille, decision.cause) == (3, 3_000, Cause.ARRIVALS)


def test_a_full_cache_wants_more_replicas_than_there_are() -> None:
    decision = decide(POOL, Load(cache_permille=900), replicas=4)
    assert (decision.replicas, decision.cause) == (5, Cause.CACHE)  # 4 x 0.9 / 0.8 = 4.5


def test_bounds_hold_and_a_shortage_is_said() -> None:
    pool = replace(POOL, replicas_min=1, replicas_max=2)
    assert decide(pool, Load(), replicas=0).replicas == 1
    short = decide(pool, Load(backlog=(due(300_000, 60_000),)), replicas=1)
    assert (short.replicas, short.wanted, short.cause, short.is_short) == (2, 3, Cause.MAXIMUM, True)


@pytest.mark.parametrize("bounds", [(2, 1), (-1, 1), (0, 0)])
def test_bounds_that_no_pool_can_have_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="replicas"):
        replace(POOL, replicas_min=bounds[0], replicas_max=bounds[1])


@given(pools, loads, there, dues, st.integers(0, 10**5), st.integers(0, 10**5))
def test_more_load_never_gives_fewer_replicas(
    pool: Pool, load: Load, replicas: int, more: Due, rate: int, deviation: int
) -> None:
    heavier = Load(
        backlog=(*load.backlog, more),
        arrivals_per_second=load.arrivals_per_second + rate,
        arrivals_deviation=load.arrivals_deviation + deviation,
        cache_permille=load.cache_permille,
    )
    assert decide(pool, heavier, replicas=replicas).replicas >= decide(pool, load, replicas=replicas).replicas


@given(pools, loads, there, st.integers(0, 10**6))
def test_less_time_never_gives_fewer_replicas(pool: Pool, load: Load, replicas: int, sooner_ms: int) -> None:
    sooner = tuple(
        replace(each, objective_in_ms=each.objective_in_ms - sooner_ms, deadline_in_ms=each.deadline_in_ms - sooner_ms)
        for each in load.backlog
    )
    hurried = replace(load, backlog=sooner)
    assert decide(pool, hurried, replicas=replicas).replicas >= decide(pool, load, replicas=replicas).replicas


@given(pools, loads, there)
def test_replicas_stay_within_their_bounds(pool: Pool, load: Load, replicas: int) -> None:
    assert pool.replicas_min <= decide(pool, load, replicas=replicas).replicas <= pool.replicas_max


@given(pools, loads, there)
def test_a_load_that_stays_is_answered_by_one_number_in_the_end(pool: Pool, load: Load, replicas: int) -> None:
    """Only ever out and then in, or in and then still: the sequence turns at most once and stops."""
    load = replace(load, cache_permille=None)  # which moves with the replicas; see the next test
    seen = [replicas]
    while len(seen) < 400:
        seen.append(decide(pool, load, replicas=seen[-1]).replicas)
        if seen[-1] == seen[-2]:
            break
    assert seen[-1] == seen[-2]
    steps = [after - before for before, after in pairwise(seen[1:])]
    assert all(step <= 0 for step in steps), seen


@given(st.integers(1, 200), st.integers(0, 1_000))
def test_a_cache_that_is_spread_over_fewer_does_not_flap(replicas: int, cache_permille: int) -> None:
    total = replicas * cache_permille
    seen = [replicas]
    while len(seen) < 400:
        load = Load(cache_permille=min(1_000, total // seen[-1]) if seen[-1] else 0)
        seen.append(decide(replace(POOL, replicas_min=1), load, replicas=seen[-1]).replicas)
    assert seen[-1] == seen[-2] == seen[-3]


def drained_ms(pool: Pool, tokens: int, *, tick_ms: int = 1_000) -> tuple[int, list[int]]:
    """How long a backlog takes that comes at once to an empty pool, decided anew each tick."""
    left, asked, now_ms = tokens * 1_000, [], 0
    serving: list[int] = []  # when each replica began, or will
    while left > 0:
        load = Load(backlog=(due(-(-left // 1_000), pool.drain_ms - now_ms),))
        wanted = decide(pool, load, replicas=len(serving)).replicas
        serving = sorted(serving)[:wanted]
        serving += [now_ms + pool.cold_start_ms] * (wanted - len(serving))
        asked.append(wanted)
        now_ms += tick_ms
        left -= sum(1 for since in serving if since <= now_ms - tick_ms) * pool.tokens_per_second * tick_ms
        assert now_ms < 100 * pool.drain_ms, "it is never drained"
    return now_ms, asked


@given(st.integers(1, 10**7), st.integers(0, 12))
def test_a_backlog_is_drained_within_its_objective(tokens: int, cold_s: int) -> None:
    """With a cold start of at most a fifth of the objective, which is what the headroom pays for."""
    took_ms, asked = drained_ms(replace(POOL, cold_start_ms=cold_s * 1_000), tokens)
    assert took_ms <= POOL.drain_ms + 1_000
    turns = sum(
        1 for one, two, three in zip(asked, asked[1:], asked[2:], strict=False) if (two - one) * (three - two) < 0
    )
    assert turns <= 1, asked


def test_workers_keep_the_model_servers_busy_and_no_more() -> None:
    assert workers(replicas=2, concurrency=64, jobs=0, jobs_at_once=4) == 0
    assert workers(replicas=2, concurrency=64, jobs=1, jobs_at_once=4) == 1
    assert workers(replicas=2, concurrency=64, jobs=50_000, jobs_at_once=4) == 32
    assert workers(replicas=0, concurrency=64, jobs=50_000, jobs_at_once=4) == 16
