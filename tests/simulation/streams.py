"""The steps of the Bento streams, as config/bento has them: a process may die between any two.

Worker, executor and keeper are apart, as they are in a cluster. The executor and the keeper are the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from penstock.errors import StoreUnavailable
from penstock.lanes.calling import Caller
from penstock.lanes.executing import Dropped, Executor, Finished, Later, Outcome
from penstock.lanes.jobs import Job, JobResult
from penstock.lanes.keeping import Keeper
from penstock.lanes.models import ServedModel
from penstock.lanes.posting import Posting
from penstock.lanes.rebuilding import Rebuilder
from penstock.ports import Kept, UpstreamClient
from penstock.quota import (
    Definitions,
    Done,
    Duplicate,
    Published,
    Reserve,
    Reserved,
    Settle,
    Settled,
    Unknown,
    Void,
)
from tests.lanes.stage import Health
from tests.simulation.realtime import Door
from tests.simulation.scheduling import Clock, Life
from tests.simulation.services import Books, Database, Delivery, Row, WorkQueue
from tests.simulation.store import OutboxPort, Quota, QuotaPort, RestorerPort


@dataclass(frozen=True, slots=True)
class Rules:
    """Which of the rules are kept; the tests break one at a time."""

    worker_acknowledges_last: bool = True
    gateway_waits_for_confirm: bool = True
    winner_is_settled: bool = True
    collector_acknowledges_last: bool = True
    spool_survives: bool = True
    settles_once: bool = True
    holds_are_told_again: bool = True
    first_end_stands: bool = True
    what_expired_is_settled_again: bool = True
    rebuild_forgets: str = ""


@dataclass(slots=True)
class Cluster:
    """What every process can reach."""

    clock: Clock
    quota: Quota
    jobs: WorkQueue
    results: WorkQueue
    database: Database
    rules: Rules
    models: dict[str, ServedModel]
    definitions: Definitions
    door: Door
    executor: Executor | None = None
    executor_life: Life | None = None

    def by(self, reservation: str) -> dict[str, Any]:
        """What every call about a reservation carries."""
        return {"organisation": "acme", "caller_now_ms": self.clock.now_ms(), "reservation": reservation}


async def surely(life: Life, work: Callable[[], Any]) -> Any:
    """Again and again, until the store or the database is there."""
    while True:
        try:
            return await work()
        except StoreUnavailable:
            await life.wait(0.2)


async def accept(cluster: Cluster, life: Life, reserve: Reserve) -> bool:
    """The gateway: reserve, publish, and answer 202 only to what the broker confirmed."""
    quota = QuotaPort(cluster.quota, life)
    try:
        reserved = await quota.apply(reserve)
    except StoreUnavailable:
        reserved = None
    life.point("reserved")
    if not isinstance(reserved, Reserved | None):
        return False
    confirmed = False
    if reserved is not None:
        job = Job(
            job=reserve.reservation, organisation="acme", epoch=reserved.epoch, route=reserve.route,
            model=reserve.model, request_id="r", accepted_at_ms=cluster.clock.now_ms(), reserve=reserve,
            request={"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50},
        )  # fmt: skip
        confirmed = await cluster.jobs.publish(life, job)
    life.point("published")
    if not confirmed and cluster.rules.gateway_waits_for_confirm:
        with suppress(StoreUnavailable):  # its deadline ends it
            await quota.apply(Void(**cluster.by(reserve.reservation), reason="unpublished"))
        life.point("voided")
        return False
    return True


def _cancel(running: asyncio.Task[Outcome]) -> None:
    running.cancel()


async def execute(cluster: Cluster, life: Life, job: Job) -> Outcome | None:
    """Ask the executor beside the worker; None if it is away, or dies."""
    executor, beside = cluster.executor, cluster.executor_life
    if executor is None or beside is None or beside.is_over:
        return None
    running = beside.run(executor.execute(job))
    if life.faults.random.random() < 0.7:  # else the executor does not notice that its worker died
        life.at_end.append(partial(_cancel, running))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        life.check()
        return None


async def work(cluster: Cluster, life: Life) -> None:
    """A worker: run, publish surely, tell that it is published, acknowledge."""
    while True:
        delivery = await cluster.jobs.get(life)
        life.point("delivered")
        outcome = await execute(cluster, life, delivery.body)
        while outcome is None or isinstance(outcome, Later):
            await life.wait(1.0 if outcome is None else min(60.0, outcome.retry_after_ms / 1000))
            outcome = await execute(cluster, life, delivery.body)
        life.point("executed")
        if isinstance(outcome, Finished):
            await _publish(cluster, life, delivery, outcome.result)
        else:
            assert isinstance(outcome, Dropped), outcome
        delivery.acknowledge()
        life.point("acknowledged")


async def _publish(cluster: Cluster, life: Life, delivery: Delivery, result: JobResult) -> None:
    if not cluster.rules.worker_acknowledges_last:
        delivery.acknowledge()
        life.point("acknowledged early")
    while not await cluster.results.publish(life, result):
        await life.wait(0.2)
    life.point("result published")
    with suppress(StoreUnavailable):  # best effort: the collector settles anyway
        await QuotaPort(cluster.quota, life).apply(Published(**cluster.by(result.job)))
    life.point("told that it is published")


async def collect(cluster: Cluster, life: Life) -> None:
    """A collector: store the first result of each job, settle what the winner used, mark it, acknowledge."""
    while True:
        delivery = await cluster.results.get(life)
        life.point("result delivered")
        result: JobResult = delivery.body
        if not cluster.rules.collector_acknowledges_last:
            delivery.acknowledge()
            life.point("acknowledged early")

        async def end(result: JobResult = result) -> None:
            def store() -> Row:
                row = Row(result, cluster.clock.now_ms())
                return cluster.database.results.setdefault(result.job, row)

            winner = await cluster.database.transact(life, store)
            life.point("stored")
            if await _settle(cluster, life, winner.result if cluster.rules.winner_is_settled else result):
                life.point("settled")

                def mark() -> None:
                    winner.is_settled = True

                await cluster.database.transact(life, mark)
            life.point("marked")

        await surely(life, end)
        delivery.acknowledge()
        life.point("result acknowledged")


async def _settle(cluster: Cluster, life: Life, result: JobResult) -> bool:
    """Whether the store knows it; else it is left to the keeper."""
    quota = QuotaPort(cluster.quota, life)
    if result.usage is None:
        answer: Any = await quota.apply(Void(**cluster.by(result.job), reason=result.status.value))
    else:
        answer = await quota.apply(Settle(**cluster.by(result.job), usage=result.usage))
    if not isinstance(answer, Settled | Done | Duplicate | Unknown):
        raise StoreUnavailable(f"the quota store answered {answer}")
    return not isinstance(answer, Unknown)


async def run_executor(cluster: Cluster, life: Life, client: UpstreamClient) -> None:
    """The real one; it waits to be asked."""
    health: Any = Health()
    caller = Caller(client, cluster.clock, health, cluster.models.values())
    quota = QuotaPort(cluster.quota, life, tells=True)
    cluster.executor = Executor(
        quota, caller, cluster.clock, cluster.models, observer=health, translations={}, sleep=life.wait
    )
    cluster.executor_life = life


async def serve(cluster: Cluster, life: Life, client: UpstreamClient) -> None:
    """The API process, with the real realtime lane and spool."""
    if not cluster.rules.spool_survives:
        cluster.door.machine.lines.clear()
    tells = cluster.rules.holds_are_told_again
    store = QuotaPort(cluster.quota, life, tells=tells, stepped=life.point)
    posting = Posting(
        store, cluster.clock, partial(cluster.database.events, life), OutboxPort(cluster.quota, life).may_have
    )
    await cluster.door.serve(life, store, posting, cluster.models, client)


async def keep(cluster: Cluster, life: Life) -> None:
    """The real keeper, as slow as a busy machine."""
    quota = QuotaPort(cluster.quota, life, tells=True)
    restorer = RestorerPort(cluster.quota, life, forgets=cluster.rules.rebuild_forgets)
    books: Any = Books(
        cluster.database, life, knows_ends=cluster.rules.first_end_stands,
        reopens=cluster.rules.what_expired_is_settled_again,
    )  # fmt: skip

    async def definitions() -> tuple[int, dict[str, Definitions]]:
        return 1, {"acme": cluster.definitions}

    async def pause(seconds: float) -> None:
        await life.wait(max(seconds, 4.0))
        life.point("paused")

    await Keeper(
        books, OutboxPort(cluster.quota, life), quota, cluster.clock, definitions,
        Rebuilder(books, quota, restorer, cluster.clock), kept=Kept(10**9, 10**9), lease_s=10.0,
        reached=life.point, pause=pause,
    ).run()  # fmt: skip
