"""The executor's door over real HTTP: what a worker is told in each case, and what its going away does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from penstock.adapters.http import HttpClient
from penstock.api.execution import Execution
from penstock.api.server import bind, serve
from penstock.lanes.executing import Dropped, Finished, Later, Outcome, Poison
from penstock.lanes.jobs import JobResult, JobStatus, read_result, write_result
from penstock.ports import UpstreamRequest, UpstreamResponse
from tests.lanes.test_jobs import RESERVE

RESULT = JobResult(
    job="j", organisation="acme", model="m", status=JobStatus.SUCCEEDED, http_status=200, body=msgspec.Raw(b"{}"),
    reason="", usage=None, attempts=1, started_at_ms=2, finished_at_ms=3, arguments=RESERVE,
)  # fmt: skip
BYTES_MAX = 1000


class Door:
    """A running executor's door whose jobs the test plays."""

    def __init__(self, client: HttpClient, execution: Execution, stop: asyncio.Event) -> None:
        self._client = client
        self.execution = execution
        self.stop = stop
        self.port = 0
        self.reasons: tuple[str, ...] = ()

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[UpstreamResponse, bytes]:
        headers = {"content-type": "application/json"}
        url = f"http://127.0.0.1:{self.port}{path}"
        answer = await self._client.open(UpstreamRequest(method=method, url=url, headers=headers, body=body))
        return answer, await answer.read(100_000)

    async def execute(self, message: bytes = b"{}") -> tuple[UpstreamResponse, bytes]:
        return await self.ask("POST", "/execute", message)


@asynccontextmanager
async def opened(execute: Callable[[bytes], Awaitable[Outcome]], *, shutdown_s: float = 5.0) -> AsyncIterator[Door]:
    client, stop = HttpClient(), asyncio.Event()

    async def readiness() -> tuple[str, ...]:
        return door.reasons

    execution = Execution(
        lambda message, traceparent: execute(message), jobs_max=1, message_bytes_max=BYTES_MAX, readiness=readiness
    )
    door = Door(client, execution, stop)
    with bind("127.0.0.1", 0) as listener:
        door.port = listener.getsockname()[1]
        accepting = asyncio.Event()
        serving = asyncio.create_task(
            serve(execution, listener, stop=stop, started=accepting.set, shutdown_s=shutdown_s)
        )
        await accepting.wait()
        try:
            yield door
        finally:
            stop.set()
            await client.close()
            await serving


def always(outcome: Outcome) -> Callable[[bytes], Awaitable[Outcome]]:
    async def execute(message: bytes) -> Outcome:
        return outcome

    return execute


def test_result_is_answered_as_it_is_to_be_published() -> None:
    async def main() -> None:
        async with opened(always(Finished(RESULT))) as door:
            answer, body = await door.execute()
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            assert body == write_result(RESULT)
            assert read_result(body).job == "j"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("outcome", "status", "headers"),
    [
        (Dropped(), 204, {}),
        (Later(1500, "the store is away"), 503, {"retry-after": "2", "retry-after-ms": "1500"}),
        (Later(700, "a rate", is_limited=True), 429, {"retry-after": "1", "retry-after-ms": "700"}),
        (Poison("no job"), 400, {}),
    ],
)
def test_every_other_outcome_has_a_status_of_its_own(outcome: Outcome, status: int, headers: dict[str, str]) -> None:
    async def main() -> None:
        async with opened(always(outcome)) as door:
            answer, body = await door.execute()
            assert answer.status == status
            assert headers.items() <= dict(answer.headers).items()
            if isinstance(outcome, Later | Poison):
                assert json.loads(body)["error"]["message"] == outcome.reason
            else:
                assert body == b""

    asyncio.run(main())


def test_message_that_is_too_large_can_never_be_understood() -> None:
    async def main() -> None:
        async with opened(always(Dropped())) as door:
            assert (await door.execute(b"x" * (BYTES_MAX + 1)))[0].status == 400
            assert (await door.execute(b"x" * BYTES_MAX))[0].status == 204

    asyncio.run(main())


def test_bug_lets_the_job_come_later_and_the_door_open(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def execute(message: bytes) -> Outcome:
            raise ZeroDivisionError

        async with opened(execute) as door:
            for _ in range(2):
                assert (await door.execute())[0].status == 503

    asyncio.run(main())
    assert "ZeroDivisionError" in caplog.text


class Holding:
    """A job that runs until the test lets it end."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.end = asyncio.Event()
        self.released = asyncio.Event()

    async def __call__(self, message: bytes) -> Outcome:
        self.running.set()
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.released.set()
            raise
        return Dropped()


def test_one_job_too_many_is_told_to_come_later() -> None:
    async def main() -> None:
        job = Holding()
        async with opened(job) as door:
            first = asyncio.create_task(door.execute())
            await job.running.wait()
            answer, _ = await door.execute()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            job.end.set()
            assert (await first)[0].status == 204
            assert (await door.execute())[0].status == 204

    asyncio.run(main())


def test_worker_that_goes_away_releases_its_job() -> None:
    async def main() -> None:
        job = Holding()
        async with opened(job) as door:
            waiting = asyncio.create_task(door.execute())
            await job.running.wait()
            waiting.cancel()
            await job.released.wait()
            job.end.set()
            assert (await door.execute())[0].status == 204

    asyncio.run(main())


def test_stop_lets_a_running_job_end() -> None:
    async def main() -> None:
        job = Holding()
        async with opened(job) as door:
            waiting = asyncio.create_task(door.execute())
            await job.running.wait()
            door.stop.set()
            job.end.set()
            assert (await waiting)[0].status == 204

    asyncio.run(main())


def test_job_that_runs_for_longer_than_a_stop_waits_is_released_and_its_worker_told() -> None:
    async def main() -> None:
        job = Holding()
        async with opened(job, shutdown_s=0.05) as door:
            waiting = asyncio.create_task(door.execute())
            await job.running.wait()
            door.stop.set()
            answer, _ = await waiting
            assert (answer.status, job.released.is_set()) == (503, True)
            assert "retry-after" in answer.headers

    asyncio.run(main())


def test_health_tells_whether_jobs_can_run() -> None:
    async def main() -> None:
        async with opened(always(Dropped())) as door:
            assert (await door.ask("GET", "/live"))[0].status == 200
            assert (await door.ask("GET", "/ready"))[0].status == 200
            door.reasons = ("Redis is away",)
            answer, body = await door.ask("GET", "/ready")
            assert (answer.status, json.loads(body)["reasons"]) == (503, ["Redis is away"])

    asyncio.run(main())


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/execute", 405), ("POST", "/v1/jobs", 404)])
def test_nothing_else_is_answered(method: str, path: str, status: int) -> None:
    async def main() -> None:
        async with opened(always(Dropped())) as door:
            assert (await door.ask(method, path))[0].status == status

    asyncio.run(main())
