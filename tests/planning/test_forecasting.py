"""The simulation keeps what must hold of any queue, and what theory says of those that it knows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import factorial
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.planning.forecasting.autoscaler import Autoscaler, Setting, Trigger
from penstock.planning.forecasting.choosing import alternatives, choose, fixed
from penstock.planning.forecasting.loads import SECOND_US, Generator, Load, Shape, generate, of_arrivals
from penstock.planning.forecasting.outcomes import Objective, Price, Times, outcome
from penstock.planning.forecasting.servers import Server, speeds_of
from penstock.planning.forecasting.simulation import Run, World, simulate
from penstock.planning.rehearsing.traces import Arrival
from penstock.planning.scaling import Pool
from tests.counts import count

POOL = Pool(tokens_per_second=1_000, cold_start_ms=30_000, drain_ms=60_000, replicas_min=0, replicas_max=20)
SERVER = Server(concurrency=4, prefill=1_000, decode=50)
BOTH = (Trigger.QUEUE, Trigger.TOKENS)


@st.composite
def loads(draw: st.DrawFn, *, requests_max: int = 30) -> Load:
    gaps = draw(st.lists(st.integers(0, 20 * SECOND_US), min_size=1, max_size=requests_max))
    at_us, now_us = [], 0
    for gap in gaps:
        now_us += gap
        at_us.append(now_us)
    lengths = st.integers(1, 3_000)
    prompt = draw(st.lists(lengths, min_size=len(gaps), max_size=len(gaps)))
    completion = draw(st.lists(st.integers(0, 3_000), min_size=len(gaps), max_size=len(gaps)))
    return Load(at_us=at_us, prompt=prompt, completion=completion)


servers = st.builds(
    Server,
    concurrency=st.integers(1, 8),
    prefill=st.sampled_from([0, 100, 5_000]),
    decode=st.sampled_from([0, 20, 300]),
    latency_us=st.integers(1, SECOND_US),
    at_once=st.none() | st.integers(1, 20),
)


@st.composite
def settings(draw: st.DrawFn) -> Setting:
    least = draw(st.integers(0, 4))
    return Setting(
        name="drawn",
        triggers=draw(st.sampled_from([(Trigger.QUEUE,), (Trigger.TOKENS,), BOTH])),
        replicas_min=least,
        replicas_max=max(1, least + draw(st.integers(0, 12))),
        polling_us=draw(st.integers(1, 60)) * SECOND_US,
        cooldown_us=draw(st.integers(0, 400)) * SECOND_US,
        window_us=draw(st.integers(0, 400)) * SECOND_US,
    )


def world(load: Load, server: Server = SERVER, *, pool: Pool = POOL, is_queued: bool = True) -> World:
    return World(load=load, server=server, pool=pool, is_queued=is_queued)


def always(replicas: int) -> Setting:
    return Setting(name="always", triggers=(), replicas_min=replicas, replicas_max=replicas)


def ends_us(played: World, run: Run) -> list[int]:
    return [start + whole for start, whole in zip(run.started_us, played.whole_us, strict=True)]


@pytest.mark.slow
@given(loads(), servers, settings())
def test_every_request_is_done_once_and_none_before_it_came(load: Load, server: Server, setting: Setting) -> None:
    played = world(load, server)
    run = simulate(played, setting)
    assert len(run.started_us) == len(load)
    assert all(start >= at for start, at in zip(run.started_us, load.at_us, strict=True))
    assert run.ended_us == max(ends_us(played, run))
    assert run.samples[-1].waiting == run.samples[-1].running == 0


@pytest.mark.slow
@given(loads(), servers, settings())
def test_no_more_run_at_once_than_there_were_ever_places(load: Load, server: Server, setting: Setting) -> None:
    played = world(load, server)
    run = simulate(played, setting)
    turns = sorted([(end, -1) for end in ends_us(played, run)] + [(start, 1) for start in run.started_us])
    running = most = 0
    for _, step in turns:
        running += step
        most = max(most, running)
    # one that is scaled in may still end what it runs, beside one that has come since
    assert most <= server.places(setting.replicas_max) * (1 if setting.is_fixed else 2)
    assert run.paid_us * server.concurrency >= sum(played.whole_us)


@pytest.mark.slow
@given(loads(), servers, st.integers(1, 6), st.integers(0, 6))
def test_more_replicas_never_drain_later(load: Load, server: Server, replicas: int, more: int) -> None:
    played = world(load, server)
    few, many = (simulate(played, always(count)) for count in (replicas, replicas + more))
    assert all(late >= soon for late, soon in zip(few.started_us, many.started_us, strict=True))
    assert few.ended_us >= many.ended_us


@pytest.mark.slow
@given(loads(), servers, settings())
def test_the_same_simulation_gives_the_same_run(load: Load, server: Server, setting: Setting) -> None:
    assert simulate(world(load, server), setting) == simulate(world(load, server), setting)


@pytest.mark.slow
@given(loads(), settings(), st.booleans())
def test_replicas_stay_within_their_bounds(load: Load, setting: Setting, is_queued: bool) -> None:
    if not is_queued:
        setting = replace(setting, triggers=(Trigger.TOKENS,), replicas_min=max(1, setting.replicas_min))
    for sample in simulate(world(load, is_queued=is_queued), setting).samples:
        assert setting.replicas_min <= sample.replicas <= setting.replicas_max
        assert 0 <= sample.serving <= sample.replicas


def exponential(requests: int, *, rate: float, mean_s: float, seed: int) -> tuple[Load, Server]:
    """Poisson arrivals whose answers take exponential times: one token a millisecond."""
    lengths = generate(
        Generator(shape=Shape.POISSON, requests=requests, rate=1 / mean_s, seed=seed + 1), [Arrival(0, 1, 1)]
    )
    gaps = [max(1, (after - before) // 1_000) for before, after in pairwise([*lengths.at_us, lengths.at_us[-1]])]
    load = generate(Generator(shape=Shape.POISSON, requests=requests, rate=rate, seed=seed), [Arrival(0, 1, 1)])
    return replace(load, completion=gaps), Server(concurrency=1, prefill=0, decode=1_000)


def erlang_c_wait_s(servers_there: int, *, rate: float, mean_s: float) -> float:
    """Mean wait in an M/M/c queue. Source: A. K. Erlang, 1917."""
    offered = rate * mean_s
    last = offered**servers_there / factorial(servers_there) * servers_there / (servers_there - offered)
    waits = last / (sum(offered**k / factorial(k) for k in range(servers_there)) + last)
    return waits * mean_s / (servers_there - offered)


@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "rate"), [(1, 0.7), (4, 3.2), (12, 10.0)])
def test_steady_waits_are_those_of_erlangs_formula(replicas: int, rate: float) -> None:
    load, server = exponential(60_000, rate=rate, mean_s=1.0, seed=7)
    played = world(load, server)
    run = simulate(played, always(replicas))
    mean_s = sum(map(int.__sub__, run.started_us, load.at_us)) / len(load) / SECOND_US
    assert mean_s == pytest.approx(erlang_c_wait_s(replicas, rate=rate, mean_s=1.0), rel=0.15)


@pytest.mark.slow
def test_waiting_requests_are_their_rate_times_their_wait() -> None:
    """Little's law, with the samples' average on one side and each request's own wait on the other."""
    load, server = exponential(60_000, rate=3.6, mean_s=1.0, seed=3)
    run = simulate(world(load, server), replace(always(4), polling_us=SECOND_US))
    waited_us = sum(map(int.__sub__, run.started_us, load.at_us))
    held_us = sum(before.waiting * (after.at_us - before.at_us) for before, after in pairwise(run.samples))
    assert held_us == pytest.approx(waited_us, rel=0.05)


