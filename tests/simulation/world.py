"""One schedule of a cluster: some jobs, a minute of faults, then rest; and what must be true of all that is left."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

from penstock.errors import StoreUnavailable
from penstock.lanes.models import ServedModel, Upstream
from penstock.quota import (
    Cancel,
    Define,
    Definitions,
    Inspect,
    Inspected,
    Key,
    Kind,
    Lane,
    Limit,
    Metric,
    Model,
    NotReady,
    Price,
    Ready,
    Reserve,
    reservation_id,
)
from tests.simulation.checking import wrong_sentences
from tests.simulation.model_server import Server, Work
from tests.simulation.realtime import Door
from tests.simulation.scheduling import Clock, Faults, Life, System, VirtualLoop
from tests.simulation.services import Database, WorkQueue
from tests.simulation.store import Quota, QuotaPort
from tests.simulation.streams import Cluster, Rules, accept, collect, keep, run_executor, serve, work

FAULTS_S = 60.0
DEADLINE_MS = 240_000
REST_S = 600.0
CAP = 1 << 40
LIMITS = (
    Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=30_000, cap=CAP),
    Limit(owner="acme", metric=Metric.COST, kind=Kind.WINDOW, cap=CAP),
    Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.RATE, period_ms=60_000, cap=4_000),
    Limit(owner="acme", metric=Metric.CONCURRENCY, kind=Kind.CONCURRENCY, cap=4),
)
TIGHT = Limit(owner="acme", metric=Metric.TOKENS, kind=Kind.WINDOW, period_ms=86_400_000, cap=600)
DEFINITIONS = Definitions(
    limits=LIMITS,
    keys={"k1": Key(id="k1", verified=True)},
    models={"chat": Model(name="chat", context=1_000, price=Price(prompt_picos=1_000_000, completion_picos=2_000_000))},
)


@dataclass(slots=True)
class Outcome:
    """What is left of one schedule.

    Args:
        accepted: Jobs whose client was told 202.
        calls: The reservation of each request that reached a model server.
        asked: Requests of the realtime lane, of which so many were ``answered`` whole, and so many clients ``left``.
        spooled: Writes of the spool; ``delivered_after_restart``: ends that a later process found in it.
        losses: Of the quota store, by kind; ``restarts`` of it, with a loss or none, and
            how often it was ``rebuilt``, and admissions began again.
        wrong: Which sentences are not true, and why.
    """

    accepted: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    kills: int = 0
    points: set[str] = field(default_factory=set)
    asked: int = 0
    answered: int = 0
    left: int = 0
    spooled: int = 0
    delivered_after_restart: int = 0
    losses: Tally[str] = field(default_factory=Tally)
    restarts: int = 0
    rebuilt: int = 0
    wrong: list[str] = field(default_factory=list)


class Schedule:
    """Everything that happens between the first job and rest."""

    def __init__(self, loop: VirtualLoop, seed: int, rules: Rules) -> None:
        self.random = Random(seed)
        self.faults = Faults(self.random)
        clock = Clock(loop)
        self.clock = clock
        self.outcome = Outcome()
        self.work = Work()
        definitions = DEFINITIONS
        if self.random.random() < 0.15:  # a day's budget that a few requests exhaust
            definitions = replace(DEFINITIONS, limits=(*LIMITS, TIGHT))
        quota = Quota(clock, self.faults, "acme", settles_once=rules.settles_once)
        model = ServedModel(
            name="chat", upstreams=(Upstream(url="http://server"),), upstream_model="m", context=1_000, max_tokens=50
        )
        self.cluster = Cluster(
            clock=clock, quota=quota, jobs=WorkQueue(self.faults), results=WorkQueue(self.faults),
            database=Database(clock, self.faults), rules=rules, models={"chat": model}, definitions=definitions,
            door=Door(clock, self.random),
        )  # fmt: skip
        by: dict[str, Any] = {"organisation": "acme", "caller_now_ms": clock.now_ms()}
        quota.carry_out(Define(**by, version=1, definitions=definitions))
        self.cluster.database.epochs["acme"] = 1  # kept before it begins, as a keeper does
        quota.carry_out(Ready(**by, epoch=1))

    async def run(self) -> Outcome:
        """All of it."""
        system, cluster = System(self.faults), self.cluster
        system.start("gateway", self._nothing)
        system.start("worker", lambda life: self._both(work(cluster, life), work(cluster, life)))
        system.start("collector", lambda life: collect(cluster, life))
        system.start("executor", lambda life: run_executor(cluster, life, self._server(life)))
        system.start("api", lambda life: serve(cluster, life, self._server(life)))
        for number in range(2):
            system.start(f"keeper {number}", lambda life: keep(cluster, life))
        loop = asyncio.get_running_loop()
        for number in range(self.random.randint(2, 5)):
            loop.call_later(self.random.uniform(0, 20), self._send, system, number)
        for number in range(self.random.randint(1, 6)):
            loop.call_later(self.random.uniform(0, 40), cluster.door.send, number)
        self._lose(loop)
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
        return Server(self.faults, life, self.work)

    def _lose(self, loop: asyncio.AbstractEventLoop) -> None:
        """When the quota store is away for long, loses its state, or the end of it."""
        quota = self.cluster.quota
        if self.random.random() < 0.3:
            away_s = self.random.uniform(2.0, 20.0)
            loop.call_later(self.random.uniform(3, 40), partial(quota.restart, away_s, loses=False))
        for _ in range(self.random.choice((0, 0, 0, 1, 1, 2))):
            at_s = self.random.uniform(3, 50)
            if self.random.random() < 0.5:
                loop.call_later(at_s, quota.flush)
            else:
                loop.call_later(at_s - self.random.choice((0.0, 0.2, 1.0, 2.0)), quota.sync)
                loop.call_later(at_s, quota.restart, self.random.uniform(0.05, 3.0))

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
            is_spooled = cluster.door.spool is None or cluster.door.spool.waiting
            if not (is_busy or is_unsettled or is_spooled or cluster.quota.outbox or not self._is_at_rest()):
                return

    def _is_at_rest(self) -> bool:
        found = self._inspected()
        return isinstance(found, Inspected) and found.epoch > 0 and not found.holds

    def _inspected(self) -> Inspected | NotReady:
        return self.cluster.quota.carry_out(Inspect(organisation="acme", caller_now_ms=self.clock.now_ms()))

    def _check(self) -> None:
        outcome, cluster, door = self.outcome, self.cluster, self.cluster.door
        outcome.kills, outcome.points = self.faults.kills, self.faults.points
        outcome.calls = self.work.calls
        outcome.asked, outcome.answered = len(door.asked), sum(each.tokens is not None for each in door.asked)
        outcome.left = sum(each.left for each in door.asked)
        outcome.spooled, outcome.delivered_after_restart = door.machine.kept, door.machine.delivered_after_restart
        outcome.losses = Tally(each.kind for each in cluster.quota.losses)
        outcome.restarts = cluster.quota.run - 1
        outcome.rebuilt = cluster.quota.organisation.epoch - 1
        outcome.wrong += self.faults.bugs
        outcome.wrong += wrong_sentences(cluster, self.work, self._inspected(), outcome.accepted, outcome.cancelled)


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
