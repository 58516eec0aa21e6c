"""The figures that autoscaling goes by: what a person would compute from the same inputs, and nothing that flaps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.lanes.waiting import OpenJobs
from penstock.planning.figures import Figures, Serving, figures_of
from penstock.planning.flow import BUCKET_MS, JOBS_MIN, REMEMBERED_MS, Flow, Passed
from penstock.planning.scaling import Pool

NOW_MS = 1_700_000_000_000
POOL = Pool(tokens_per_second=100, cold_start_ms=5_000, drain_ms=60_000, replicas_min=0, replicas_max=1_000)
SERVING = Serving(POOL, concurrency=4, jobs_at_once=8)


def jobs_of(
    *, tokens_held: int, jobs: int = 1, is_running: bool = False, created_at_ms: int = NOW_MS, deadline_ms: int = 0
) -> OpenJobs:
    return OpenJobs(
        model="m", jobs=jobs, tokens_held=tokens_held, is_running=is_running, created_at_ms=created_at_ms,
        deadline_ms=deadline_ms,
    )  # fmt: skip


def figures(*jobs: OpenJobs, flow: Flow | None = None, replicas: int = 0) -> Figures:
    return figures_of("m", SERVING, jobs, flow or Flow(), now_ms=NOW_MS, replicas=replicas)


def ended(flow: Flow, *, jobs: int, held: int, used: int) -> None:
    flow.add("m", at_ms=NOW_MS - 60_000, passed=Passed(queue_work=used, queue_held=held, queue_jobs=jobs))


def test_a_backlog_counts_what_its_holds_turn_out_to_use() -> None:
    flow = Flow()
    waiting = jobs_of(jobs=10, tokens_held=48_000)
    assert figures(waiting).replicas == 10  # 48,000 / (100 x 0.8 x 60 s)
    ended(flow, jobs=JOBS_MIN, held=10_000, used=2_500)
    found = figures(waiting, flow=flow)
    assert (found.inputs["used_permille"], found.inputs["backlog_tokens"], found.replicas) == (250, 12_000, 3)
    assert found.workers == 2  # ten jobs, eight at once


def test_a_share_of_too_few_jobs_is_not_believed() -> None:
    flow = Flow()
    ended(flow, jobs=JOBS_MIN - 1, held=10_000, used=100)
    assert figures(jobs_of(tokens_held=4_800), flow=flow).inputs["used_permille"] == 1_000


def test_a_job_that_waits_longer_than_the_objective_wants_more_and_one_that_runs_as_long_does_not() -> None:
    late = jobs_of(tokens_held=4_800, created_at_ms=NOW_MS - 600_000)
    assert figures(jobs_of(tokens_held=4_800)).replicas == 1
    assert figures(late).replicas == 4
    assert figures(replace(late, is_running=True)).replicas == 1


def test_a_realtime_load_that_stays_is_answered_by_one_number() -> None:
    flow = Flow()
    for bucket in range(90):
        flow.add("m", at_ms=NOW_MS - bucket * BUCKET_MS, passed=Passed(realtime_work=2_400))  # 240 tokens/s
    replicas, answers = 0, set()
    for step in range(50):
        found = figures_of("m", SERVING, (), flow, now_ms=NOW_MS, replicas=replicas)
        replicas = found.replicas
        if step:
            answers.add(replicas)
    assert answers == {3}
    assert (found.inputs["arrivals_per_second"], found.inputs["arrivals_deviation"]) == (240, 0)


def test_what_is_long_past_is_forgotten() -> None:
    flow = Flow()
    ended(flow, jobs=JOBS_MIN, held=10_000, used=100)
    assert flow.used_permille("m", now_ms=NOW_MS + REMEMBERED_MS + BUCKET_MS) == 1_000
    assert flow.arrivals("m", now_ms=NOW_MS + REMEMBERED_MS) == (0, 0)


@given(tokens=st.integers(0, 10**9), more=st.integers(0, 10**9), age_ms=st.integers(0, 10**7), running=st.booleans())
def test_more_tokens_never_want_fewer_replicas(tokens: int, more: int, age_ms: int, running: bool) -> None:
    one = figures(jobs_of(tokens_held=tokens, created_at_ms=NOW_MS - age_ms, is_running=running)).replicas
    then = figures(jobs_of(tokens_held=tokens + more, created_at_ms=NOW_MS - age_ms, is_running=running)).replicas
    assert then >= one


@pytest.mark.parametrize("asked", [5, 4, 3, 2, 1])
def test_without_load_one_replica_goes_at_a_time(asked: int) -> None:
    assert figures(replicas=asked).replicas == asked - 1