def burst(requests: int, *, tokens: int = 500) -> Load:
    return Load(at_us=[0] * requests, prompt=[1] * requests, completion=[tokens] * requests)


def test_a_cold_pool_serves_after_its_cold_start_and_goes_back_to_zero() -> None:
    """10 s each, 4 at a time: asked for at 0 s, served from 30 s, done at 40 s, gone after the cooldown."""
    load = Load(at_us=[0, 900 * SECOND_US], prompt=[1, 1], completion=[500, 500])
    setting = Setting(name="zero", triggers=BOTH, replicas_min=0, replicas_max=4, cooldown_us=60 * SECOND_US)
    run = simulate(world(load, replace(SERVER, prefill=0)), setting)
    assert run.started_us == [30 * SECOND_US, 930 * SECOND_US]
    seen = {sample.at_us // SECOND_US: sample.replicas for sample in run.samples}
    assert [seen[at_s] for at_s in (0, 15, 45, 90, 105)] == [0, 1, 1, 1, 0]


def test_scaling_out_doubles_or_adds_four_in_fifteen_seconds() -> None:
    run = simulate(
        world(burst(4_000)), Setting(name="out", triggers=(Trigger.QUEUE,), replicas_min=1, replicas_max=100)
    )
    seen = [sample.replicas for sample in run.samples[:7]]
    assert seen == [1, 5, 10, 20, 40, 80, 100]


def test_a_value_within_a_tenth_of_its_target_changes_nothing() -> None:
    """Four at a time: 21 jobs ask for 5.25 of 5 replicas, 22 of them for one more at exactly a tenth, 23 for six."""
    long = 30_000
    for jobs, replicas in ((21, 5), (22, 5), (23, 6)):
        setting = Setting(name="near", triggers=(Trigger.QUEUE,), replicas_min=5, replicas_max=100)
        assert simulate(world(burst(jobs, tokens=long)), setting).samples[3].replicas == replicas


def test_scaling_in_waits_for_its_window_and_takes_one_at_a_time() -> None:
    load = Load(at_us=[0] * 40 + [3_600 * SECOND_US], prompt=[1] * 41, completion=[500] * 41)
    setting = Setting(name="in", triggers=(Trigger.QUEUE,), replicas_min=1, replicas_max=10, window_us=120 * SECOND_US)
    run = simulate(world(load), setting)
    gone = [(after.at_us - before.at_us, before.replicas - after.replicas) for before, after in pairwise(run.samples)]
    assert max(by for _, by in gone) == 1
    falls_us = [after.at_us for before, after in pairwise(run.samples) if after.replicas < before.replicas]
    assert all(late - soon >= 120 * SECOND_US for soon, late in pairwise(falls_us))


def test_what_is_scaled_in_is_paid_for_until_its_last_request_has_ended() -> None:
    """Four short jobs and four long ones on two replicas: one goes at once, and ends the two long ones that it runs."""
    load = Load(at_us=[0] * 8, prompt=[1] * 8, completion=[500] * 4 + [50_000] * 4)
    setting = Setting(name="in", triggers=(Trigger.QUEUE,), replicas_min=1, replicas_max=2, window_us=0)
    run = simulate(world(load, replace(SERVER, prefill=0), pool=replace(POOL, cold_start_ms=0)), setting)
    assert run.samples[-2].replicas == 1
    assert run.paid_us > 1.9 * 1_000 * SECOND_US


def test_fewer_must_be_enough_for_the_whole_window() -> None:
    autoscaler = Autoscaler(
        Setting(name="w", triggers=(Trigger.QUEUE,), replicas_min=8, replicas_max=9, window_us=120 * SECOND_US)
    )
    seen = []
    for at_s, jobs in ((0, 36), (15, 1), (60, 1), (120, 1), (121, 1)):
        autoscaler.sync(at_s * SECOND_US, [(jobs, 4)])
        seen.append(autoscaler.replicas)
    assert seen == [9, 9, 9, 9, 8]


def test_the_token_figure_asks_for_what_the_objective_needs() -> None:
    """200,000 tokens / (1,000 x 0.8 x 60 s) = 4.2; by the queue's length it would be a hundred."""
    setting = Setting(name="t", triggers=(Trigger.TOKENS,), replicas_min=0, replicas_max=200)
    assert [sample.replicas for sample in simulate(world(burst(400)), setting).samples[:2]] == [0, 5]
    by_queue = simulate(world(burst(400)), replace(setting, triggers=BOTH)).samples
    assert max(sample.replicas for sample in by_queue) > 50


@pytest.mark.parametrize("is_queued", [True, False])
def test_a_long_rest_is_passed_over_and_changes_nothing(is_queued: bool) -> None:
    """Requests after a rest of a year begin as they do after an hour; few looks are taken in between."""
    begun, looks, paid_us = [], [], []
    for rest_us in (3_600 * SECOND_US, 365 * 24 * 3_600 * SECOND_US):
        at_us = [0, 0, 0, SECOND_US]
        load = Load(at_us=at_us + [at + rest_us for at in at_us], prompt=[1] * 8, completion=[500] * 8)
        setting = Setting(name="rest", triggers=BOTH, replicas_min=0 if is_queued else 1, replicas_max=4)
        run = simulate(world(load, is_queued=is_queued), setting)
        begun.append([start - rest_us for start in run.started_us[4:]])
        paid_us.append(run.paid_us - setting.replicas_min * rest_us)
        looks.append(len(run.samples))
    assert begun[0] == begun[1]
    assert paid_us[0] == paid_us[1]
    assert looks[1] <= looks[0] < 100


def test_workers_that_take_fewer_than_the_servers_could_are_the_bound() -> None:
    capped = simulate(world(burst(100), replace(SERVER, at_once=6)), always(10))
    apart = simulate(world(burst(100), replace(SERVER, concurrency=6)), always(1))
    assert capped.started_us == apart.started_us


@pytest.mark.parametrize("concurrency", [1, 7, 64])
def test_a_full_replica_does_its_capacity(concurrency: int) -> None:
    load = of_arrivals([Arrival(0, 900, 200), Arrival(0, 30, 400)], repeat=40 * concurrency)
    load = replace(load, at_us=[0] * len(load))
    prefill, decode = speeds_of(load, tokens_per_second=2_500, concurrency=concurrency)
    played = world(load, Server(concurrency=concurrency, prefill=prefill, decode=decode))
    run = simulate(played, always(1))
    assert load.work / (run.ended_us / SECOND_US) == pytest.approx(2_500, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("shape", list(Shape))
def test_a_generated_load_has_its_rate_and_is_the_same_for_the_same_seed(shape: Shape) -> None:
    wanted = Generator(shape=shape, requests=43_200, rate=0.5, seed=4)
    lengths = [Arrival(0, 10, 20), Arrival(0, 30, 5)]
    load = generate(wanted, lengths)
    assert load == generate(wanted, lengths) != generate(replace(wanted, seed=5), lengths)
    assert len(load) == 43_200
    assert len(load) / load.lasts_s == pytest.approx(0.5, rel=0.1)
    assert all(before <= after for before, after in pairwise(load.at_us))
    assert set(zip(load.prompt, load.completion, strict=True)) == {(10, 20), (30, 5)}


def test_a_diurnal_load_is_densest_at_noon() -> None:
    load = generate(Generator(shape=Shape.DIURNAL, requests=86_400, rate=1, seed=1), [Arrival(0, 1, 1)])
    hours = [0] * 25
    for at_us in load.at_us:
        hours[min(24, at_us // (3_600 * SECOND_US))] += 1
    assert hours[12] == pytest.approx(1.8 * 3_600, rel=0.1)
    assert hours[0] < 0.5 * 3_600


def test_a_trace_that_is_repeated_goes_on_after_a_usual_gap() -> None:
    load = of_arrivals([Arrival(0, 1, 1), Arrival(1_000, 1, 1), Arrival(4_000, 1, 1)], repeat=2, speed=2)
    assert load.at_us == [0, 500_000, 2_000_000, 3_000_000, 3_500_000, 5_000_000]


@given(st.lists(st.integers(0, 10**7).map(lambda grains: grains * 100), min_size=1), st.integers(1, 100))
def test_percentiles_are_those_of_the_sorted_times(times_us: list[int], percent: int) -> None:
    rank = max(1, -(-len(times_us) * percent // 100))
    assert Times(times_us).percentile(percent) == sorted(times_us)[rank - 1]


@pytest.mark.slow
@pytest.mark.torture
def test_a_million_requests_under_every_setting_take_less_than_a_minute_of_one_core() -> None:
    requests = count(1_000_000, short=30_000)
    load = generate(Generator(shape=Shape.DIURNAL, requests=requests, rate=12, seed=1), [Arrival(0, 900, 200)])
    prefill, decode = speeds_of(load, tokens_per_second=2_500, concurrency=64)
    pool = replace(POOL, tokens_per_second=2_500)
    began_s = process_time()
    played = world(load, Server(concurrency=64, prefill=prefill, decode=decode), pool=pool)
    own = Setting(name="as configured", triggers=BOTH, replicas_min=0, replicas_max=20)
    for each in alternatives(own, played):
        outcome(played, simulate(played, each), objective=Objective(within_us=1), price=Price())
    assert process_time() - began_s < 60 * requests / 1_000_000


def test_the_cheapest_that_keeps_the_objective_is_chosen_and_others_are_named() -> None:
    played = world(generate(Generator(shape=Shape.BURSTS, requests=3_000, rate=2, seed=2), [Arrival(0, 100, 100)]))
    objective = Objective(within_us=60 * SECOND_US)
    compared = alternatives(Setting(name="as configured", triggers=BOTH, replicas_min=0, replicas_max=30), played)
    outcomes = [outcome(played, simulate(played, each), objective=objective, price=Price()) for each in compared]
    choice = choose(outcomes, objective, played)
    kept = [each.cost_usd for each in outcomes if each.is_met]
    assert kept
    assert choice.is_met
    assert outcomes[choice.chosen].cost_usd == min(kept)
    for each in outcomes:
        if each.cost_usd < min(kept):
            assert each.setting.name in " ".join(choice.reasons)


def test_an_objective_shorter_than_a_request_is_said_to_be_out_of_reach() -> None:
    played = world(burst(10))
    objective = Objective(within_us=SECOND_US)
    found = [outcome(played, simulate(played, always(10)), objective=objective, price=Price())]
    assert "no number of replicas" in " ".join(choose(found, objective, played).reasons)


def test_an_objective_that_more_replicas_would_keep_says_so() -> None:
    played = world(burst(1_000))
    objective = Objective(within_us=30 * SECOND_US)
    setting = Setting(name="few", triggers=BOTH, replicas_min=0, replicas_max=2)
    found = [
        outcome(played, simulate(played, each), objective=objective, price=Price())
        for each in (setting, fixed(setting, 2))
    ]
    assert "allow more of them" in " ".join(choose(found, objective, played).reasons)


def test_the_realtime_lane_follows_what_arrives() -> None:
    """1,000 tokens/s of capacity at 0.8; 12 answers/s of 100 tokens and their deviation want two or three replicas."""
    load = generate(Generator(shape=Shape.POISSON, requests=8_000, rate=12, seed=9), [Arrival(0, 200, 100)])
    prefill, decode = speeds_of(load, tokens_per_second=1_000, concurrency=4)
    played = world(load, Server(concurrency=4, prefill=prefill, decode=decode), is_queued=False)
    run = simulate(played, Setting(name="tokens", triggers=(Trigger.TOKENS,), replicas_min=1, replicas_max=20))
    settled = {sample.replicas for sample in run.samples if 120 * SECOND_US < sample.at_us < load.at_us[-1]}
    assert settled <= {2, 3}
