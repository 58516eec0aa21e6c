"""A queue on the embedded store and a real table, with an executor that does what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.job_store import SqlJobs
from penstock.lanes.accepting import Accepted, AsyncRequest, QueueAcceptor
from penstock.lanes.executing import Finished, Outcome
from penstock.lanes.executing_lease import acquire_call
from penstock.lanes.following import Following
from penstock.lanes.jobs import Job, JobResult, JobStatus, read_job
from penstock.lanes.models import ServedModel, Upstream
from penstock.lanes.queueing import Queue
from penstock.lanes.requests import InferenceRequest
from penstock.lanes.settling import RetryInProcess, Settling
from penstock.ports import RequestRecord, StoredJob
from penstock.quota.events import Usage
from penstock.quota.operations import Run
from tests.adapters.embedded.counter import Counter

BOUND_S = 60.0
DEADLINE_MS = 3_600_000
SERVED = {
    name: ServedModel(
        name=name, upstreams=(Upstream(url="http://model.test"),), upstream_model=name, context=8192, max_tokens=200
    )
    for name in ("m",)
}


class Clock:
    """The counter's, which stands until a test moves it."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def now_ms(self) -> int:
        return self._counter.now_ms

    def monotonic_s(self) -> float:
        return self._counter.now_ms / 1000


class Timers:
    """Calls that wait for the test to let their time come."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, wait_s: float, ready: Callable[[], None]) -> Timers:
        self.waiting.append((wait_s, ready))
        return self

    def cancel(self) -> None: ...

    def pass_all(self) -> list[float]:
        """Let every time come; how long each would have been."""
        waiting, self.waiting = self.waiting, []
        for _, ready in waiting:
            ready()
        return [wait_s for wait_s, _ in waiting]


class QueueStage:
    """All parts of the embedded queue lane but the model.

    Args:
        execute: What happens to a job once it is acquired; by default it succeeds.
    """

    def __init__(self, counter: Counter, jobs: SqlJobs, concurrency: int) -> None:
        self.counter = counter
        self.jobs = jobs
        self.clock = Clock(counter)
        self.timers = Timers()
        self.begun: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.outcome: Callable[[Job], Awaitable[Outcome]] = self.succeed
        self.queue = Queue(counter.store, jobs, self.execute, self.clock, concurrency=concurrency, later=self.timers)
        self.settling = Settling(counter.store, RetryInProcess(counter.store))
        self._numbers = iter(range(1, 1 << 30))
        self.acceptor = self.accepting(self.queue)
        self.following = Following(jobs, counter.store, self.clock)

    def accepting(self, queue: Queue) -> QueueAcceptor:
        return QueueAcceptor(
            self.counter.store, self.jobs, queue, self.settling, self.clock, SERVED,
            deadline_ms=DEADLINE_MS, random_bits=lambda bits: next(self._numbers),
        )  # fmt: skip

    async def execute(self, message: bytes) -> Outcome:
        job = read_job(message)
        self.begun.append(job.job)
        return await self.outcome(job)

    async def acquire(self, job: Job) -> None:
        answer = await self.counter.store.apply(acquire_call(job, self.counter.now_ms))
        assert isinstance(answer, Run)

    async def succeed(self, job: Job) -> Outcome:
        await self.acquire(job)
        return Finished(self.result(job))

    async def wait_at_gate(self, job: Job) -> Outcome:
        """Run until the test opens this job's gate."""
        await self.acquire(job)
        await self.gates.setdefault(job.job, asyncio.Event()).wait()
        return Finished(self.result(job))

    def open_gate(self, job: str) -> None:
        self.gates.setdefault(job, asyncio.Event()).set()

    def result(self, job: Job, **fields: Any) -> JobResult:
        made: dict[str, Any] = {
            "job": job.job, "organisation": job.organisation, "model": job.model, "status": JobStatus.SUCCEEDED,
            "http_status": 200, "body": msgspec.Raw(b'{"id":"answer"}'), "reason": "", "usage": Usage(10, 5),
            "attempts": 1, "started_at_ms": self.counter.now_ms, "finished_at_ms": self.counter.now_ms,
            "arguments": job.reserve,
        }  # fmt: skip
        return JobResult(**(made | fields))

    def asked(self, key: str | None = None, *, macs: tuple[str, ...] = ("aa",), **fields: Any) -> AsyncRequest:
        made: dict[str, Any] = {
            "organisation": "acme", "key": "k1", "key_mac": "", "route": "chat.completions", "model": "m",
            "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}, "fingerprint": "f",
            "body_bytes": 100, "prompts": 1, "outputs": 1, "max_tokens": None, "stream": False,
            "include_usage": False, "record": RequestRecord(request_id="r1"),
        }  # fmt: skip
        request = InferenceRequest(**(made | fields))
        return AsyncRequest(
            request=request, raw=b"{}", key_macs=macs, idempotency_key=key, authorization="Bearer x", traceparent=None
        )

    async def accept(self, key: str | None = None, **fields: Any) -> str:
        """The id of a job that was accepted."""
        accepted = await self.acceptor.accept(self.asked(key, **fields))
        assert isinstance(accepted, Accepted)
        return accepted.job

    async def known(self, job: str) -> StoredJob:
        found = await self.jobs.get("acme", job)
        assert found is not None
        return found

    async def idle(self) -> None:
        """Wait until nothing runs that could go on by itself."""
        await self.until(lambda: not self.queue.running)

    async def until(self, holds: Callable[[], bool]) -> None:
        ends_s = time.monotonic() + BOUND_S
        while not holds():
            assert time.monotonic() < ends_s, f"not within {BOUND_S} s"
            await asyncio.to_thread(lambda: None)


@asynccontextmanager
async def queue_staged(
    path: Path, *, concurrency: int = 2, starts: bool = True, start_ms: int | None = None
) -> AsyncIterator[QueueStage]:
    """A stage on the database ``path``; whatever still runs at the end is stopped."""
    counter = Counter(path)
    if start_ms is not None:
        counter.now_ms = start_ms
    engine = open_engine(path)
    async with counter.opened():
        stage = QueueStage(counter, SqlJobs(engine), concurrency)
        if starts:
            await stage.queue.start(["acme"])
        try:
            yield stage
        finally:
            await stage.acceptor.close()
            await stage.queue.close(wait_s=0)
            await stage.settling.close()
    engine.dispose()
