"""``penstock keeper``: the keeper's work on Redis and PostgreSQL, and its operations port."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from penstock.adapters.observing.keeping import KeeperMetrics
from penstock.adapters.postgresql.crash_points import CRASH_POINTS, unnoticed
from penstock.adapters.postgresql.database import check_prepared
from penstock.adapters.postgresql.figuring import FigureStore
from penstock.adapters.postgresql.keeping import KeeperStore
from penstock.adapters.postgresql.leading import Leadership, session_options
from penstock.api.operations import operations_application
from penstock.api.server import bind, serve
from penstock.config import Configuration
from penstock.errors import ConfigurationError
from penstock.lanes.keeping import Keeper
from penstock.lanes.rebuilding import Rebuilder
from penstock.planning.flow import Flow
from penstock.ports import Kept
from penstock.quota.definitions import Definitions
from penstock.wiring.broker import open_management, virtual_host
from penstock.wiring.clock import SystemClock
from penstock.wiring.crash import VARIABLE, crash_from
from penstock.wiring.database import cluster_engine
from penstock.wiring.figuring import Figuring
from penstock.wiring.governing import Governing
from penstock.wiring.listening import beside
from penstock.wiring.measuring import show_surroundings
from penstock.wiring.quota import open_outbox, open_quota, open_restorer
from penstock.wiring.readiness import STOPPING
from penstock.wiring.running import local_url
from penstock.wiring.scaling import servings
from penstock.wiring.stores import Role
from penstock.wiring.surveying import Survey, Surveyed
from penstock.wiring.tracing import ledger_tracer

LEASE_S = 10.0


async def run_keeper(
    configuration: Configuration,
    *,
    host: str,
    port: int,
    lease_s: float,
    rebuild_s: float,
    audit_s: float,
    figures_s: float,
    stop: asyncio.Event,
    started: Callable[[str], None],
) -> None:
    """Keep until ``stop`` is set.

    Args:
        port: Of the operations port; 0 for a free one.
        lease_s: A keeper that is silent for so long is replaced.
        rebuild_s: After Redis lost its state: how long running requests may claim theirs before new ones are admitted.
        audit_s: Between two audits; 0: none.
        figures_s: Between two looks at what waits.
        started: Told the operations port's URL.

    Raises:
        ConfigurationError: There are no stores, a secret is missing, Redis cannot be trusted, or the address is taken.
        StoreUnavailable: A service cannot be reached.
    """
    if configuration.stores is None:
        raise ConfigurationError(
            ("stores: not given, and the embedded default keeps its ledger by itself; see `penstock serve`",)
        )
    clock = SystemClock()
    async with AsyncExitStack() as parts:
        door = parts.enter_context(bind(host, port, setting="--operations-port"))
        engine = cluster_engine(configuration, Role.KEEPER)
        options = session_options(lease_s)
        lock = cluster_engine(configuration, Role.KEEPER, options=options, connections_max=1)
        writes = cluster_engine(configuration, Role.KEEPER, options=options, connections_max=1)
        for each in (engine, lock, writes):
            parts.callback(each.dispose)
        await asyncio.to_thread(check_prepared, engine)
        quota = await parts.enter_async_context(open_quota(configuration, Role.KEEPER))
        outbox = await parts.enter_async_context(open_outbox(configuration, Role.KEEPER))
        reached = crash_from(os.environ.get(VARIABLE), CRASH_POINTS) or unnoticed
        leadership = Leadership(lock, process=f"{socket.gethostname()}:{os.getpid()}", now_ms=clock.now_ms)
        governing = await asyncio.to_thread(Governing, engine, clock)
        books = KeeperStore(writes, leadership, now_ms=clock.now_ms, reached=reached)
        restorer = await parts.enter_async_context(open_restorer(configuration, Role.KEEPER))
        flow = Flow()
        tracer = await parts.enter_async_context(ledger_tracer(configuration, "penstock-keeper"))
        keeper = Keeper(
            books,
            outbox,
            quota,
            clock,
            partial(_definitions, governing),
            Rebuilder(books, quota, restorer, clock, lease_ms=round(rebuild_s * 1000)),
            kept=Kept(configuration.queue.results_ms, configuration.queue.answers_ms),
            lease_s=lease_s,
            wrote=flow.note,
            tracer=tracer,
            reached=reached,
        )
        metrics = KeeperMetrics(keeper.tally)
        show_surroundings(metrics.figures, configuration, governing=governing)
        broker = await parts.enter_async_context(open_management(configuration, Role.MONITOR, os.environ))
        vhost = virtual_host(configuration, os.environ, Role.MONITOR)
        surveyed = Surveyed(
            quota=quota, outbox=outbox, engine=engine, organisations=governing.current.keys, broker=broker, vhost=vhost
        )
        survey = Survey(surveyed, keeper.tally, clock, metrics.figures, audit_s=audit_s)
        figures = FigureStore(engine, lambda: books.fence)
        figuring = Figuring(
            servings(configuration), flow, figures, outbox, keeper.tally, clock, metrics.figures, every_s=figures_s
        )

        async def readiness() -> tuple[str, ...]:
            if stop.is_set():
                return (STOPPING,)
            return () if quota.failure is None else (f"Redis cannot be used: {quota.failure}",)

        operations = operations_application(metrics=metrics.exposition, readiness=readiness, scaling=figuring.asked)
        url = local_url(host, door.getsockname()[1])
        serving = serve(operations, door, stop=stop, started=lambda: started(url), shutdown_s=1.0)
        # a fault in any of them ends the process, which is then started again
        await beside(_all(keeper.run(), figuring.run(), survey.run()), serving)


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as all_of_it:
        for each in work:
            all_of_it.create_task(each)


async def _definitions(governing: Governing) -> tuple[int, Mapping[str, Definitions]]:
    await governing.look()
    return governing.version, governing.current
