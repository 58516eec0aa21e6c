"""A job as its owner sees it: never behind its quota while it is open, never beyond its database once it has ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.errors import Conflict, NotFound
from penstock.lanes.following import Following, steps
from penstock.ports import JobQuery, JobState, StoredJob
from penstock.quota.operations import Lane, Void
from tests.adapters.embedded.counter import name, run
from tests.lanes.queue_stage import DEADLINE_MS, queue_staged


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "penstock.db"


class Empty:
    """A database that has heard of nothing yet."""

    def __init__(self, inner: Following) -> None:
        self.watch = inner._jobs.watch

    async def get(self, organisation: str, job: str) -> StoredJob | None:
        return None

    async def list(self, query: JobQuery) -> list[StoredJob]:
        return []

    async def last_attempt(self, organisation: str, prefix: str) -> None:
        return None


def test_a_job_is_there_before_the_database_has_heard_of_it(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            job = await stage.accept()
            early = Following(Empty(stage.following), stage.counter.store, stage.clock)
            found = await early.get("acme", job)
            assert (found.state, found.model, found.key) == (JobState.QUEUED, "m", "k1")
            assert found.created_at_ms == stage.counter.now_ms
            assert found.deadline_ms == stage.counter.now_ms + DEADLINE_MS

    run(test)


def test_a_job_that_ended_a_moment_ago_is_there_before_the_database_has_heard_of_it(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            job = await stage.accept()
            void = Void(organisation="acme", caller_now_ms=stage.counter.now_ms, reservation=job)
            await stage.counter.store.apply(void)
            early = Following(Empty(stage.following), stage.counter.store, stage.clock)
            found = await early.get("acme", job)
            assert not found.state.is_final  # how it ended is not known yet
            assert (found.model, found.key) == ("m", "k1")

    run(test)


def test_what_is_unknown_or_no_job_is_not_there(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            job = await stage.accept()
            await stage.counter.reserve(1 << 40)
            await stage.counter.reserve(2 << 40, lane=Lane.QUEUE)
            await stage.following.get("acme", name(2 << 40))
            for wanted in ("nothing", name(1 << 40)):
                with pytest.raises(NotFound):
                    await stage.following.get("acme", wanted)
                with pytest.raises(NotFound):
                    await stage.following.cancel("acme", wanted)
            assert await stage.jobs.get("other", job) is None

    run(test)


def test_whoever_waits_is_told_when_it_ends_and_no_earlier(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            stage.outcome = stage.wait_at_gate
            job = await stage.accept()
            waiting = asyncio.create_task(stage.following.wait("acme", job, 30))
            await stage.until(lambda: bool(stage.gates))
            assert not waiting.done()
            stage.open_gate(job)
            assert (await waiting).state is JobState.SUCCEEDED

    run(test)


def test_nobody_waits_for_longer_than_asked_or_while_the_service_stops(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            job = await stage.accept()
            assert (await stage.following.wait("acme", job, 0)).state is JobState.QUEUED
            stopping = Following(stage.jobs, stage.counter.store, stage.clock, is_stopping=lambda: True)
            assert (await stopping.wait("acme", job, 3600)).state is JobState.QUEUED
            assert [event async for event in stopping.events("acme", job)] == []

    run(test)


def test_events_are_told_once_each_in_order_to_the_end(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            stage.outcome = stage.wait_at_gate
            job = await stage.accept()
            told: list[tuple[int, JobState]] = []

            async def follow() -> None:
                async for event in stage.following.events("acme", job):
                    assert event is not None
                    told.append((event.number, event.job.state))

            following = asyncio.create_task(follow())
            await stage.until(lambda: len(told) == 2)
            stage.open_gate(job)
            await following
            assert told == [(1, JobState.QUEUED), (2, JobState.RUNNING), (3, JobState.SUCCEEDED)]
            left = [event async for event in stage.following.events("acme", job, after=2)]
            assert [each.number for each in left if each is not None] == [3]

    run(test)


def test_a_job_that_never_ran_has_no_running_step() -> None:
    job = StoredJob(
        id="x", organisation="acme", team=None, key="k", model="m", state=JobState.CANCELLED, created_at_ms=1,
        deadline_ms=9, finished_at_ms=5, reason="cancelled",
    )  # fmt: skip
    first, last = steps(job)
    assert (first.number, first.job.state, first.job.finished_at_ms, first.job.reason) == (1, JobState.QUEUED, 0, "")
    assert last == (3, job)


def test_a_cancelled_job_is_seen_as_what_it_is_at_once(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, concurrency=1) as stage:
            stage.outcome = stage.wait_at_gate
            running, waiting = [await stage.accept() for _ in range(2)]
            await stage.until(lambda: bool(stage.gates))
            stopped = await stage.following.cancel("acme", waiting)
            assert (stopped.state, stopped.usage) == (JobState.CANCELLED, None)
            asked = await stage.following.cancel("acme", running)
            assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
            again = await stage.following.cancel("acme", running)
            assert again.cancel_requested
            with pytest.raises(Conflict, match="as cancelled"):
                await stage.following.cancel("acme", waiting)

    run(test)
