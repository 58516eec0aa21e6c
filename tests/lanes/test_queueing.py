"""The queue in one process: in order, bounded, and each job ended once whatever happens between its steps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.errors import StoreUnavailable
from penstock.lanes.executing import Dropped, Later, Outcome, Poison
from penstock.lanes.jobs import Job, JobStatus
from penstock.lanes.queueing import LIMITED_MOST
from penstock.ports import JobState, StoredResult
from penstock.quota.events import EventKind, Usage
from penstock.quota.operations import Cancel, Lane
from tests.adapters.embedded.counter import held, run
from tests.lanes.queue_stage import QueueStage, queue_staged
from tests.lanes.test_executing_turns import message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "penstock.db"


def kinds(stage: QueueStage, job: str) -> list[EventKind]:
    return sorted(event.kind for event in stage.counter.ledger() if event.reservation == job)


def test_a_job_is_run_settled_and_taken_out_of_the_queue(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            job = await stage.accept()
            await stage.idle()
            known = await stage.known(job)
            assert (known.state, known.usage, known.body) == (JobState.SUCCEEDED, Usage(10, 5), '{"id":"answer"}')
            assert known.cost_nanos is not None
            assert await stage.jobs.waiting() == []
            assert held(await stage.counter.inspect()) == {}
            assert await stage.counter.differences() == []

    run(test)


def test_a_result_without_usage_voids(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:

            async def refused(job: Job) -> Outcome:
                await stage.acquire(job)
                from penstock.lanes.executing import Finished

                return Finished(
                    stage.result(job, status=JobStatus.FAILED, http_status=400, usage=None, reason="refused")
                )

            stage.outcome = refused
            job = await stage.accept()
            await stage.idle()
            known = await stage.known(job)
            assert (known.state, known.reason, known.usage) == (JobState.FAILED, "refused", None)
            assert EventKind.VOIDED in kinds(stage, job)

    run(test)


def test_jobs_begin_in_order_and_no_more_at_once_than_allowed(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, concurrency=2) as stage:
            stage.outcome = stage.wait_at_gate
            jobs = [await stage.accept() for _ in range(5)]
            await stage.until(lambda: len(stage.gates) == 2)
            assert (stage.begun, stage.queue.running, stage.queue.waiting) == (jobs[:2], 2, 3)
            stage.open_gate(jobs[1])
            await stage.until(lambda: len(stage.begun) == 3)
            for job in jobs:
                stage.open_gate(job)
            await stage.idle()
            assert stage.begun == jobs

    run(test)


def test_a_job_that_must_wait_lets_others_pass_and_comes_again_after_its_time(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, concurrency=1) as stage:
            first: list[str] = []

            async def later_once(job: Job) -> Outcome:
                if not first:
                    first.append(job.job)
                    return Later(7_000, "a rate")
                return await stage.succeed(job)

            stage.outcome = later_once
            jobs = [await stage.accept() for _ in range(2)]
            await stage.idle()
            assert (await stage.known(jobs[0])).state is JobState.QUEUED
            assert (await stage.known(jobs[1])).state is JobState.SUCCEEDED
            assert stage.queue.waiting == 1
            assert stage.timers.pass_all() == [7.0]
            await stage.idle()
            assert (await stage.known(jobs[0])).state is JobState.SUCCEEDED

    run(test)


def test_the_result_that_is_kept_already_is_settled_and_no_model_is_asked_again(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            job = await stage.accept()
            kept = StoredResult(
                job=job, organisation="acme", model="m", route="chat.completions", state=JobState.SUCCEEDED,
                http_status=200, body="{}", reason="", usage=Usage(20, 2), attempts=1, started_at_ms=1,
                finished_at_ms=2, arguments={"fingerprint": "f"},
            )  # fmt: skip
            await stage.jobs.store(kept)
            await stage.queue.start(["acme"])
            await stage.idle()
            assert stage.begun == []
            assert (await stage.known(job)).usage == Usage(20, 2)
            assert kinds(stage, job).count(EventKind.POSTED) == 1
            assert await stage.jobs.waiting() == []

    run(test)


def test_a_job_that_ended_elsewhere_leaves_the_queue_and_nothing_is_charged(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:

            async def gone(job: Job) -> Outcome:
                return Dropped()

            stage.outcome = gone
            job = await stage.accept()
            await stage.counter.store.apply(
                Cancel(organisation="acme", caller_now_ms=stage.counter.now_ms, reservation=job)
            )
            await stage.queue.start(["acme"])
            await stage.idle()
            assert await stage.jobs.waiting() == []
            assert (await stage.known(job)).state is JobState.CANCELLED
            assert kinds(stage, job) == [EventKind.RESERVED, EventKind.VOIDED]

    run(test)


def test_a_message_that_cannot_be_understood_is_a_failed_job_that_holds_nothing(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:

            async def poison(job: Job) -> Outcome:
                return Poison("of another version")

            stage.outcome = poison
            job = await stage.accept()
            await stage.idle()
            known = await stage.known(job)
            assert (known.state, known.reason) == (JobState.FAILED, "of another version")
            assert held(await stage.counter.inspect()) == {}

    run(test)


@pytest.mark.parametrize(
    ("error", "wait_s", "failures"), [(StoreUnavailable("away"), 1.0, 0), (ZeroDivisionError("a bug"), 30.0, 1)]
)
def test_what_goes_wrong_in_one_job_is_tried_again_and_stops_no_other(
    path: Path, error: Exception, wait_s: float, failures: int
) -> None:
    async def test() -> None:
        async with queue_staged(path, concurrency=1) as stage:
            failed: list[str] = []

            async def fail_once(job: Job) -> Outcome:
                if not failed:
                    failed.append(job.job)
                    raise error
                return await stage.succeed(job)

            stage.outcome = fail_once
            jobs = [await stage.accept() for _ in range(2)]
            await stage.idle()
            assert (await stage.known(jobs[1])).state is JobState.SUCCEEDED
            assert stage.timers.pass_all() == [wait_s]
            await stage.idle()
            assert (await stage.known(jobs[0])).state is JobState.SUCCEEDED
            assert stage.queue.failures == failures

    run(test)


def test_what_was_stopped_while_it_ran_runs_again_after_the_next_start(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            stage.outcome = stage.wait_at_gate
            job = await stage.accept()
            await stage.until(lambda: bool(stage.gates))
            await stage.queue.close(wait_s=0)
            assert [each.job for each in await stage.jobs.waiting()] == [job]
        async with queue_staged(path) as stage:
            await stage.idle()
            assert stage.begun == [job]
            assert (await stage.known(job)).state is JobState.SUCCEEDED
            assert kinds(stage, job).count(EventKind.POSTED) == 1

    run(test)


def test_a_closed_queue_begins_nothing_and_keeps_what_comes(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            await stage.queue.close(wait_s=0)
            job = await stage.accept()
            await asyncio.wait([asyncio.create_task(asyncio.to_thread(lambda: None))])
            assert (stage.begun, stage.queue.running) == ([], 0)
            assert [each.job for each in await stage.jobs.waiting()] == [job]

    run(test)


def test_a_hold_that_nobody_queued_is_voided_at_the_next_start(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            await stage.counter.reserve(1 << 40, lane=Lane.QUEUE)
            await stage.counter.reserve(2 << 40)
            kept = await stage.accept()
            stage.outcome = stage.wait_at_gate
            await stage.queue.start(["acme"])
            await stage.until(lambda: bool(stage.gates))
            holds = (await stage.counter.inspect()).holds
            assert {hold.reservation: hold.lane for hold in holds} == {
                kept: "queue",
                next(hold.reservation for hold in holds if hold.lane == "realtime"): "realtime",
            }
            assert len(holds) == 2

    run(test)


def test_jobs_of_an_organisation_that_is_not_served_stay_until_it_is(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            job = await stage.accept()
            await stage.queue.close(wait_s=0)
        async with queue_staged(path, starts=False) as stage:
            await stage.queue.start(["other"])
            await stage.idle()
            assert (stage.begun, [each.job for each in await stage.jobs.waiting()]) == ([], [job])
        async with queue_staged(path) as stage:
            await stage.idle()
            assert stage.begun == [job]

    run(test)


def test_one_organisation_with_many_jobs_delays_another_by_one_of_them(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, concurrency=1) as stage:
            gates = {name: asyncio.Event() for name in ("a0", "a1", "a2", "a3", "b0")}

            async def gated(job: Job) -> Outcome:
                await gates[job.job].wait()
                return Dropped()

            stage.outcome = gated
            for name in gates:
                await stage.queue.put(name, name[0], "m", message(name))
            order = ["a0", "b0", "a1", "a2", "a3"]
            for position in range(len(order)):
                await stage.until(lambda position=position: len(stage.begun) == position + 1)  # type: ignore[misc]
                gates[order[position]].set()
            await stage.idle()
            assert stage.begun == order
            assert await stage.jobs.waiting() == []

    run(test)


def test_of_an_organisation_that_its_limits_refuse_only_a_few_are_asked_for_again(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, concurrency=1) as stage:

            async def refused(job: Job) -> Outcome:
                return Later(1_000, "a rate", is_limited=True) if job.organisation == "a" else Dropped()

            stage.outcome = refused
            for name in (*(f"a{number}" for number in range(30)), "b0"):
                await stage.queue.put(name, name[0], "m", message(name))
            await stage.idle()
            assert "b0" in stage.begun
            assert len(stage.begun) == LIMITED_MOST + 1
            stage.timers.pass_all()
            await stage.idle()
            assert len(stage.begun) == 2 * LIMITED_MOST + 1

    run(test)
