"""``penstock execute`` with a real Redis and a model server: killed, cancelled, stopped, and billed once each time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from penstock.adapters.redis.address import read_address
from penstock.adapters.redis.client import RedisClient
from penstock.adapters.redis.library import load_library
from penstock.adapters.redis.outbox import Outbox
from penstock.adapters.redis.store import open_store
from penstock.lanes.jobs import Job, JobResult, JobStatus, read_result, write_job
from penstock.quota import (
    Definitions,
    Key,
    Kind,
    Lane,
    Limit,
    Metric,
    Model,
    Price,
    reservation_id,
)
from penstock.quota.events import Event, EventKind
from penstock.quota.operations import (
    Call,
    Cancel,
    Define,
    Done,
    Inspect,
    Inspected,
    Look,
    Published,
    Ready,
    Reserve,
    Reserved,
    Seen,
    Settle,
    Settled,
    State,
)
from tests.system.programs import Program, SimulatedModel, answers_200
from tests.system.services import Redis, free_port, wait_until

pytestmark = pytest.mark.slow

A = TypeVar("A")
TOKENS = 200
DECODE = 40  # tokens per second: an answer takes 5 s
LONG = 2000
BOUND_S = 60


class Execute(Program):
    """``penstock execute`` on a Redis and a model, ``m``."""

    def __init__(self, folder: Path, redis_url: str, model_url: str) -> None:
        self.port, operations_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.operations_url = f"http://127.0.0.1:{operations_port}"
        folder.mkdir(parents=True)
        (folder / "penstock.yaml").write_text(
            f"models: {{m: {{upstream: '{model_url}', context: 4096}}}}\n"
            "plans: {p: {limits: [1M tokens/day]}}\n"
            "organisations: {acme: {plan: p}}\n"
            "server: {data_directory: data, shutdown: 1s}\n"
            f"stores: {{redis: {{url: '{redis_url}'}}, postgresql: {{url: 'postgresql://127.0.0.1/penstock'}},\n"
            "  rabbitmq: {url: 'amqp://127.0.0.1', management: 'http://127.0.0.1:15672'}}\n"
        )
        super().__init__(
            folder, "execute", "--port", str(self.port), "--operations-port", str(operations_port),
            "--log-format", "json",
        )  # fmt: skip

    def is_ready(self) -> bool:
        return answers_200(f"{self.url}/ready")

    def deliver(self, job: Job) -> tuple[int, bytes]:
        """What a worker does: send the message, and read what became of it."""
        asked = Request(f"{self.url}/execute", write_job(job), {"content-type": "application/json"})
        try:
            with urlopen(asked, timeout=BOUND_S) as answer:
                return int(answer.status), bytes(answer.read())
        except HTTPError as refused:
            return refused.code, refused.read()


class Quota:
    """The quota in Redis, as the gateway, the worker and the collector use it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._number = 0
        asyncio.run(self._load())
        definitions = Definitions(
            limits=(
                Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=1_000_000),
                Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=10),
            ),
            keys={"k1": Key(id="k1", verified=True)},
            models={"m": Model(name="m", context=4096, price=Price(completion_picos=1_000_000))},
        )
        self.ask(Define(**self._at, version=1, definitions=definitions))
        self.ask(Ready(**self._at, epoch=1))

    async def _load(self) -> None:
        client = RedisClient(read_address(self._url))
        await load_library(client)
        await client.close()

    @property
    def _at(self) -> dict[str, Any]:
        return {"organisation": "acme", "caller_now_ms": time.time_ns() // 1_000_000}

    def ask(self, call: Call[A]) -> A:
        async def main() -> A:
            async with open_store(self._url) as store:
                return await store.apply(call)

        return asyncio.run(main())

    def accept(self, tokens: int = TOKENS) -> Job:
        """What the gateway does with a request whose answer will have so many tokens."""
        self._number += 1
        at = self._at
        reserve = Reserve(
            **at, reservation=reservation_id(at["caller_now_ms"], self._number), nonce="n", fingerprint="f",
            key="k1", key_mac="", route="chat.completions", model="m", body_bytes=100, outputs_bound=tokens,
            lane=Lane.QUEUE, job_deadline_ms=at["caller_now_ms"] + 600_000,
        )  # fmt: skip
        reserved = self.ask(reserve)
        assert isinstance(reserved, Reserved)
        return Job(
            job=reserve.reservation, organisation="acme", epoch=reserved.epoch, route=reserve.route, model="m",
            request_id="r1", accepted_at_ms=at["caller_now_ms"], reserve=reserve,
            request={"model": "m", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": tokens,
                     "metadata": {"simulate": f"tokens={tokens}"}},
        )  # fmt: skip

    def look(self, job: Job) -> Seen:
        seen = self.ask(Look(**self._at, reservation=job.job))
        assert isinstance(seen, Seen)
        return seen

    def cancel(self, job: Job) -> None:
        assert self.ask(Cancel(**self._at, reservation=job.job)) == Done()

    def collect(self, result: JobResult) -> None:
        """What worker and collector do with a result."""
        assert result.usage is not None
        assert self.ask(Published(**self._at, reservation=result.job)) == Done()
        assert isinstance(self.ask(Settle(**self._at, reservation=result.job, usage=result.usage)), Settled)

    def used(self) -> int:
        """Tokens of the budget, of which nothing may be held any more."""
        inspected = self.ask(Inspect(**self._at))
        assert isinstance(inspected, Inspected)
        assert inspected.holds == ()
        return next(limit.used for limit in inspected.limits if limit.metric == "tokens")

    def ends(self) -> list[Event]:
        """Every event that ended a reservation."""

        async def main() -> list[Event]:
            outbox = Outbox(read_address(self._url))
            await outbox.start()
            entries = await outbox.read()
            await outbox.close()
            events = [entry.event for partition in entries.values() for entry in partition]
            return [event for event in events if event.kind not in (EventKind.RESERVED, EventKind.ACQUIRED)]

        return asyncio.run(main())


class Cluster:
    """What a job needs to run."""

    def __init__(self, folder: Path, parts: ExitStack) -> None:
        redis = Redis(folder)
        redis.start()
        parts.callback(redis.stop)
        self.quota = Quota(redis.url)
        self.model = SimulatedModel(folder / "model", "--model", "m", "--decode", str(DECODE))
        self.model.start()
        parts.callback(self.model.stop)
        self.execute = Execute(folder / "execute", redis.url, self.model.url)
        self.execute.start()
        parts.callback(self.execute.kill)
        self.workers = parts.enter_context(ThreadPoolExecutor(4))

    def deliver(self, job: Job) -> Future[tuple[int, bytes]]:
        return self.workers.submit(self.execute.deliver, job)

    def until(self, happened: Callable[[], bool]) -> None:
        assert self.execute.process is not None
        wait_until(happened, self.execute.process, self.execute.log, bound_s=BOUND_S)

    def until_running(self, job: Job) -> None:
        self.until(lambda: self.quota.look(job).touched_completion > 0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as parts:
        yield Cluster(tmp_path, parts)


def result_of(answer: tuple[int, bytes]) -> JobResult:
    status, body = answer
    assert status == 200, body
    return read_result(body)


def test_executor_killed_in_the_middle_of_a_call_lets_another_run_the_job_and_it_is_billed_once(
    cluster: Cluster,
) -> None:
    job = cluster.quota.accept()
    first = cluster.deliver(job)
    cluster.until_running(job)
    cluster.execute.kill()
    with pytest.raises((ConnectionError, HTTPException)):
        first.result(BOUND_S)
    cluster.execute.start()
    result = result_of(cluster.execute.deliver(job))
    assert result.usage is not None
    assert (result.status, result.usage.completion) == (JobStatus.SUCCEEDED, TOKENS)
    cluster.quota.collect(result)
    assert cluster.quota.used() == result.usage.prompt + TOKENS
    assert [event.kind for event in cluster.quota.ends()] == [EventKind.POSTED]
    assert cluster.execute.deliver(job)[0] == 204
    cluster.until(lambda: len(cluster.model.produced()) == 2)
    assert [line["outcome"] for line in cluster.model.produced()] == ["aborted", "finished"]


def test_job_that_is_cancelled_stops_within_5_s_and_pays_for_what_the_model_produced(cluster: Cluster) -> None:
    job = cluster.quota.accept(LONG)
    delivery = cluster.deliver(job)
    cluster.until_running(job)
    cancelled_s = time.monotonic()
    cluster.quota.cancel(job)
    result = result_of(delivery.result(BOUND_S))
    assert time.monotonic() - cancelled_s < 5
    assert result.status is JobStatus.CANCELLED
    assert result.usage is not None
    cluster.quota.collect(result)
    cluster.until(lambda: len(cluster.model.produced()) == 1)
    (line,) = cluster.model.produced()
    assert line["outcome"] == "aborted"
    assert 0 < result.usage.completion <= line["completion"] < LONG
    assert cluster.quota.used() == result.usage.prompt + result.usage.completion


def test_stop_releases_what_takes_longer_than_it_waits_and_ends_in_order(cluster: Cluster) -> None:
    job = cluster.quota.accept(LONG)
    delivery = cluster.deliver(job)
    cluster.until_running(job)
    assert cluster.execute.stop() == 0
    status, body = delivery.result(BOUND_S)
    assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
    assert cluster.quota.look(job).state is State.OPEN


def test_job_is_counted_logged_and_in_no_place_quoted(cluster: Cluster) -> None:
    job = cluster.quota.accept()
    result = result_of(cluster.execute.deliver(job))
    cluster.quota.collect(result)
    with urlopen(f"{cluster.execute.operations_url}/metrics", timeout=10) as answer:
        exposed = answer.read().decode()
    assert 'lane="queue",model="m",organisation="acme",outcome="ok"' in exposed
    assert cluster.execute.stop() == 0
    lines = [json.loads(line) for line in cluster.execute.log.read_text().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("reservation") == job.job]
    assert (line["lane"], line["outcome"], line["completion_tokens"]) == ("queue", "ok", TOKENS)
    assert "Go on." not in cluster.execute.log.read_text()
