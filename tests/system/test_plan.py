"""What ``penstock plan`` simulates is what the real queue lane does: RabbitMQ, gateway, worker, executor."""

from __future__ import annotations

import random

import pytest

from tests.system import drained
from tests.system.clusters import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

DECODE = 200  # tokens per second, of the cluster's simulated model
AT_ONCE = 4  # `queue.concurrency` of its one executor
JOBS = 32
TOKENS = (200, 300)  # 1 to 1.5 s each: what the lane costs for a job, and who comes last, is small beside it
WITHIN = 0.15


@pytest.mark.parametrize("seed", [11])
def test_a_burst_of_jobs_drains_as_it_is_simulated(cluster: Cluster, seed: int) -> None:
    source = random.Random(seed)
    courses = drained.sent(cluster, [source.randint(*TOKENS) for _ in range(JOBS)])
    really = drained.measured(courses)
    said = drained.simulated(courses, decode=DECODE, at_once=AT_ONCE)
    told = f"{drained.overhead_us(courses, decode=DECODE)} us for each job beyond the model's time: {courses}"
    assert really.whole_us == pytest.approx(said.whole_us, rel=WITHIN), told
    assert really.percentiles_us == pytest.approx(said.percentiles_us, rel=WITHIN), told
