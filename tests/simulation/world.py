"""One schedule of a cluster: some jobs, a minute of faults, then rest; and what must be true of all that is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from penstock.errors import StoreUnavailable, UpstreamBroken, UpstreamUnreachable
from penstock.lanes.models import ServedModel, Upstream
from penstock.ports import UpstreamRequest
from penstock.quota import (
    Cancel,
    Define,
    Definitions,
    EventKind,
    Inspect,
    Inspected,
    Key,
    Kind,
    Lane,
    Limit,
    Metric,
    Model,
    Price,
    Ready,
    Reserve,
    reservation_id,
)
from tests.quota import invariants
from tests.simulation.scheduling import Clock, Faults, Life, System, VirtualLoop
from tests.simulation.services import Database, Quota, QuotaPort, WorkQueue
from tests.simulation.streams import Cluster, Rules, accept, collect, keep, run_executor, work

FAULTS_S = 60.0
DEADLINE_MS = 240_000
REST_S = 600.0
CAP = 1 << 40
LIMITS = (
    Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=30_000, cap=CAP),
    Limit(owner="acme", metric=Metric.COST, kind=Kind.WINDOW, cap=CAP),
    Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=2_000),
    Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=2),
)
DEFINITIONS = Definitions(
    limits=LIMITS,
    keys={"k1": Key(id="k1", verified=True)},
    models={"chat": Model(name="chat", context=1_000, price=Price(prompt_picos=1_000_000, completion_picos=2_000_000))},
)


@dataclass(slots=True)
class Answer:
    """A model server's answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    life: Life

    async def read(self, bytes_max: int) -> bytes:
        return self.body

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.body

    async def pour(self, take: Callable[[bytes], bool]) -> None:
        take(self.body)

    def close(self) -> None:
        return


@dataclass(slots=True)
class Server:
    """A model server: it takes its time, is too busy, or breaks off."""

    faults: Faults
    life: Life
    calls: list[str]

    async def open(self, request: UpstreamRequest) -> Answer:
        faults = self.faults
        if faults.happens(0.05):
            raise UpstreamUnreachable("nobody listens")
        self.calls.append(request.headers["x-request-id"])
        await self.life.wait(faults.random.choice((0.2, 1.0, 9.0, 30.0)))
        if faults.happens(0.05):
            raise UpstreamBroken("the connection was lost")
        if faults.happens(0.05):
            return Answer(503, {"retry-after": "2"}, b"", self.life)
        usage = {"prompt_tokens": faults.random.randrange(1, 60), "completion_tokens": faults.random.randrange(1, 50)}
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        return Answer(200, {"content-type": "application/json"}, json.dumps(body).encode(), self.life)


@dataclass(slots=True)
class Outcome:
    """What is left of one schedule.

    Args:
        accepted: Jobs whose client was told 202.
        calls: The reservation of each request that reached a model server.
        wrong: Which sentences are not true, and why.
    """

    accepted: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    kills: int = 0
    points: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


