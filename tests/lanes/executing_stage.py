"""An executor on the realtime lane's stage, with time that passes only when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count
from typing import Any

import msgspec

from penstock.api.responses import TRANSLATIONS
from penstock.lanes.executing import Dropped, Executor, Finished, Later, Outcome
from penstock.lanes.jobs import Job, JobResult
from penstock.quota.definitions import Definitions, Key, Kind, Limit, Metric, Model, Price
from penstock.quota.model import Organisation
from penstock.quota.operations import (
    Call,
    Cancel,
    Define,
    Done,
    Lane,
    Look,
    Published,
    Ready,
    Reserve,
    Reserved,
    Seen,
    Settle,
    Settled,
    Sweep,
    Void,
)
from tests.lanes.stage import ANSWER, CAP, NOW_MS, ManualClock, Stage, staged

DEADLINE_MS = NOW_MS + 600_000
TURNS = 200  # of the event loop: enough for anything on loopback that is ready to happen
BOUND_TURNS = 200_000


class VirtualSleep:
    """Sleeps until a test moves the clock past the end."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._numbers = count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    async def __call__(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (self._clock.ms + max(1, round(seconds * 1000)), next(self._numbers), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Let time pass, waking everyone at their moment."""
        end_ms = self._clock.ms + round(seconds * 1000)
        await turns()
        while self._waiting and self._waiting[0][0] <= end_ms:
            due_ms, _, woken = heappop(self._waiting)
            if not woken.done():
                self._clock.ms = due_ms
                woken.set_result(None)
                await turns()
        self._clock.ms = end_ms
        await turns()


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def until(happened: Callable[[], Any]) -> None:
    """Let the event loop turn until it has happened; time stands still."""
    for _ in range(BOUND_TURNS):
        if happened():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happened")


def governed(*limits: Limit, window_cap: int = CAP) -> Definitions:
    """A budget and ``limits``; a key without a secret; one model."""
    window = Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=window_cap)
    return Definitions(
        limits=(window, *limits),
        keys={"k1": Key(id="k1", verified=True)},
        models={
            "chat": Model(name="chat", context=1000, price=Price(prompt_picos=1_000_000, completion_picos=2_000_000))
        },
    )


CONCURRENCY = Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=1)


