"""How a running job's claim is kept, and what happens when the store, a broker or another executor fails meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from penstock.api.responses import TRANSLATIONS
from penstock.lanes.executing import Dropped, Executor, Later, Outcome
from penstock.lanes.jobs import Job, JobStatus
from penstock.quota.events import EventKind, Usage
from penstock.quota.model import Organisation
from penstock.quota.operations import Acquire, Call, Define, Look, Reassert, Settle, State, Touch, Void
from tests.lanes.executing_stage import CONCURRENCY, Queue, concurrency_held, governed, holding, queued, until
from tests.lanes.stage import STREAM_HEAD, ending, sends, tokens, usage

A = TypeVar("A")
ANSWER = STREAM_HEAD + tokens(3) + ending(usage(7, 3))


async def _running(queue: Queue, writers: list[asyncio.StreamWriter], job: Any) -> Any:
    """A delivery whose model has produced four tokens and goes on."""
    delivery = queue.deliver(job)
    await until(lambda: writers)
    writers[-1].write(STREAM_HEAD + tokens(4))
    await queue.sleep.advance(0.1)
    return delivery


def test_lease_is_renewed_for_as_long_as_the_job_runs_and_progress_is_recorded() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve, limits=(CONCURRENCY,)) as queue:
            job = queue.accept()
            delivery = await _running(queue, writers, job)
            await queue.sleep.advance(300)
            queue.sweep()
            seen = queue.look(job)
            assert (seen.running, seen.touched_completion) == (True, 4)
            assert (queue.calls(Touch), queue.calls(Acquire)) == (75, 1)
            writers[0].write(ending(usage(7, 4)))
            result = await queue.finish(delivery)
            assert queue.charge(job, result) == (7, 4)

    asyncio.run(main())


def test_lease_lost_while_the_store_was_away_is_taken_again_and_the_job_is_billed_once() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve, limits=(CONCURRENCY,)) as queue:
            job = queue.accept()
            delivery = await _running(queue, writers, job)
            queue.store.refusing = (Touch, Acquire, Look)
            await queue.sleep.advance(70)
            queue.sweep()
            assert (queue.look(job).running, concurrency_held(queue)) == (False, 0)
            queue.store.refusing = ()
            await queue.sleep.advance(4)
            assert (queue.look(job).running, concurrency_held(queue)) == (True, 1)
            writers[0].write(ending(usage(7, 4)))
            result = await queue.finish(delivery)
            assert len(queue.stage.received) == 1
            assert queue.charge(job, result) == (7, 4)

    asyncio.run(main())


def test_job_below_which_a_cap_was_lowered_while_its_lease_was_lost_fails_and_is_charged_nothing() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve, limits=(CONCURRENCY,)) as queue:
            job = queue.accept()
            delivery = await _running(queue, writers, job)
            queue.store.refusing = (Touch,)
            await queue.sleep.advance(70)
            definitions = governed(replace(CONCURRENCY, cap=0))
            queue.store.now(
                Define(organisation="acme", caller_now_ms=queue.clock.ms, version=2, definitions=definitions)
            )
            queue.store.refusing = ()
            await queue.sleep.advance(4)
            result = await queue.finish(delivery)
            await queue.stage.servers[0].disconnected.wait()
            assert (result.status, result.http_status) == (JobStatus.FAILED, 400)
            assert queue.charge(job, result) is None

    asyncio.run(main())


def test_job_that_another_executor_finished_meanwhile_is_dropped_and_its_server_disconnected() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept()
            first = await _running(queue, writers, job)
            queue.store.refusing = (Touch,)
            await queue.sleep.advance(70)
            second = queue.deliver(job)
            await until(lambda: len(writers) == 2)
            writers[1].write(ANSWER)
            result = await queue.finish(second)
            queue.publish(job)
            queue.store.refusing = ()
            await queue.sleep.advance(4)
            await queue.drop(first)
            await queue.stage.servers[0].disconnected.wait()
            assert queue.charge(job, result) == (7, 3)

    asyncio.run(main())


@pytest.mark.parametrize("ending_call", [Void, Settle])
def test_job_that_somebody_ended_is_dropped_and_its_server_disconnected(ending_call: type) -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept()
            delivery = await _running(queue, writers, job)
            more: dict[str, Any] = {"usage": Usage(1, 1)} if ending_call is Settle else {}
            queue.store.now(ending_call(organisation="acme", caller_now_ms=queue.clock.ms, reservation=job.job, **more))
            await queue.sleep.advance(4)
            await queue.drop(delivery)
            await queue.stage.servers[0].disconnected.wait()

    asyncio.run(main())


# --- more than one delivery --------------------------------------------------------------------------------------


def test_second_delivery_waits_while_the_first_one_runs_and_is_dropped_once_that_is_published() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept()
            first = await _running(queue, writers, job)
            for _ in range(5):
                second = queue.deliver(job)
                await queue.sleep.advance(30)
                assert (await queue.later(second)).reason == "another executor works on it"
            assert len(writers) == 1
            second = queue.deliver(job)
            await queue.sleep.advance(1)
            writers[0].write(ending(usage(7, 4)))
            result = await queue.finish(first)
            queue.publish(job)
            await queue.sleep.advance(2)
            await queue.drop(second)
            assert queue.charge(job, result) == (7, 4)

    asyncio.run(main())


def test_job_of_an_executor_that_died_is_run_again_after_10_s_and_billed_once() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve, limits=(CONCURRENCY,)) as queue:
            job = queue.accept()
            first = await _running(queue, writers, job)
            await queue.sleep.advance(5)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await queue.stage.servers[0].disconnected.wait()
            assert (queue.calls(Settle), queue.calls(Void)) == (0, 0)
            second = queue.deliver(job)
            await queue.sleep.advance(9)
            assert len(writers) == 1
            await queue.sleep.advance(2)
            await until(lambda: len(writers) == 2)
            assert concurrency_held(queue) == 1
            writers[1].write(ANSWER)
            result = await queue.finish(second)
            assert queue.charge(job, result) == (7, 3)
            (*_, end) = queue.store.ends()
            assert end.kind is EventKind.POSTED

    asyncio.run(main())


def test_job_of_a_process_that_died_alone_is_run_again_at_once() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept()
            first = await _running(queue, writers, job)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            alone = Executor(
                queue.store, queue.stage.lane.caller, queue.clock, queue.stage.lane.models,
                observer=queue.stage.health, translations={}, is_alone=True, sleep=queue.sleep,
            )  # fmt: skip
            second = asyncio.create_task(alone.execute(job))
            await until(lambda: len(writers) == 2)
            writers[1].write(ANSWER)
            assert queue.charge(job, await queue.finish(second)) == (7, 3)

    asyncio.run(main())


def test_job_whose_result_is_published_is_dropped() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            result = await queue.run(job)
            queue.publish(job)
            assert await queue.executor.execute(job) == Dropped()
            assert len(queue.stage.received) == 1
            queue.collect(result)
            assert await queue.executor.execute(job) == Dropped()

    asyncio.run(main())


# --- a store that lost its state ---------------------------------------------------------------------------------


def test_running_job_is_asserted_again_to_a_store_that_lost_it() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept()
            delivery = await _running(queue, writers, job)
            queue.lose_state(epoch=2)
            await queue.sleep.advance(4)
            assert queue.calls(Reassert) == 1
            seen = queue.look(job)
            assert (seen.running, seen.touched_completion) == (True, 4)
            await queue.sleep.advance(100)
            assert queue.calls(Reassert) == 1
            writers[0].write(ending(usage(7, 4)))
            result = await queue.finish(delivery)
            assert queue.charge(job, result) == (7, 4)

    asyncio.run(main())


def test_running_job_whose_lease_passed_while_the_store_was_lost_acquires_again() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept()
            delivery = await _running(queue, writers, job)
            queue.store.refusing = (Touch,)
            await queue.sleep.advance(70)
            queue.lose_state(epoch=2)
            queue.store.refusing = ()
            await queue.sleep.advance(4)
            assert queue.look(job).running
            writers[0].write(ending(usage(7, 4)))
            result = await queue.finish(delivery)
            assert queue.charge(job, result) == (7, 4)

    asyncio.run(main())


def test_running_job_goes_on_while_the_store_is_being_rebuilt() -> None:
    async def main() -> None:
        serve, writers = holding()
        async with queued(serve) as queue:
            job = queue.accept()
            delivery = await _running(queue, writers, job)
            queue.store.organisation = Organisation("acme")
            await queue.sleep.advance(20)
            assert not delivery.done()
            queue.lose_state(epoch=2)
            await queue.sleep.advance(4)
            assert queue.look(job).running
            writers[0].write(ending(usage(7, 4)))
            result = await queue.finish(delivery)
            assert queue.charge(job, result) == (7, 4)

    asyncio.run(main())


def test_waiting_job_of_an_older_epoch_is_held_again_and_runs() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.lose_state(epoch=2)
            result = await queue.run(job)
            assert queue.look(job).state is State.OPEN
            assert queue.charge(job, result) == (7, 3)

    asyncio.run(main())


def test_accepted_job_that_the_store_lost_with_the_end_of_its_log_is_claimed_again_and_billed_once() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.lose_state(epoch=1)
            result = await queue.run(job)
            assert queue.calls(Reassert) == 1
            assert queue.charge(job, result) == (7, 3)

    asyncio.run(main())


class EventfulStore:
    """The store of a queue, to which something happens once it has answered so many calls."""

    def __init__(self, queue: Queue, answers: int, happen: Callable[[], object]) -> None:
        self._queue = queue
        self._answers = answers
        self._happen = happen

    async def apply(self, call: Call[A]) -> A:
        answer = await self._queue.store.apply(call)
        self._answers -= 1
        if self._answers == 0:
            self._happen()
        return answer


async def _execute_while(queue: Queue, job: Job, answers: int, happen: Callable[[], object]) -> Outcome:
    executor = Executor(
        EventfulStore(queue, answers, happen), queue.stage.lane.caller, queue.clock, queue.stage.models,
        observer=queue.stage.health, translations=TRANSLATIONS, sleep=queue.sleep, is_alone=True,
    )  # fmt: skip
    return await executor.execute(job)


@pytest.mark.parametrize("last", [Acquire, Look])
def test_accepted_job_that_is_lost_again_while_it_is_claimed_again_waits_for_the_store(last: type[Call[Any]]) -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.lose_state(epoch=1)

            def lose() -> None:
                queue.store.organisation = Organisation("acme")

            assert isinstance(await _execute_while(queue, job, 1 if last is Acquire else 2, lose), Later)
            queue.lose_state(epoch=2)
            result = await queue.run(job)
            assert queue.charge(job, result) == (7, 3)

    asyncio.run(main())


def test_accepted_job_of_which_the_store_is_told_again_before_it_is_claimed_again_runs_later() -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            queue.lose_state(epoch=1)
            assert isinstance(await _execute_while(queue, job, 1, lambda: queue.store.now(job.reserve)), Later)
            result = await queue.run(job)
            assert queue.charge(job, result) == (7, 3)

    asyncio.run(main())


@pytest.mark.parametrize("end", [Queue.publish, Queue.cancel])
def test_message_of_an_open_job_that_has_its_result_or_is_cancelled_is_dropped(
    end: Callable[[Queue, Job], None],
) -> None:
    async def main() -> None:
        async with queued(sends(ANSWER)) as queue:
            job = queue.accept()
            end(queue, job)
            assert await queue.executor.execute(job) == Dropped()

    asyncio.run(main())
