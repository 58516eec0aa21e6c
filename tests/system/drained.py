"""How a burst of jobs drains through the real queue lane, and how the simulation says that it does."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from statistics import mean

from penstock.planning.forecasting.autoscaler import Setting
from penstock.planning.forecasting.loads import SECOND_US, Load
from penstock.planning.forecasting.outcomes import SHOWN, Times
from penstock.planning.forecasting.servers import Server
from penstock.planning.forecasting.simulation import World, simulate
from penstock.planning.scaling import Pool
from tests.system.clusters import Cluster

FIXED = Setting(name="as it is", triggers=(), replicas_min=1, replicas_max=1, polling_us=SECOND_US)


@dataclass(frozen=True)
class Course:
    """One job, in microseconds: when it was accepted, when it began, when it ended; and the tokens of its answer."""

    accepted_us: int
    began_us: int
    ended_us: int
    tokens: int


@dataclass(frozen=True)
class Drained:
    """A burst: how long all of it took, and percentiles of the time from a job's acceptance to its end."""

    whole_us: int
    percentiles_us: tuple[int, ...]


def sent(cluster: Cluster, lengths: Sequence[int]) -> list[Course]:
    """Hand jobs in as fast as they are accepted, and wait for all of them; by acceptance."""
    with cluster.client() as client, ThreadPoolExecutor(8) as pool:
        jobs = list(
            pool.map(lambda tokens: cluster.submit(client, simulate=f"tokens={tokens}", max_tokens=tokens), lengths)
        )
        ended = [cluster.ended(client, job) for job in jobs]
    assert {each["status"] for each in ended} == {"succeeded"}
    found = []
    for each in ended:
        times = (datetime.fromisoformat(each[name]) for name in ("created_at", "started_at", "finished_at"))
        accepted_us, began_us, ended_us = (round(time.timestamp() * SECOND_US) for time in times)
        found.append(Course(accepted_us, began_us, ended_us, each["usage"]["completion_tokens"]))
    return sorted(found, key=lambda course: course.accepted_us)


def measured(courses: Sequence[Course]) -> Drained:
    """What was seen."""
    times = Times(course.ended_us - course.accepted_us for course in courses)
    return Drained(
        max(course.ended_us for course in courses) - courses[0].accepted_us, tuple(map(times.percentile, SHOWN))
    )


def overhead_us(courses: Sequence[Course], *, decode: int) -> int:
    """What each job took beyond the model server's own time, on average: what this lane costs on this machine now."""
    return max(0, round(mean(each.ended_us - each.began_us - each.tokens * SECOND_US / decode for each in courses)))


def simulated(courses: Sequence[Course], *, decode: int, at_once: int) -> Drained:
    """What the simulation says of the same jobs, accepted when they were; how long they wait is for it to find."""
    load = Load(
        at_us=[course.accepted_us - courses[0].accepted_us for course in courses],
        prompt=[1] * len(courses),
        completion=[course.tokens for course in courses],
    )
    latency_us = overhead_us(courses, decode=decode)
    server = Server(concurrency=at_once, prefill=0, decode=decode, latency_us=latency_us)
    pool = Pool(tokens_per_second=decode, cold_start_ms=0, drain_ms=1, replicas_min=1, replicas_max=1)
    world = World(load=load, server=server, pool=pool, is_queued=True)
    run = simulate(world, FIXED)
    starts = zip(run.started_us, world.whole_us, load.at_us, strict=True)
    times = Times(start + whole - at for start, whole, at in starts)
    return Drained(run.ended_us, tuple(map(times.percentile, SHOWN)))