class Schedule:
    """Everything that happens between the first job and rest."""

    def __init__(self, loop: VirtualLoop, seed: int, rules: Rules) -> None:
        self.random = Random(seed)
        self.faults = Faults(self.random)
        clock = Clock(loop)
        self.clock = clock
        self.outcome = Outcome()
        quota = Quota(clock, self.faults, "acme")
        model = ServedModel(
            name="chat", upstreams=(Upstream(url="http://server"),), upstream_model="m", context=1_000, max_tokens=50
        )
        self.cluster = Cluster(
            clock=clock, quota=quota, jobs=WorkQueue(self.faults), results=WorkQueue(self.faults),
            database=Database(clock, self.faults), rules=rules, models={"chat": model}, definitions=DEFINITIONS,
        )  # fmt: skip
        by: dict[str, Any] = {"organisation": "acme", "caller_now_ms": clock.now_ms()}
        quota.carry_out(Define(**by, version=1, definitions=DEFINITIONS))
        quota.carry_out(Ready(**by, epoch=1))

    async def run(self) -> Outcome:
        """All of it."""
        system, cluster = System(self.faults), self.cluster
        system.start("gateway", self._nothing)
        system.start("worker", lambda life: self._both(work(cluster, life), work(cluster, life)))
        system.start("collector", lambda life: collect(cluster, life))
        system.start("executor", lambda life: run_executor(cluster, life, self._server(life)))
        for number in range(2):
            system.start(f"keeper {number}", lambda life: keep(cluster, life))
        loop = asyncio.get_running_loop()
        for number in range(self.random.randint(2, 5)):
            loop.call_later(self.random.uniform(0, 20), self._send, system, number)
        for _ in range(self.random.choice((0, 1, 3))):
            name = self.random.choice(sorted(system.lives))
            loop.call_later(self.random.uniform(0, FAULTS_S), system.kill, name)
        await asyncio.sleep(FAULTS_S)
        self.faults.is_on = False
        await self._rest()
        self._check()
        system.close()
        await asyncio.sleep(0)
        return self.outcome

    async def _nothing(self, life: Life) -> None:
        """A gateway only answers."""

    async def _both(self, *consumers: Any) -> None:
        await asyncio.gather(*consumers)

    def _server(self, life: Life) -> Any:
        return Server(self.faults, life, self.outcome.calls)

    def _send(self, system: System, number: int) -> None:
        now_ms = self.clock.now_ms()
        reserve = Reserve(
            organisation="acme", caller_now_ms=now_ms, reservation=reservation_id(now_ms, number), nonce="n",
            fingerprint="f", key="k1", key_mac="", route="chat.completions", model="chat", body_bytes=60,
            outputs_bound=50, lane=Lane.QUEUE, job_deadline_ms=now_ms + DEADLINE_MS,
        )  # fmt: skip
        life = system.lives["gateway"]
        if not life.is_over:
            life.run(self._ask(life, reserve))

    async def _ask(self, life: Life, reserve: Reserve) -> None:
        if not await accept(self.cluster, life, reserve):
            return
        self.outcome.accepted.add(reserve.reservation)
        if self.random.random() < 0.15:
            await life.wait(self.random.uniform(0.1, 30))
            self.outcome.cancelled.add(reserve.reservation)
            with suppress(StoreUnavailable):
                await QuotaPort(self.cluster.quota, life).apply(Cancel(**self.cluster.by(reserve.reservation)))

    async def _rest(self) -> None:
        """Until every reservation has ended, by its deadline at the latest, and the keeper has written it down."""
        cluster = self.cluster
        for _ in range(int(REST_S / 10)):
            await asyncio.sleep(10)
            queues = (cluster.jobs, cluster.results)
            is_busy = any(each.ready or each.unacknowledged for each in queues)
            is_unsettled = any(not row.is_settled for row in cluster.database.results.values())
            if not (is_busy or is_unsettled or cluster.quota.outbox or self._inspected().holds):
                return

    def _inspected(self) -> Inspected:
        found = self.cluster.quota.carry_out(Inspect(organisation="acme", caller_now_ms=self.clock.now_ms()))
        assert isinstance(found, Inspected)
        return found

    def _check(self) -> None:
        outcome, database = self.outcome, self.cluster.database
        outcome.kills, outcome.points = self.faults.kills, self.faults.points
        rows = list(database.ledger.values())
        standing = self._inspected()
        outcome.wrong += self.faults.bugs
        for sentence in (
            partial(invariants.all_has_come_to_rest, standing, [each.event for each in self.cluster.quota.outbox]),
            partial(invariants.held_is_the_sum_of_open_reservations, standing),
            partial(invariants.used_and_held_stay_within_the_cap, standing),
            partial(invariants.buckets_stay_within_their_caps, standing),
            partial(invariants.used_is_what_the_ledger_says, standing, invariants.window_sums(rows)),
            partial(invariants.every_id_leaves_open_once, rows),
            self._nothing_accepted_is_lost,
            self._what_is_billed_is_what_was_stored,
        ):
            try:
                sentence()
            except AssertionError as error:
                name = getattr(sentence, "func", sentence).__name__
                outcome.wrong.append(f"{name}: {str(error).partition(chr(10))[0]}")

    def _nothing_accepted_is_lost(self) -> None:
        lost = self.outcome.accepted - self.outcome.cancelled - self.cluster.database.results.keys()
        assert not lost, f"accepted, and without a result: {sorted(lost)}"

    def _what_is_billed_is_what_was_stored(self) -> None:
        database = self.cluster.database
        for job, row in database.results.items():
            assert row.is_settled, f"{job} is stored, and never settled"
            kinds = {kind: event for (name, kind), event in database.ledger.items() if name == job}
            charged = sum(event.charge.tokens for event in kinds.values())
            usage = row.usage
            told = 0 if usage is None else usage.prompt + usage.completion
            is_given_up = job in self.outcome.cancelled or job not in self.outcome.accepted
            if is_given_up and EventKind.VOIDED in kinds:
                assert charged == 0, f"{job} was voided, and {charged} tokens were charged"
            elif EventKind.EXPIRED not in kinds:
                assert charged == told, f"{job}: {told} tokens in its result, {charged} in the ledger"
            else:  # at the least that it can have used, and its late settle adds the rest
                assert charged >= told, f"{job}: {told} tokens in its result, {charged} in the ledger"
        for (job, kind), event in database.ledger.items():
            billed = kind in (EventKind.POSTED, EventKind.LATE) and event.charge.tokens
            assert not billed or job in database.results, f"{job} is billed, and has no result"


def simulated(seed: int, rules: Rules | None = None) -> Outcome:
    """One schedule, from its seed."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(Schedule(loop, seed, rules or Rules()).run())
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