class Queue:
    """An executor, and what a broker, a worker and a collector would do around it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.store = stage.store
        self.clock = stage.clock
        self.sleep = VirtualSleep(stage.clock)
        self._numbers = count(1)

    @property
    def executor(self) -> Executor:
        """A new one each time: what it knows lies in the store."""
        stage = self.stage
        return Executor(
            stage.store, stage.lane.caller, stage.clock, stage.models,
            observer=stage.health, translations=TRANSLATIONS, sleep=self.sleep,
        )  # fmt: skip

    def accept(self, body: dict[str, Any] | None = None, **changes: Any) -> Job:
        """What the gateway does: reserve, and write the job."""
        request = {
            "model": "chat", "messages": [{"role": "user", "content": "twelve bytes"}], "max_tokens": 50,
        } | (body or {})  # fmt: skip
        fields: dict[str, Any] = {
            "organisation": "acme", "caller_now_ms": self.clock.ms, "reservation": f"{next(self._numbers):032x}",
            "nonce": "n", "fingerprint": "f", "key": "k1", "key_mac": "", "route": "chat.completions",
            "model": "chat", "body_bytes": 80, "outputs_bound": 50, "lane": Lane.QUEUE,
            "job_deadline_ms": DEADLINE_MS,
        }  # fmt: skip
        reserve = Reserve(**(fields | changes))
        reserved = self.store.now(reserve)
        assert isinstance(reserved, Reserved), reserved
        return Job(
            job=reserve.reservation, organisation="acme", epoch=reserved.epoch, route=reserve.route,
            model=reserve.model, request_id="r1", accepted_at_ms=self.clock.ms, reserve=reserve, request=request,
        )  # fmt: skip

    def deliver(self, job: Job) -> asyncio.Task[Outcome]:
        """One delivery of the job's message."""
        return asyncio.create_task(self.executor.execute(job))

    async def run(self, job: Job) -> JobResult:
        """Deliver it, and wait for its result while no time passes."""
        async with asyncio.timeout(20):
            outcome = await self.executor.execute(job)
        assert isinstance(outcome, Finished), outcome
        return outcome.result

    async def finish(self, delivery: asyncio.Task[Outcome]) -> JobResult:
        """The result of a delivery that is about to end."""
        outcome = await self._end(delivery)
        assert isinstance(outcome, Finished), outcome
        return outcome.result

    async def drop(self, delivery: asyncio.Task[Outcome]) -> None:
        assert await self._end(delivery) == Dropped()

    async def later(self, delivery: asyncio.Task[Outcome]) -> Later:
        outcome = await self._end(delivery)
        assert isinstance(outcome, Later), outcome
        return outcome

    async def _end(self, delivery: asyncio.Task[Outcome]) -> Outcome:
        await until(delivery.done)
        return delivery.result()

    def publish(self, job: Job) -> None:
        assert self._call(Published, job) == Done()

    def cancel(self, job: Job) -> None:
        assert self._call(Cancel, job) == Done()

    def look(self, job: Job) -> Seen:
        seen = self._call(Look, job)
        assert isinstance(seen, Seen)
        return seen

    def collect(self, result: JobResult) -> Any:
        """Settle or void, as a collector does with the first result of a job."""
        fields: dict[str, Any] = {
            "organisation": "acme", "caller_now_ms": self.clock.ms, "reservation": result.job,
        }  # fmt: skip
        if result.usage is None:
            return self.store.now(Void(**fields, reason=result.reason))
        settled = self.store.now(Settle(**fields, usage=result.usage))
        assert isinstance(settled, Settled), settled
        return settled

    def charge(self, job: Job, result: JobResult) -> tuple[int, int] | None:
        """Publish and collect; then nothing is held, the budget shows this job alone, and this is its charge."""
        self._call(Published, job)
        self.collect(result)
        inspected = self.store.inspect()
        assert inspected.holds == ()
        assert all(limit.held == 0 for limit in inspected.limits)
        usage = result.usage
        assert self.stage.used() == (0 if usage is None else usage.prompt + usage.completion)
        return None if usage is None else (usage.prompt, usage.completion)

    def lose_state(self, epoch: int) -> None:
        """The store forgets everything, and is rebuilt without this organisation's reservations."""
        self.store.organisation = Organisation("acme")
        at: dict[str, Any] = {"organisation": "acme", "caller_now_ms": self.clock.ms}
        self.store.now(Define(**at, version=1, definitions=governed()))
        self.store.now(Ready(**at, epoch=epoch))

    def sweep(self) -> None:
        self.store.now(Sweep(organisation="acme", caller_now_ms=self.clock.ms, count_max=100))

    def calls(self, kind: type[Call[Any]]) -> int:
        return sum(isinstance(call, kind) for call in self.store.seen)

    def _call(self, kind: Any, job: Job) -> Any:
        return self.store.now(kind(organisation="acme", caller_now_ms=self.clock.ms, reservation=job.job))


def concurrency_held(queue: Queue) -> int:
    """How many requests count in it now."""
    return next(limit.held for limit in queue.store.inspect().limits if limit.metric == "concurrency")


def body_of(result: JobResult) -> Any:
    return msgspec.json.decode(result.body)


@asynccontextmanager
async def queued(*answers: ANSWER, limits: tuple[Limit, ...] = (), **options: Any) -> AsyncIterator[Queue]:
    """A queue whose model has one server for each of ``answers``."""
    async with staged(*answers, governed=governed(*limits), **options) as stage:
        yield Queue(stage)


def holding() -> tuple[ANSWER, list[asyncio.StreamWriter]]:
    """A server that answers nothing by itself; the writers of its requests, for the test to write to."""
    writers: list[asyncio.StreamWriter] = []

    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writers.append(writer)

    return answer, writers


def in_turn(*answers: bytes) -> ANSWER:
    """A server that answers the first request with the first, and so on."""
    left = list(answers)

    async def answer(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        writer.write(left.pop(0))

    return answer
