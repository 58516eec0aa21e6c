"""Places are shared evenly between organisations: nobody waits behind more than one job of each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from random import Random
from typing import Any

from penstock.lanes.executing import Dropped, Later, Outcome, Poison
from penstock.lanes.executing_turns import PATIENCE_MS, Turns
from penstock.lanes.jobs import Job, write_job
from penstock.quota.operations import Lane, Reserve
from tests.lanes.executing_stage import VirtualSleep, turns
from tests.lanes.stage import ManualClock

Task = asyncio.Task[Outcome]


def message(name: str) -> bytes:
    """A job; the first letter of its name is its organisation."""
    reserve = Reserve(
        organisation=name[0], caller_now_ms=1, reservation=name, nonce="n", fingerprint="f", key="k1", key_mac="",
        route="embeddings", model="m", body_bytes=1, outputs_bound=1, lane=Lane.QUEUE, job_deadline_ms=2,
    )  # fmt: skip
    return write_job(
        Job(job=name, organisation=name[0], epoch=1, route="embeddings", model="m", request_id="r", accepted_at_ms=1,
            reserve=reserve, request={})
    )  # fmt: skip


class Hall:
    """Turns whose jobs run until they are told to end."""

    def __init__(self, places: int) -> None:
        self.begun: list[str] = []
        self.ends: dict[str, asyncio.Future[Outcome]] = {}
        self.sleep = VirtualSleep(ManualClock())
        self.turns = Turns(self._run, places=places, sleep=self.sleep)

    async def _run(self, job: Job, traceparent: str | None) -> Outcome:
        self.begun.append(job.job)
        self.ends[job.job] = asyncio.get_running_loop().create_future()
        try:
            return await self.ends[job.job]
        finally:
            del self.ends[job.job]

    async def bring(self, *names: str) -> list[Task]:
        tasks = [asyncio.create_task(self.turns.execute(message(name))) for name in names]
        await turns()
        return tasks

    async def end(self, name: str, outcome: Outcome | None = None) -> None:
        self.ends[name].set_result(outcome or Dropped())
        await turns()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_one_that_comes_last_is_next_if_nothing_of_its_runs() -> None:
    async def test() -> None:
        hall = Hall(places=2)
        await hall.bring(*(f"a{number}" for number in range(9)))
        await hall.bring("b0")
        assert hall.begun == ["a0", "a1"]
        await hall.end("a0")
        assert hall.begun == ["a0", "a1", "b0"]
        await hall.end("b0")
        assert hall.begun[3:] == ["a2"]

    run(test())


def test_those_that_have_many_take_turns() -> None:
    async def test() -> None:
        hall = Hall(places=1)
        await hall.bring("a0", "a1", "a2", "a3", "b0", "b1", "c0")
        for _ in range(6):
            await hall.end(hall.begun[-1])
        assert hall.begun == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]

    run(test())


def test_a_job_waits_until_one_place_is_free_for_each_other_organisation_and_itself() -> None:
    async def test() -> None:
        random = Random(7)
        for places in (1, 2, 5):
            hall = Hall(places)
            others = "bcdef"
            await hall.bring(*(f"{random.choice(others)}{number}" for number in range(60)))
            await hall.bring("a0")
            freed = 0
            while "a0" not in hall.begun:
                await hall.end(random.choice(sorted(hall.ends)))
                freed += 1
            assert freed <= len(others) + 1, f"seed 7, {places} places"

    run(test())


def test_no_more_run_at_once_than_there_are_places_and_all_run() -> None:
    async def test() -> None:
        hall = Hall(places=3)
        tasks = await hall.bring(*(f"{letter}{number}" for letter in "ab" for number in range(10)))
        while hall.ends:
            assert len(hall.ends) <= 3
            await hall.end(next(iter(hall.ends)))
        assert Counter(name[0] for name in hall.begun) == {"a": 10, "b": 10}
        assert all(task.result() == Dropped() for task in tasks)

    run(test())


def test_a_job_that_its_limits_refuse_leaves_its_place_and_comes_again_after_its_time() -> None:
    async def test() -> None:
        hall = Hall(places=1)
        (first, _) = await hall.bring("a0", "b0")
        await hall.end("a0", Later(300, "a rate", is_limited=True))
        assert hall.begun == ["a0", "b0"]
        await hall.end("b0")
        await hall.sleep.advance(0.299)
        assert hall.begun == ["a0", "b0"]
        await hall.sleep.advance(0.001)
        await hall.end("a0")
        assert first.result() == Dropped()

    run(test())


def test_a_job_that_its_limits_refuse_for_long_is_to_be_parked() -> None:
    async def test() -> None:
        hall = Hall(places=1)
        (task,) = await hall.bring("a0")
        await hall.end("a0", Later(PATIENCE_MS, "a rate", is_limited=True))
        await hall.sleep.advance(PATIENCE_MS / 1000)
        refused = Later(1, "a rate", is_limited=True)
        await hall.end("a0", refused)
        assert task.result() is refused

    run(test())


def test_what_is_away_is_told_at_once() -> None:
    async def test() -> None:
        hall = Hall(places=1)
        (task,) = await hall.bring("a0")
        away = Later(1, "the store is away")
        await hall.end("a0", away)
        assert task.result() is away

    run(test())


def test_a_job_whose_worker_left_gives_its_turn_and_its_place_to_others() -> None:
    async def test() -> None:
        hall = Hall(places=1)
        running, waiting, _ = await hall.bring("a0", "b0", "c0")
        waiting.cancel()
        await turns()
        running.cancel()
        await turns()
        assert hall.begun == ["a0", "c0"]
        await hall.end("c0")
        (task,) = await hall.bring("b1")
        await hall.end("b1")
        assert task.result() == Dropped()

    run(test())


def test_a_message_that_is_no_job_takes_no_place() -> None:
    async def test() -> None:
        assert isinstance(await Hall(places=0).turns.execute(b"{}"), Poison)

    run(test())
