"""Which message is run, dropped, brought later or rejected, and what is told of a run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.lanes.executing import REBUILT_MS, Dropped, Later, Poison
from penstock.lanes.jobs import JobStatus, write_job
from penstock.quota.definitions import Kind, Limit, Metric
from penstock.quota.events import EventKind
from penstock.quota.model import Organisation
from penstock.quota.operations import Acquire, Define, Look
from tests.lanes.executing_stage import CONCURRENCY, body_of, concurrency_held, governed, holding, queued, until
from tests.lanes.stage import NOW_MS, STREAM_HEAD, ModelStore, ending, sends, tokens, usage

ANSWER = STREAM_HEAD + tokens(3) + ending(usage(7, 3))
RATE = Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=150)
HELD = 130  # tokens of a job: 80 bytes and 50 of output


# --- the message -------------------------------------------------------------------------------------------------


def test_message_that_is_no_job_is_poison_and_touches_no_store() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            outcome = await queue.executor.execute(b"{}")
            assert isinstance(outcome, Poison)
            assert queue.store.seen == []

    asyncio.run(main())


def test_message_is_understood_as_its_bytes_too() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            result = await queue.finish(asyncio.create_task(queue.executor.execute(write_job(job))))
            assert queue.charge(job, result) == (7, 3)

    asyncio.run(main())


def test_job_that_the_store_cannot_account_is_poison() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            other = queue.accept(fingerprint="g")
            forged = write_job(job).replace(job.job.encode(), other.job.encode())
            assert isinstance(await queue.executor.execute(forged), Poison)
            assert queue.stage.received == []

    asyncio.run(main())


def test_job_whose_organisation_stays_unknown_leaves_its_place_to_others_and_is_given_up_at_its_deadline() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job, executor = queue.accept(), queue.executor
            queue.store.organisation = Organisation("acme")  # as if it were lost, and nobody to rebuild it
            first = await executor.execute(job)
            assert isinstance(first, Later)
            assert not first.is_limited, "it is asked again in its place, since most are rebuilt soon"
            queue.clock.ms += REBUILT_MS + 1
            later = await executor.execute(job)
            assert isinstance(later, Later)
            assert later.is_limited
            queue.clock.ms = job.reserve.job_deadline_ms + 1
            assert isinstance(await executor.execute(job), Poison)
            assert queue.stage.received == []

    asyncio.run(main())


def test_job_whose_numbers_the_store_cannot_take_is_poison() -> None:
    class Refusing(ModelStore):
        async def apply(self, call: Any) -> Any:
            raise ValueError(f"PENSTOCK {type(call).__name__}: outputs_bound is beyond 2^53")

    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.store = queue.stage.store = Refusing(queue.clock)
            assert isinstance(await queue.executor.execute(job), Poison)

    asyncio.run(main())


def test_job_for_a_model_that_is_not_served_any_more_fails_and_is_charged_nothing() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.stage.models = {}
            result = await queue.run(job)
            assert (result.status, result.http_status, result.attempts) == (JobStatus.FAILED, 404, 0)
            assert body_of(result)["error"]["code"] == "model_not_found"
            assert queue.charge(job, result) is None

    asyncio.run(main())


# --- the claim ---------------------------------------------------------------------------------------------------


def test_job_that_was_cancelled_while_it_waited_is_dropped_without_a_call() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.cancel(job)
            assert await queue.executor.execute(job) == Dropped()
            assert queue.stage.received == []
            assert queue.stage.used() == 0

    asyncio.run(main())


def test_job_whose_deadline_passed_while_it_waited_is_dropped_without_a_call() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.clock.ms = job.reserve.job_deadline_ms
            assert await queue.executor.execute(job) == Dropped()
            assert queue.stage.received == []
            (end,) = queue.store.ends()
            assert (end.kind, end.charge.tokens) == (EventKind.EXPIRED, 0)

    asyncio.run(main())


def test_job_waits_in_place_for_a_limit_that_refuses_for_a_moment_and_comes_later_otherwise() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER), limits=(RATE,)) as queue:
            first, second = queue.accept(), queue.accept()
            result = await queue.run(first)
            delivery = queue.deliver(second)
            later = await queue.later(delivery)
            assert later.retry_after_ms == (2 * HELD - RATE.cap) * 60_000 // RATE.cap
            queue.publish(first)
            queue.collect(result)  # which gives back what was not used
            queue.clock.ms = NOW_MS
            delivery = queue.deliver(second)
            result = await queue.finish(delivery)
            assert result.status is JobStatus.SUCCEEDED

    asyncio.run(main())


def test_job_that_its_limits_refuse_keeps_nobody_waiting_and_runs_when_they_let_it() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve, limits=(CONCURRENCY,)) as queue:
            first, second = queue.accept(), queue.accept()
            one, two = queue.deliver(first), queue.deliver(second)
            await until(lambda: writers)
            refused = await queue.later(two)
            assert (refused.retry_after_ms, refused.is_limited) == (1000, True)
            writers[0].write(ANSWER)
            queue.collect(await queue.finish(one))
            two = queue.deliver(second)
            await until(lambda: len(writers) == 2)
            assert concurrency_held(queue) == 1
            writers[1].write(ANSWER)
            queue.collect(await queue.finish(two))
            assert queue.stage.used() == 20

    asyncio.run(main())


def test_job_that_outgrew_a_cap_which_was_lowered_fails_and_names_the_limit() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER), limits=(RATE,)) as queue:
            job = queue.accept()
            lowered = Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=HELD - 1)
            queue.store.now(Define(organisation="acme", caller_now_ms=NOW_MS, version=2, definitions=governed(lowered)))
            result = await queue.run(job)
            assert (result.status, result.http_status, result.started_at_ms) == (JobStatus.FAILED, 400, 0)
            assert "acme/tokens/minute" in result.reason
            assert queue.stage.received == []
            assert queue.charge(job, result) is None

    asyncio.run(main())


@pytest.mark.parametrize("refused", [Look, Acquire])
def test_store_that_cannot_be_asked_lets_the_job_come_later(refused: type) -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.store.refusing = (refused,)
            outcome = await queue.executor.execute(job)
            assert isinstance(outcome, Later)
            assert "switched off" in outcome.reason
            assert queue.stage.received == []

    asyncio.run(main())


def test_store_without_its_state_lets_the_job_come_later() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.store.organisation = Organisation("acme")
            assert isinstance(await queue.executor.execute(job), Later)
            assert queue.stage.received == []

    asyncio.run(main())


# --- the record --------------------------------------------------------------------------------------------------


def test_job_is_observed_from_its_start_to_its_end_once() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            await queue.run(job)
            await queue.executor.execute(b"")
            assert queue.stage.health.begun == 1
            (record,) = queue.stage.health.records
            assert (record.lane, record.outcome, record.status) == ("queue", "ok", 200)
            assert (record.organisation, record.model, record.reservation) == ("acme", "chat", job.job)
            assert (record.prompt_tokens, record.completion_tokens, record.usage_source) == (7, 3, "upstream")

    asyncio.run(main())
