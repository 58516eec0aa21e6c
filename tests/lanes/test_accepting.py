"""A request becomes a job once and safely, or holds nothing; an idempotency key is one request for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from penstock.adapters.sql.database import open_engine
from penstock.adapters.sql.job_store import SqlJobs
from penstock.errors import (
    Conflict,
    InvalidRequest,
    Mismatched,
    NotFound,
    PenstockError,
    QuotaDenied,
    StoreUnavailable,
    Unauthenticated,
)
from penstock.lanes.accepting import Accepted, Replayed, job_prefix, read_idempotency_key
from penstock.lanes.executing import Finished, Outcome
from penstock.lanes.jobs import Job, JobStatus, read_job
from penstock.lanes.queueing import Queue
from penstock.ports import JobState, Kept, QueuedJob
from penstock.quota.operations import Cancel
from tests.adapters.embedded.counter import MINUTE_MS, held, run
from tests.lanes.queue_stage import DEADLINE_MS, QueueStage, queue_staged

DAY_MS = 86_400_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "penstock.db"


async def refused(stage: QueueStage, key: str | None = None, **fields: object) -> PenstockError:
    with pytest.raises(PenstockError) as caught:
        await stage.accept(key, **fields)
    return caught.value


def test_an_accepted_job_is_on_the_disk_with_its_bounded_request(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            accepted = await stage.acceptor.accept(stage.asked())
            assert isinstance(accepted, Accepted)
            assert accepted.readings
            other = SqlJobs(open_engine(path))  # as another process would see it
            (waiting,) = await other.waiting()
            assert waiting.job == accepted.job
            message = await other.message(accepted.job)
            assert message is not None
            job = read_job(message)
            assert (job.request["max_tokens"], job.request_id, job.reserve.job_deadline_ms) == (
                200, "r1", stage.counter.now_ms + DEADLINE_MS,
            )  # fmt: skip
            assert (await stage.known(accepted.job)).state is JobState.QUEUED

    run(test)


def test_an_unknown_model_a_wrong_key_and_a_limit_leave_nothing_behind(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            assert isinstance(await refused(stage, model="n"), NotFound)
            with pytest.raises(Unauthenticated):
                await stage.acceptor.accept(stage.asked(macs=("bb", "cc")))
            assert isinstance(await refused(stage, "key", outputs=2**24), QuotaDenied | InvalidRequest)
            assert await stage.jobs.waiting() == []
            assert (await stage.counter.inspect()).holds == ()
            assert await stage.jobs.last_attempt("acme", job_prefix("acme", "key")) is None
            await stage.accept("key")

    run(test)


def test_a_key_under_either_pepper_passes(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            assert isinstance(await stage.acceptor.accept(stage.asked(macs=("bb", "aa"))), Accepted)

    run(test)


def test_a_client_that_leaves_meanwhile_leaves_no_half_job(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            accepting = asyncio.create_task(stage.acceptor.accept(stage.asked()))
            await asyncio.sleep(0)
            accepting.cancel()
            await asyncio.wait([accepting])
            await stage.acceptor.close()
            holds = (await stage.counter.inspect()).holds
            assert [hold.reservation for hold in holds] == [each.job for each in await stage.jobs.waiting()]
            assert len(holds) == 1

    run(test)


class Full(SqlJobs):
    """A table that takes nothing."""

    async def put(self, job: str, organisation: str, model: str, message: bytes) -> QueuedJob:
        raise StoreUnavailable("the disk is full")


def test_what_cannot_be_queued_is_voided_and_told(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            full = Queue(stage.counter.store, Full(open_engine(path)), stage.execute, stage.clock, concurrency=1)
            with pytest.raises(StoreUnavailable, match="disk is full"):
                await stage.accepting(full).accept(stage.asked())
            await stage.settling.close()
            assert held(await stage.counter.inspect()) == {}

    run(test)


# --- idempotency keys --------------------------------------------------------------------------------------------


def test_a_key_of_an_open_job_is_a_conflict(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            job = await stage.accept("key")
            error = await refused(stage, "key")
            assert isinstance(error, Conflict)
            assert (error.code, job in error.message) == ("request_under_way", True)
            assert isinstance(await refused(stage, "key", fingerprint="other"), Mismatched)

    run(test)


@pytest.mark.parametrize("later_ms", [0, DEADLINE_MS + 20 * MINUTE_MS], ids=["remembered", "forgotten by the quota"])
def test_a_key_of_a_finished_job_gets_its_answer(path: Path, later_ms: int) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            job = await stage.accept("key")
            await stage.idle()
            stage.counter.now_ms += later_ms
            await stage.counter.sweep()
            assert await stage.acceptor.accept(stage.asked("key")) == Replayed(job, 200, b'{"id":"answer"}')
            assert isinstance(await refused(stage, "key", fingerprint="other"), Mismatched)
            assert stage.begun == [job]

    run(test)


def test_a_key_whose_answer_was_deleted_may_be_used_again_under_another_id(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:
            first = await stage.accept("key")
            await stage.idle()
            stage.counter.now_ms += DAY_MS
            await stage.counter.sweep()
            assert await stage.jobs.forget(now_ms=stage.counter.now_ms, kept=Kept(1, 1)) == 1
            second = await stage.accept("key")
            await stage.idle()
            assert [first[-2:], second[-2:]] == ["-1", "-2"]
            assert await stage.counter.differences() == []

    run(test)


def test_a_key_whose_job_was_cancelled_begins_the_next_attempt_even_after_long(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            for number, later_ms in ((1, 0), (2, 0), (3, DEADLINE_MS + 20 * MINUTE_MS)):
                stage.counter.now_ms += later_ms
                await stage.counter.sweep()
                job = await stage.accept("key")
                assert job.endswith(f"-{number}")
                await stage.counter.store.apply(
                    Cancel(organisation="acme", caller_now_ms=stage.counter.now_ms, reservation=job)
                )

    run(test)


def test_a_key_whose_job_expired_has_an_unknown_outcome(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path, starts=False) as stage:
            await stage.accept("key")
            stage.counter.now_ms += DEADLINE_MS + 1
            await stage.counter.sweep()
            error = await refused(stage, "key")
            assert isinstance(error, Conflict)
            assert error.code == "outcome_unknown"

    run(test)


def test_an_answer_too_large_to_repeat_is_a_conflict_that_says_where_it_is(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:

            async def long(job: Job) -> Outcome:
                await stage.acquire(job)
                return Finished(
                    msgspec.structs.replace(stage.result(job), body=msgspec.Raw(b'"%s"' % (b"x" * 1_000_000)))
                )

            stage.outcome = long
            job = await stage.accept("key")
            await stage.idle()
            error = await refused(stage, "key")
            assert isinstance(error, Conflict)
            assert (error.code, f"/v1/jobs/{job}" in error.message) == ("answer_too_large", True)

    run(test)


def test_a_failure_that_was_charged_is_repeated_as_it_was(path: Path) -> None:
    async def test() -> None:
        async with queue_staged(path) as stage:

            async def failed(job: Job) -> Outcome:
                await stage.acquire(job)
                body = msgspec.Raw(b'{"error":{"message":"broke off"}}')
                return Finished(stage.result(job, status=JobStatus.FAILED, http_status=502, body=body))

            stage.outcome = failed
            job = await stage.accept("key")
            await stage.idle()
            again = await stage.acceptor.accept(stage.asked("key"))
            assert again == Replayed(job, 502, b'{"error":{"message":"broke off"}}')

    run(test)


def test_keys_of_two_organisations_are_two_keys() -> None:
    assert job_prefix("acme", "key") != job_prefix("other", "key")
    assert job_prefix("acme", "key")[:12] == "0" * 12


@pytest.mark.parametrize(("header", "key"), [("a", "a"), ('"a b"', "a b"), ('"', '"'), ("x" * 255, "x" * 255)])
def test_a_key_is_read_bare_or_quoted(header: str, key: str) -> None:
    assert read_idempotency_key(header) == key


@pytest.mark.parametrize("header", ["", '""', "x" * 256, "tab\t", "umlaut ä"])
def test_what_is_no_key_is_refused(header: str) -> None:
    with pytest.raises(InvalidRequest, match="1 to 255 printable"):
        read_idempotency_key(header)
