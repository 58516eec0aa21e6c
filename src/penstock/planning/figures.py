"""The figures that autoscaling goes by, with every input, so that a person can check them: from what waits to replicas.

Pure: the keeper brings what it read, ``penstock.planning.scaling`` decides, and any keeper answers with the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from penstock.lanes.waiting import OpenJobs, waiting_of
from penstock.planning.flow import PERMILLE, Flow
from penstock.planning.scaling import Due, Load, Pool, decide, workers

FAR_MS: Final = 10**12


@dataclass(frozen=True, slots=True)
class Serving:
    """A model's pool, and how many requests one replica and one worker have under way."""

    pool: Pool
    concurrency: int
    jobs_at_once: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What KEDA asks for, and why it is so.

    Args:
        at_ms: When it was computed, Unix milliseconds.
        replicas: Of the model server.
        workers: Of the queue lane.
        cause: See ``penstock.planning.scaling.Cause``.
        inputs: Everything that went in, by name; None where nobody says.
        terms: What each formula came to.
    """

    model: str
    at_ms: int
    replicas: int
    workers: int
    wanted: int
    cause: str
    is_short: bool
    inputs: Mapping[str, int | None]
    terms: Mapping[str, int]


def figures_of(
    model: str, serving: Serving, jobs: Iterable[OpenJobs], flow: Flow, *, now_ms: int, replicas: int
) -> Figures:
    """One model's figures.

    Args:
        jobs: Of this model.
        replicas: What was last asked for.
    """
    jobs, pool = tuple(jobs), serving.pool
    used_permille = flow.used_permille(model, now_ms=now_ms)
    arrivals, deviation = flow.arrivals(model, now_ms=now_ms)
    dues = tuple(_due(each, pool, used_permille, now_ms) for each in jobs)
    load = Load(backlog=dues, arrivals_per_second=arrivals, arrivals_deviation=deviation)
    decision = decide(pool, load, replicas=replicas)
    waiting = waiting_of(jobs, now_ms=now_ms)
    under_way = waiting.waiting_jobs + waiting.running_jobs
    return Figures(
        model=model,
        at_ms=now_ms,
        replicas=decision.replicas,
        workers=workers(
            replicas=decision.replicas,
            concurrency=serving.concurrency,
            jobs=under_way,
            jobs_at_once=serving.jobs_at_once,
        ),
        wanted=decision.wanted,
        cause=decision.cause,
        is_short=decision.is_short,
        inputs={
            "waiting_jobs": waiting.waiting_jobs,
            "running_jobs": waiting.running_jobs,
            "held_tokens": waiting.backlog_tokens,
            "oldest_age_ms": waiting.oldest_age_ms,
            "used_permille": used_permille,
            "backlog_tokens": load.backlog_tokens,
            "arrivals_per_second": arrivals,
            "arrivals_deviation": deviation,
            "cache_permille": load.cache_permille,
            "replicas_before": replicas,
            "tokens_per_second": pool.tokens_per_second,
            "cold_start_ms": pool.cold_start_ms,
            "drain_ms": pool.drain_ms,
            "replicas_min": pool.replicas_min,
            "replicas_max": pool.replicas_max,
            "concurrency": serving.concurrency,
            "jobs_at_once": serving.jobs_at_once,
        },
        terms={
            "backlog_permille": decision.backlog_permille,
            "deadline_permille": decision.deadline_permille,
            "arrivals_permille": decision.arrivals_permille,
            "cache": decision.cache,
        },
    )


def _due(jobs: OpenJobs, pool: Pool, used_permille: int, now_ms: int) -> Due:
    """What runs needs its place, and no more replicas: none could make it faster, however late it is."""
    tokens = -(-jobs.tokens_held * used_permille // PERMILLE)
    if jobs.is_running:
        return Due(tokens=tokens, objective_in_ms=pool.drain_ms, deadline_in_ms=FAR_MS)
    accepted_ms = jobs.created_at_ms or now_ms
    return Due(
        tokens=tokens,
        objective_in_ms=accepted_ms + pool.drain_ms - now_ms,
        deadline_in_ms=jobs.deadline_ms - now_ms if jobs.deadline_ms else FAR_MS,
    )
