"""The Bento worker with a real broker, Redis, executor and model: what becomes of a job, whoever goes away."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.adapters.rabbitmq.topology import shard_name
from penstock.lanes.executing import CRASH_POINTS
from penstock.lanes.jobs import Job, JobResult, read_result
from penstock.quota.events import EventKind
from penstock.quota.operations import State
from tests.counts import count
from tests.system.bento import Bento
from tests.system.queue_lane import QUEUE, SECRET, Executor, QueueLane, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("streams")]

KILLED_S = 60.0
SPEED = 200  # tokens per second
LONG = 400  # tokens: two seconds
ENDLESS = 4000


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueLane]:
    started = QueueLane(tmp_path_factory.mktemp("lane"))
    try:
        started.start()
        started.start_executor(tokens_per_second=SPEED)
        yield started
    finally:
        started.stop()


@pytest.fixture
def worker(lane: QueueLane) -> Iterator[Bento]:
    """A worker of its own for each test, since most end it."""
    started = lane.stream("worker", PENSTOCK_SHUTDOWN_TIMEOUT="10s")
    started.start()
    yield started
    started.stop()
    assert SECRET not in started.log.read_text()


def results(lane: QueueLane, count: int = 1) -> list[dict[str, Any]]:
    """Take so many results out of their queue, as a collector would."""
    taken: list[dict[str, Any]] = []

    def are_there() -> bool:
        taken.extend(lane.take("results"))
        return len(taken) >= count

    until(are_there, f"{count} results")
    return taken


def read(taken: dict[str, Any]) -> JobResult:
    return read_result(taken["payload"].encode())


def settle(lane: QueueLane, job: Job, result: JobResult) -> None:
    assert result.usage is not None
    lane.collect(job, result.usage)


def until_running(lane: QueueLane, job: Job) -> None:
    until(lambda: lane.look(job).running, "the job runs")


def until_empty(lane: QueueLane) -> None:
    until(lambda: lane.depth(QUEUE).get("messages") == 0, "the queue of jobs is empty")


def test_a_result_is_published_under_the_id_and_trace_of_its_job_and_the_job_is_done_with(
    lane: QueueLane, worker: Bento
) -> None:
    lane.define_acme("happy")
    job = lane.accept("happy")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    lane.publish_job(job, traceparent=trace, x_request_id="mine-1", authorization="secret")
    (taken,) = results(lane)
    result = read(taken)
    assert (result.job, result.status.value) == (job.job, "succeeded")
    assert taken["properties"]["message_id"] == job.job
    headers = taken["properties"]["headers"]
    assert headers["x-request-id"] == "mine-1"
    assert headers["traceparent"] == trace
    assert set(headers) <= {"traceparent", "tracestate", "x-request-id", "x-delivery-count"}
    until_empty(lane)
    assert lane.look(job).published
    lane.publish_job(job)
    until(lambda: worker.metric("worker_dropped_total") == 1, "the second delivery is dropped")
    settle(lane, job, result)
    assert lane.used("happy") == result.usage.prompt + result.usage.completion  # type: ignore[union-attr]


def test_worker_killed_in_mid_call_runs_the_job_again_and_it_is_billed_once(lane: QueueLane, worker: Bento) -> None:
    lane.define_acme("killed")
    job = lane.accept("killed", LONG)
    lane.publish_job(job)
    until_running(lane, job)
    worker.kill()
    worker.start()
    (taken,) = results(lane)
    settle(lane, job, read(taken))
    until_empty(lane)
    assert [event.kind for event in lane.ends("killed")] == [EventKind.POSTED]
    assert lane.used("killed") > LONG


@pytest.mark.torture
@pytest.mark.parametrize("point", CRASH_POINTS[-count(len(CRASH_POINTS), short=1) :])
def test_executor_killed_between_two_steps_runs_the_job_again_and_it_is_billed_once(
    lane: QueueLane, tmp_path: Path, point: str
) -> None:
    organisation = f"killed-{point}"
    lane.define_acme(organisation)
    job = lane.accept(organisation)
    assert lane.model is not None
    place = lane.redis_url("worker"), lane.model.url
    dying = Executor(tmp_path / "dying", *place, crash_at=f"{point}:1")
    dying.start()
    worker = lane.stream("worker", PENSTOCK_EXECUTOR_URL=dying.url)
    worker.start()
    lane.publish_job(job)
    assert dying.process is not None
    assert dying.process.wait(KILLED_S) == -signal.SIGKILL, f"it went past {point}"
    heir = Executor(tmp_path / "heir", *place, port=dying.port)
    heir.start()
    (result,) = map(read, results(lane))
    settle(lane, job, result)
    assert (result.job, lane.used(organisation)) == (job.job, result.usage.prompt + 5 if result.usage else 0)
    until_empty(lane)
    worker.stop()
    heir.stop()


def test_stop_lets_a_running_job_end(lane: QueueLane, worker: Bento) -> None:
    lane.define_acme("ending")
    job = lane.accept("ending", LONG)
    lane.publish_job(job)
    until_running(lane, job)
    worker.stop()
    (taken,) = results(lane)
    assert read(taken).status.value == "succeeded"
    until_empty(lane)
    settle(lane, job, read(taken))
    assert lane.used("ending") > LONG


def test_stop_releases_a_job_that_takes_too_long_by_one_delivery(lane: QueueLane) -> None:
    lane.define_acme("released")
    worker = lane.stream("worker", PENSTOCK_SHUTDOWN_TIMEOUT="1s")
    worker.start()
    job = lane.accept("released", ENDLESS)
    lane.publish_job(job)
    until_running(lane, job)
    worker.stop()
    until(lambda: lane.depth(QUEUE).get("messages_ready") == 1, "the job is back in its queue")
    (taken,) = lane.take(QUEUE)
    assert taken["properties"]["headers"]["x-delivery-count"] == 1
    assert lane.look(job).state is State.OPEN
    lane.void(job)
    assert lane.used("released") == 0


def test_what_is_no_job_is_a_dead_letter_at_its_first_delivery(lane: QueueLane, worker: Bento) -> None:
    lane.publish(b'{"job": "no job"}')
    dead: list[dict[str, Any]] = []

    def is_dead() -> bool:
        dead.extend(lane.take("dead"))
        return bool(dead)

    until(is_dead, "the dead letter")
    (taken,) = dead
    headers = taken["properties"]["headers"]
    assert (headers["x-first-death-reason"], headers["x-first-death-queue"]) == ("rejected", shard_name("m", 0))
    assert headers["x-death"][0]["count"] == 1
    assert json.loads(taken["payload"]) == {"job": "no job"}
    assert lane.take("results") == []


def test_executor_that_is_away_is_waited_for(lane: QueueLane, worker: Bento) -> None:
    assert lane.executor is not None
    lane.define_acme("waited")
    lane.executor.kill()
    jobs = [lane.accept("waited") for _ in range(6)]
    for job in jobs:
        lane.publish_job(job)
    until(lambda: worker.metric("worker_unanswered_total") >= 4, "the worker has tried")
    lane.executor.start()
    taken = results(lane, len(jobs))
    assert {read(each).job for each in taken} == {job.job for job in jobs}
    until_empty(lane)
    assert lane.take("dead") == []
    for each, job in zip(sorted(taken, key=lambda one: read(one).job), jobs, strict=True):
        settle(lane, job, read(each))
    assert len(lane.ends("waited")) == len(jobs)
    assert lane.used("waited") > 0


def test_redis_that_is_away_is_waited_for(lane: QueueLane, worker: Bento) -> None:
    lane.define_acme("redis")
    job = lane.accept("redis")
    lane.redis.kill()
    lane.publish_job(job)
    until(lambda: lane.depth(QUEUE).get("messages_unacknowledged") == 1, "the worker has the job")
    lane.redis.start()
    (taken,) = results(lane)
    settle(lane, job, read(taken))
    until_empty(lane)
    assert lane.take("dead") == []
    assert lane.used("redis") > 0


def test_broker_restarted_in_mid_call_loses_no_job_and_it_is_billed_once(lane: QueueLane, worker: Bento) -> None:
    lane.define_acme("broker")
    job = lane.accept("broker", LONG)
    lane.publish_job(job)
    until_running(lane, job)
    lane.broker.kill()
    lane.broker.start()
    taken = results(lane)
    assert {read(each).job for each in taken} == {job.job}
    settle(lane, job, read(taken[0]))
    until_empty(lane)
    assert [event.kind for event in lane.ends("broker")] == [EventKind.POSTED]
    assert lane.used("broker") > LONG
