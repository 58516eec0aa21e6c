"""Whoever has much waiting, or may not run, delays nobody else: the real lane, from the gateway to the results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from penstock.adapters.http import HttpClient
from penstock.lanes.jobs import JobResult, read_result
from penstock.ports import UpstreamRequest
from penstock.quota.definitions import Kind, Metric
from penstock.quota.events import EventKind
from tests.counts import count
from tests.system.bento import VHOST, Bento, Gateway
from tests.system.queue_lane import QUEUE, QueueLane, now_ms, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("streams")]

SPEED = 200  # tokens per second
SERVICE_MS = 2_000
PLACES = 8  # of the lane's executor
DAY = (Metric.TOKENS, Kind.WINDOW, 86_400_000, 1 << 50)
AT_ONCE = 48
DELIVERIES = 5  # of one message, as the lane's bounds have it


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueueLane]:
    started = QueueLane(tmp_path_factory.mktemp("fair"))
    try:
        started.start()
        started.start_executor(tokens_per_second=SPEED)
        for name in ("penstock-parked-5s", "penstock-parked-30s"):  # as long as they need to be seen
            policy = started.manage("GET", "policies", VHOST, name)
            policy["definition"]["message-ttl"] = 300
            started.manage("PUT", "policies", VHOST, name, body=policy)
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def gateway(lane: QueueLane) -> Iterator[Gateway]:
    started = Gateway(lane.folder / "gateway", lane)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def worker(lane: QueueLane) -> Iterator[Bento]:
    """Started by the test; what it left is thrown away."""
    made = lane.stream("worker", PENSTOCK_CONCURRENCY=str(PLACES), PENSTOCK_SHUTDOWN_TIMEOUT="1s")
    yield made
    if made.process is not None:
        made.kill()
    for queue in lane.manage("GET", "queues", VHOST):
        lane.manage("DELETE", "queues", VHOST, queue["name"], "contents")


def body(tokens: int) -> bytes:
    asked = {
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens,
        "metadata": {"simulate": f"tokens={tokens}"},
    }  # fmt: skip
    return json.dumps(asked).encode()


def hand_in(gateway: Gateway, key: str, jobs: int, tokens: int) -> list[str]:
    """So many jobs, all of which must be accepted; their ids."""

    async def main() -> list[str]:
        client, places = HttpClient(), asyncio.Semaphore(AT_ONCE)

        async def one() -> str:
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            async with places:
                request = UpstreamRequest(
                    method="POST", url=gateway.url(), headers=headers, body=body(tokens), total_s=60.0
                )
                response = await client.open(request)
                raw = await response.read(100_000)
                response.close()
            assert response.status == 202, raw
            return str(json.loads(raw)["id"])

        try:
            return list(await asyncio.gather(*(one() for _ in range(jobs))))
        finally:
            await client.close()

    return asyncio.run(main())


def result_of(lane: QueueLane, job: str, seen: dict[str, JobResult]) -> JobResult:
    """The job's result, once it is there."""

    def is_there() -> bool:
        for taken in lane.take("results"):
            result = read_result(taken["payload"].encode())
            seen[result.job] = result
        return job in seen

    until(is_there, f"the result of {job}")
    return seen[job]


def started_after_ms(lane: QueueLane, gateway: Gateway, key: str, seen: dict[str, JobResult], tokens: int = 2) -> int:
    """How long one job of this key waited until it began to run."""
    accepted_at_ms = now_ms()
    (job,) = hand_in(gateway, key, 1, tokens)
    result = result_of(lane, job, seen)
    assert result.status == "succeeded"
    return result.started_at_ms - accepted_at_ms


@pytest.mark.torture
def test_a_single_job_starts_within_a_few_service_times_of_anothers_fifty_thousand(
    lane: QueueLane, gateway: Gateway, worker: Bento, record_property: Callable[[str, str], None]
) -> None:
    many, single = lane.define("many", DAY, shard=0), lane.define("single", DAY, shard=1)
    jobs = count(50_000, short=500)
    hand_in(gateway, many, jobs, tokens=SPEED * SERVICE_MS // 1000)
    worker.start()
    at_hand = "messages_unacknowledged"
    until(lambda: lane.depth(QUEUE).get(at_hand) == PLACES, "all places are taken")  # inspecting 50,000 takes too long
    seen: dict[str, JobResult] = {}
    waited_ms = [started_after_ms(lane, gateway, single, seen) for _ in range(3)]
    told = f"{jobs} jobs before them, {SERVICE_MS} ms each, {PLACES} at once: started after {waited_ms} ms"
    record_property("fairness", told)
    assert max(waited_ms) < 3 * SERVICE_MS, told
    until(lambda: lane.depth(QUEUE).get(at_hand) == PLACES, "no place stays free")


@pytest.mark.parametrize(
    "limit",
    [(Metric.REQUESTS, Kind.STRICT_RATE, 60_000, 1), (Metric.CONCURRENCY, Kind.CONCURRENCY, 0, 1)],
    ids=["rate", "frozen"],
)
def test_an_organisation_that_may_not_run_delays_nobody_and_loses_nothing(
    lane: QueueLane, gateway: Gateway, worker: Bento, limit: Any, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    limited = lane.define(f"{name}-limited", DAY, limit, shard=0)
    apart = lane.define(f"{name}-apart", DAY, shard=1)
    neighbour = lane.define(f"{name}-neighbour", DAY, shard=0)
    hand_in(gateway, limited, 1, tokens=4000 if name == "frozen" else 2)
    worker.start()
    begun = EventKind.ACQUIRED  # asked of the record: a short job has already ended
    until(lambda: any(event.kind is begun for event in lane.events(f"{name}-limited")), "it has begun")
    waiting = hand_in(gateway, limited, 12, tokens=2)
    seen: dict[str, JobResult] = {}
    waited_ms = [started_after_ms(lane, gateway, apart, seen) for _ in range(5)]
    assert max(waited_ms) < 3 * SERVICE_MS, f"12 jobs that may not run beside it: one started after {waited_ms} ms"
    often = len(waiting) if name == "frozen" else (DELIVERIES + 1) * len(waiting)
    until(lambda: worker.metric("worker_parked_total") > often, "they were parked, and came back")
    started_after_ms(lane, gateway, neighbour, seen)
    assert lane.depth("dead").get("messages", 0) == 0
    lane.define(f"{name}-limited", DAY, (*limit[:3], 100_000), shard=0, version=2)
    for job in waiting:
        assert result_of(lane, job, seen).status == "succeeded"


def test_what_may_wait_is_bounded_at_the_door_and_free_again_when_jobs_begin(
    lane: QueueLane, gateway: Gateway, worker: Bento
) -> None:
    key = lane.define("bounded", DAY, (Metric.REQUESTS, Kind.ENQUEUED, 0, 3))
    jobs = hand_in(gateway, key, 3, tokens=2)
    refused = gateway.post(key, body(2))
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    error = refused.body["error"]
    assert (error["code"], error["message"]) == (
        "rate_limit_exceeded",
        "bounded/requests/enqueued: needs 1 requests, 0 left, more is held by jobs that have not begun; retry in 1 s",
    )
    worker.start()
    seen: dict[str, JobResult] = {}
    for job in jobs:
        result_of(lane, job, seen)
    hand_in(gateway, key, 1, tokens=2)
